"""The runs of a sweep, side by side. What is finished is skipped, what is half done continues."""

import signal
import time
from pathlib import Path
from typing import Any

from ..config import Config, as_yaml
from ..problems import testbed
from ..record.files import as_page, write_whole
from ..record.read import read_config, read_meta, run_folders, source
from ..types import BadInput
from . import launch
from .description import Run, Sweep


class Grid:
    """The runs of a sweep that are not finished, in order."""

    def __init__(self, sweep: Sweep):
        self.runs = sweep.runs
        _refuse_other_start(sweep)
        for run in sweep.runs:
            take_over(run, sweep.takes_from)
        self.already = already_there(sweep.runs)
        self._waiting = [run for run in sweep.runs if not run.finished()]

    def next(self) -> Run | None:
        """The next run to start; None when there is none (now)."""
        return self._waiting.pop(0) if self._waiting else None

    def hopeless(self, run: Run) -> bool:
        """Whether to stop a run that is under way; True at most once."""
        return False

    def ended(self, run: Run, state: str) -> None:
        """A run came to its end: finished, stopped or failed."""


def run_all(sweep: Sweep, work: Any, show: Any) -> tuple[int, list[Run]]:
    """Run what `work` (a Grid or a Search) hands out, `sweep.workers` at a time.

    Returns the exit code (0; 1 when a run failed; 130 when interrupted) and the runs that failed.

    `show(states)` is called about twice a second with [(run, state)], state being waiting | running
    | finished | failed | stopped.
    """
    # Also where a shell that starts this in the background has Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    start = launch.launcher(sweep.launcher, sweep.gpus, sweep.slurm).start
    states: dict[int, str] = {}  # by id of a run; one that is not here is finished already, or waiting
    running: dict[int, tuple[launch.Job, Run]] = {}  # by slot
    interrupted: set[int] = set()  # slots whose job was asked to stop
    seen = lambda: show([(r, states.get(id(r)) or ("finished" if r.finished() else "waiting")) for r in work.runs])
    stopping = False
    try:
        while True:
            try:
                for slot in sorted(set(range(sweep.workers)) - running.keys()):
                    run = None if stopping else work.next()
                    if run is None:
                        break
                    run.folder.mkdir(parents=True, exist_ok=True)
                    running[slot] = start(run.command(sweep.gpus), run.folder, slot), run
                    states[id(run)] = "running"
                seen()
                if not running:
                    break
                for slot, (job, run) in list(running.items()):
                    code = job.poll()
                    if code is not None:
                        states[id(run)] = {0: "finished", 130: "stopped", -signal.SIGINT: "stopped"}.get(code, "failed")
                        if code and slot in interrupted and read_meta(run.folder).get("status") == "stopped":
                            states[id(run)] = "stopped"  # torchrun exits with 1 whatever its ranks say
                        del running[slot]
                        interrupted.discard(slot)
                        if not stopping:  # what is interrupted goes on another time
                            work.ended(run, states[id(run)])
                    elif work.hopeless(run):
                        interrupted.add(slot)
                        job.interrupt()
                time.sleep(0.5)
            except KeyboardInterrupt:  # let each run save and stop; a second one ends them at once
                if stopping:
                    raise
                stopping = True
                for slot, (job, _) in running.items():
                    interrupted.add(slot)
                    job.interrupt()
    finally:
        for job, _ in running.values():
            job.kill()
    failed = [run for run in work.runs if states.get(id(run)) == "failed"]
    return 130 if stopping else int(bool(failed)), failed


def _same_start(meta: dict[str, Any], config: Config) -> bool:
    """Whether the run that `meta` describes began with the weights that `config` would begin
    with here."""
    if config.model.path != "testbed":
        return True
    return meta.get("start_weights") == testbed.weights_digest(testbed.base_model(config.testbed))


def _refuse_other_start(sweep: Sweep) -> None:
    """All arms start from the same weights: what is finished here may not have started from
    another machine's."""
    missing = [run for run in sweep.runs if not run.finished()]
    for run in sweep.runs:
        if missing and run.finished() and not _same_start(read_meta(run.folder), run.config):
            raise BadInput(
                f"{run.folder}: started from other base weights than this machine makes, so {missing[0].arm} seed"
                f" {missing[0].seed} could not be compared with it; choose another root with results=DIR"
            )


def take_over(run: Run, sweeps: list[str]) -> Path | None:
    """Let a finished run of `sweeps` that is the same run (same seed, same configuration, so bit
    for bit the same metrics) stand for `run`, unless something is there.

    `taken_from` in meta.json names it, and whoever reads the metrics follows (record/read.py).
    Returns its folder.
    """
    if read_meta(run.folder) or run.config.run_dir:
        return None
    # Bit for bit needs the same micro-batches too.
    same = lambda config: {**config.identity(), "experiment": None, "micro": config.update.micro_batch_tokens}
    for sweep in sweeps:
        for folder in run_folders(Path(run.config.results, sweep)):
            meta = read_meta(folder)
            if folder.name != f"seed{run.seed}" or meta.get("status") != "finished":
                continue
            if meta.get("steps") != run.config.steps or not _same_start(meta, run.config):
                continue
            if same(read_config(folder)) != same(run.config):
                continue
            made_there = source(folder)
            run.folder.mkdir(parents=True, exist_ok=True)
            write_whole(run.folder / "config.yaml", as_yaml(run.config))  # first: a killed one is begun again
            write_whole(run.folder / "meta.json", as_page(meta | {"taken_from": "/".join(made_there.parts[-3:])}))
            return made_there
    return None


def already_there(runs: list[Run]) -> str:
    """A line about the runs that are finished; "" when none is."""
    metas = [read_meta(run.folder) for run in runs if run.finished()]
    if not metas:
        return ""
    days = sorted({str(meta.get("end", "an unknown time")).replace("T", " ")[:16] for meta in metas})
    commits = sorted({session.get("commit", "unknown")[:7] for meta in metas for session in meta.get("sessions", [])})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    nothing = "; nothing ran" if len(metas) == len(runs) else ""
    return f"{len(metas)} of {len(runs)} were already there (recorded at {when}, commit {', '.join(commits)}){nothing}"


def error_of(run: Run) -> str:
    """The last line that a failed run printed."""
    path = run.folder / "output.txt"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")
