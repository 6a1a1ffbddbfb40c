"""What a person sees of a run: a progress bar with the live numbers on a terminal, plain lines
elsewhere."""

import sys
from pathlib import Path
from typing import Any

import rich.console
from rich import box
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from .config import Config
from .problems.counts import mean_accuracy
from .terminal import raw
from .types import Verdict, printable

MISSING = float("nan")


class Console(rich.console.Console):
    """rich's, which says nothing and exits with 1 when nobody reads any more; the front door knows
    better."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """A console on standard output itself: rich draws with codes that `printable` would write
    out. What others wrote goes through `printable` before it is handed over."""
    return Console(file=raw(sys.stdout))


def progress(step: int, steps: int) -> str:
    """How far a run is; it may be longer than what is asked for now."""
    return f"{step}/{steps}" if step <= steps else f"{step} ({steps} asked)"


def score(config: Config, m: dict[str, float]) -> str:
    """The accuracy in a step's metrics, where somebody says what is right; the reward where it is
    not the task's own."""
    show = lambda name: f"{m.get(f'{name}/mean', MISSING):.3f}"
    reward, accuracy = f"reward {show('reward')}", f"acc {show('accuracy')}"
    if {source.verifier for source in config.data.train} == {"none"}:
        return reward
    return accuracy if config.reward == "task" else f"{reward}  {accuracy}"


def who_grades(config: Config) -> str:
    """What trains and what accuracy counts, where the reward is not the task's own."""
    verifiers = sorted({source.verifier for source in config.data.train})
    by = {"answer": "the final answer", "none": "nobody", "code": "its tests", "instructions": "its instructions"}
    return f"reward by {config.reward}; accuracy by {', '.join(by.get(name, name) for name in verifiers)}"


class Screen:
    """The `show` of train(). Use as a context manager."""

    def __init__(self):
        self.console = console()
        self.live = sys.stdout.isatty()
        self.config = Config()  # of the run
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        (self._bar.console if self._bar else self.console).print(
            printable(text), highlight=False, soft_wrap=True, markup=False
        )

    def start(self, config: Config, folder: Path, step: int) -> None:
        self.config = config
        if step >= config.steps:
            self.say(f"{folder}: {config.method}, {config.steps} steps; {step} were already there, nothing ran")
            return
        self.say(
            f"{folder}: {config.method}, {config.steps} steps" + (f", continuing after step {step}" if step else "")
        )
        if config.reward != "task":
            self.say(who_grades(config))
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(
                f"step {step}/{config.steps}", total=config.steps, completed=step, numbers=""
            )
            self._bar.start()

    def step(self, step: int, m: dict[str, float], elapsed: float) -> None:
        left = elapsed / step * (self.config.steps - step)
        numbers = (
            f"{score(self.config, m)}  H {m.get('entropy/mean', MISSING):.3f}  "
            f"clip {m.get('clip/low', MISSING):.2%}/{m.get('clip/high', MISSING):.2%}  "
            f"{m['tokens/total'] / m['time/step']:.0f} tok/s  {left:.0f} s left"
        )
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, description=f"step {step}/{self.config.steps}", numbers=numbers
            )
        else:
            print(f"step {step}/{self.config.steps}  {numbers}", flush=True)

    def evaluated(self, step: int, rows: list[dict[str, Any]]) -> None:
        parts = [f"{row['benchmark']} {row['avg@' + str(row['k'])]:.3f}" for row in rows]
        if not rows:
            return
        total = sum(row["n"] * row["k"] for row in rows)
        share = lambda verdict: sum(row["verdicts"].get(verdict.value, 0) for row in rows) / total
        # Nothing there to grade: a model that does not box unasked shows it at step 0.
        parts += [
            f"{words} {share(verdict):.1%}"
            for verdict, words in ((Verdict.NO_ANSWER, "no answer"), (Verdict.TRUNCATED, "truncated"))
            if share(verdict)
        ]
        self.say(f"eval {step}: mean {mean_accuracy(rows):.3f}  " + "  ".join(parts))


class SweepScreen:
    """One live table of a sweep on a terminal; elsewhere a line whenever a run changes state."""

    def __init__(self):
        self.console = console()
        self._live = Live(console=self.console, auto_refresh=False) if sys.stdout.isatty() else None
        self._before: dict[int, str] = {}

    def __enter__(self) -> "SweepScreen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            self._live.stop()

    def show(self, states: list[tuple[Any, str]]) -> None:
        if self._live:
            self._live.update(self._table(states), refresh=True)
            return
        for run, state in states:
            if self._before.get(id(run)) != state:
                self._before[id(run)] = state
                if state != "waiting":
                    print(f"{run.arm} seed {run.seed}: {state}  {self._numbers(run)}".rstrip(), flush=True)

    def _numbers(self, run: Any) -> str:
        m = run.last_metrics()
        if not m:
            return ""
        entropy = m.get("entropy/mean", MISSING)
        return f"step {progress(m['step'], run.config.steps)}  {score(run.config, m)}  H {entropy:.3f}"

    def _table(self, states: list[tuple[Any, str]]) -> Table:
        table = Table("arm", "seed", "state", "step", "score", "entropy", "left")
        for run, state in states:
            m = run.last_metrics() if state != "waiting" else {}
            if m:
                left = (
                    f"{m.get('time/step', MISSING) * (run.config.steps - m['step']):.0f} s"
                    if state == "running"
                    else ""
                )
                numbers = [
                    progress(m["step"], run.config.steps),
                    score(run.config, m),
                    f"{m.get('entropy/mean', MISSING):.3f}",
                    left,
                ]
            table.add_row(escape(printable(run.arm)), str(run.seed), state, *(numbers if m else [""] * 4))
        return table


def print_eval(rows: list[dict[str, Any]]) -> None:
    """avg@k, pass@k and maj@k of every benchmark, as a table; under each its interval over
    problems."""
    table = Table("benchmark", "n", "k", "avg@k", "pass@k", "maj@k", "truncated", box=box.SIMPLE)
    for row in rows:
        k = row["k"]
        names = (f"avg@{k}", f"pass@{k}", f"maj@{k}")  # the last for final answers alone
        cells = [
            f"{row[name]:.3f}\n{row['interval'][name][0]:.3f}–{row['interval'][name][1]:.3f}" if name in row else "–"
            for name in names
        ]
        cut = row["verdicts"]["truncated"] / sum(row["verdicts"].values())
        table.add_row(escape(printable(row["benchmark"])), str(row["n"]), str(k), *cells, f"{cut:.1%}")
    if len(rows) > 1:
        table.add_row("mean", "", "", f"{mean_accuracy(rows):.3f}")
    console().print(table)
    for row in rows:
        if "measures" in row:
            said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in row["measures"].items())
            print(f"{row['benchmark']}: {said}")


def print_verdicts(counts: dict[str, int]) -> None:
    """How many responses met each verdict, on one line."""
    print("verdicts: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
