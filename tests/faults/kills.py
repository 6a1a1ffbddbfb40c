"""A campaign of kills: a command is killed (SIGKILL, its whole session) at random moments, started
again, and must leave what it leaves when nobody kills it.

Moments are seeded: a share of the time that the command takes undisturbed, so the same seed asks
for the same shares whatever the machine.
"""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .children import ROOT, Child, differences, front, left, python
from .table import Table

RUN = ["method=cegppo", "steps=5", "checkpoint_every=2", "eval_every=2", "diagnostics.every=2", "diagnostics.probe=4"]
QUIET = "wandb.mode=disabled"
PATIENCE = 300  # seconds after which a command hangs


@dataclass
class Scenario:
    """`prepare(root)` makes what is there before; `command(root)` is what is killed. `weight`: how
    often it comes."""

    command: Callable[[Path], Callable[[], int]]
    weight: int
    prepare: Callable[[Path], None] = lambda root: None
    processes: int = 1
    kills: int = 3  # of one trial, at most


def words(verb: str, root: Path, *more: str) -> list[str]:
    return [verb, str(root.parent / "tiny.yaml"), QUIET, f"run_dir={root / 'run'}", *RUN, *more]


def finished(root: Path) -> None:
    """A finished run."""
    child = Child(front(words("train", root)), root.parent / "output")
    assert child.wait(PATIENCE) == 0, child.said()


def arms(root: Path) -> None:
    """A sweep's folder with two finished runs."""
    finished(root)
    for seed in (0, 1):
        shutil.copytree(root / "run", root / "results" / "swept" / "arm" / f"seed{seed}", symlinks=True)
    shutil.rmtree(root / "run")


SWEEP = """
experiment: {tiny}
seeds: [0]
common: {{steps: 2, eval_every: 0, wandb.mode: disabled}}
varies: [loss.beta1, method]
arms:
  one: {{method: cegppo, loss.beta1: 0.0}}
  two: {{method: cegppo, loss.beta1: 1.0}}
"""
SEARCH = """
experiment: {tiny}
seeds: [0]
trials: 2
search: random
space: {{loss.beta1: [0.5]}}
common: {{method: cegppo, steps: 2, wandb.mode: disabled}}
objective: {{metric: reward/mean, prune: false}}
"""


def described(text: str) -> Callable[[Path], None]:
    return lambda root: void((root / "swept.yaml").write_text(text.format(tiny=root.parent / "tiny.yaml")))


def void(_: object) -> None: ...


def sweep(root: Path) -> Callable[[], int]:
    return front(["sweep", str(root / "swept.yaml"), f"results={root / 'results'}", "sweep.workers=1"])


SCENARIOS = {
    "train": Scenario(lambda root: front(words("train", root)), 60),
    "train, critic and reference": Scenario(
        lambda root: front(words("train", root, "method=ppo", "update.kl_coef=0.1", "diagnostics.every=0")), 30
    ),
    "train, from the first import on": Scenario(lambda root: python(ROOT / "run.py", *words("train", root)), 8),
    "train, two processes": Scenario(
        lambda root: python(
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, ROOT / "run.py", *words("train", root)
        ),
        2,
        processes=2,
        kills=2,
    ),
    "eval": Scenario(
        lambda root: front(["eval", str(root / "run"), "eval.k=16", "eval.size=12"]), 30, finished
    ),
    "report": Scenario(lambda root: front(["report", str(root / "run")]), 20, finished),
    "keep": Scenario(lambda root: front(["keep", str(root / "results" / "swept")]), 20, arms),
    "compare": Scenario(
        lambda root: front(["compare", str(root / "results" / "swept"), "--results", str(root / "results")]), 10, arms
    ),
    "sweep": Scenario(sweep, 4, described(SWEEP), kills=2),
    "search": Scenario(sweep, 3, described(SEARCH), kills=2),
}  # fmt: skip


def fresh(folder: Path, name: str, called: str) -> Path:
    """A folder `called` so with what is there before the command of scenario `name`, the same each
    time."""
    prepared, root = folder / f"prepared {name}", folder / called
    if not prepared.is_dir():
        prepared.mkdir()
        SCENARIOS[name].prepare(prepared)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root, symlinks=True)
    return root


class Campaign:
    def __init__(self, folder: Path, seed: int, table: Table):
        self.folder, self.seed, self.table = folder, seed, table
        self._undisturbed: dict[str, tuple[Path, float]] = {}  # what is left, and the seconds that it took

    def start(self, name: str, root: Path) -> Child:
        return Child(SCENARIOS[name].command(root), self.folder / "output")

    def undisturbed(self, name: str) -> tuple[Path, float]:
        """(root of what the command leaves when nobody kills it, seconds)."""
        if name not in self._undisturbed:
            root = fresh(self.folder, name, f"undisturbed {name}")
            begun = time.monotonic()
            child = self.start(name, root)
            assert child.wait(PATIENCE) == 0, child.said()
            self._undisturbed[name] = root, time.monotonic() - begun
        return self._undisturbed[name]

    def trial(self, name: str, number: int) -> tuple[int, str]:
        """(kills, what was wrong afterwards or "") of one folder."""
        rng = random.Random(f"{self.seed} {name} {number}")
        before, seconds = self.undisturbed(name)
        root = fresh(self.folder, name, f"tried {name}")
        kills = 0
        for _ in range(rng.randint(1, SCENARIOS[name].kills)):
            child = self.start(name, root)
            if child.wait(rng.random() * seconds) is None:
                kills += 1
            child.kill()
            if child.code not in (0, -9):
                return kills, f"exit code {child.code}: {child.said()[-300:]}"
        child = self.start(name, root)
        if (code := child.wait(PATIENCE)) != 0:
            child.kill()
            return kills, "hangs" if code is None else f"exit code {code}: {child.said()[-300:]}"
        if unlike := compared(name, before, root):
            return kills, f"not alike: {', '.join(unlike[:5])}"
        return kills, ""

    def run(self, seconds: float, only: list[str]) -> None:
        """Trials by turns, by weight, until the time is up."""
        until = time.monotonic() + seconds
        asked = only or list(SCENARIOS)
        order = [name for name in asked for _ in range(SCENARIOS[name].weight)]
        random.Random(self.seed).shuffle(order)
        for n, name in enumerate(order):
            if time.monotonic() > until:
                break
            kills, wrong = self.trial(name, n)
            self.table.add(name, kills, wrong)


def compared(name: str, before: Path, root: Path) -> list[str]:
    """Names of files that are not what the undisturbed command left."""
    one, other = left(before), left(root)
    if name == "train, two processes":  # rounds as it is started (docs/scale.md); steps and counts are the same
        keep = lambda tree: {k: [r["step"] for r in v] for k, v in tree.items() if k.endswith("metrics.jsonl")}
        one, other = keep(one), keep(other)
    if name == "search":  # which trials were under way when it was killed is not the same
        keep = lambda tree: {k: v for k, v in tree.items() if not k.endswith("trials.jsonl")}
        one, other = keep(one), keep(other)
    return differences(one, other)


def prepared(folder: Path) -> None:
    """The tiny model and its experiment in `folder`."""
    from tests.conftest import TINY, save_tiny_model

    (folder / "model").mkdir()
    child = Child(lambda: void(save_tiny_model(folder / "model")) or 0, folder / "output")
    assert child.wait(PATIENCE) == 0, child.said()
    (folder / "tiny.yaml").write_text(TINY.format(model=folder / "model"))
