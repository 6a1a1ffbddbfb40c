"""What a sweep file says: arms × seeds of one experiment, checked and expanded to runs.

A sweep file:

    experiment: ../experiments/testbed.yaml   # relative to the sweep file
    varies: [method, loss]                    # keys or sections in which arms may differ
    seeds: [0, 1, 2]
    workers: 2                                # runs at a time
    common: {steps: 80}                       # for every arm
    per_seed: {testbed.seed: [0, 1, 2]}       # seed k takes value k modulo their count
    takes_from: [algorithms]                  # a finished same run there is not repeated
    launcher: local                           # local | ray | ray://host:port | slurm
    runner: verl                              # trained by verl; `verl:` as verl.py says
    gpus: 8                                   # a run, by torchrun; default: one if there is any
    slurm: {slurm_partition: gpu}             # parameters of submitit (timeout_min, mem_gb, …)
    arms:
      grpo: {method: grpo}
      cegppo: {method: cegppo, loss.beta1: 0.5}
    grid: {loss.beta1: [0, 0.5], loss.beta2: [0, 1]}   # four more arms, beta1=0,beta2=0 and so on

Values are taken as they stand there: " Box it." keeps its space, and "1e3" stays a text. An arm
stands above `common`, the command line above both.

`include: other.yaml` starts from another sweep file; this one's keys replace its keys, and `common`
adds to its `common`.
"""

import itertools
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import (
    Config,
    Layer,
    as_numbers,
    as_override,
    as_text,
    flatten,
    nearest,
    nested,
    parse_overrides,
    read_yaml,
    under,
)
from ..config import load as load_config
from ..record.read import read_config, read_meta, read_metrics, source
from ..record.run import refuse_other_run
from ..shipped import ROOT, find
from ..types import BadInput
from . import launch, verl

KEYS = {
    "experiment": str, "varies": list, "seeds": list, "workers": int, "common": dict, "takes_from": list, "arms": dict,
    "launcher": str, "gpus": int, "slurm": dict, "search": str, "space": dict, "objective": dict, "trials": int,
    "runner": str, "verl": dict, "per_seed": dict, "grid": dict,
}  # fmt: skip
OF_A_GRID = ("varies", "arms", "grid", "takes_from", "per_seed")
OF_A_SEARCH = ("search", "space", "objective", "trials")
OF_THE_SWEEP = ("workers", "seeds", "launcher", "gpus", "slurm", "search", "trials")  # keys that `sweep.KEY=…` may set
RUNNERS = ("own", "verl")
RUN = ROOT / "run.py"


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    experiment: Path
    overrides: tuple[str, ...]  # what the sweep and the command line decided, for the process that runs it
    config: Config

    @property
    def folder(self) -> Path:
        return self.config.folder

    def command(self, gpus: int | None) -> list[str]:
        """What runs it, with torchrun in front where it has several GPUs."""
        ranks = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "--shutdown-timeout=3600"]
            if gpus and gpus > 1
            else []
        )
        return [sys.executable, *ranks, str(RUN), "train", str(self.experiment), *self.overrides]

    def plan(self) -> str:
        """What a dry run says of it."""
        return " ".join(self.overrides)

    def last_metrics(self) -> dict[str, Any]:
        rows = read_metrics(self.folder)
        return rows[-1] if rows else {}

    def refuse_other_run(self) -> None:
        """Raises BadInput when its folder holds a run of another configuration."""
        # A finished run of another configuration is not the run that was asked for.
        if not self.finished() or self.config.identity() != read_config(self.folder).identity():
            refuse_other_run(self.folder, self.config)

    def finished(self) -> bool:
        """Ended, with at least the steps asked for now. Raises BadInput when the run that stands
        for it is gone."""
        meta = read_meta(self.folder)
        if meta.get("status") != "finished" or meta.get("steps", 0) < self.config.steps:
            return False
        source(self.folder)
        return True


@dataclass(frozen=True)
class VerlRun(Run):
    """One that verl trains."""

    settings: dict[str, Any] = field(default_factory=dict)  # `verl:` of the sweep file
    gpus: int = 0  # of each machine

    def command(self, gpus: int | None) -> list[str]:
        own = [json.dumps(self.settings), str(self.gpus), str(self.experiment), *self.overrides]
        return [sys.executable, "-m", verl.__name__, *own]

    def plan(self) -> str:
        log = self.folder / f"verl.{len(verl.logs(self.folder))}.jsonl"
        return shlex.join(verl.command(self.config, self.settings, self.gpus, log))

    def last_metrics(self) -> dict[str, Any]:
        return verl.last_metrics(self.folder, self.config)

    def refuse_other_run(self) -> None:
        verl.refuse_other_run(self.folder, self.config)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, expanded."""

    name: str
    runs: list[Run]
    workers: int = 1
    takes_from: list[str] = field(default_factory=list)  # sweeps whose finished runs may stand for runs of this one
    launcher: str = "local"
    gpus: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """A sweep file with the command line's say, checked as far as a grid and a search are alike."""

    path: Path
    tree: dict[str, Any]
    overrides: list[str]  # for every run

    @property
    def name(self) -> str:
        return self.path.stem

    def run(self, arm: str, seed: int, changes: dict[str, Any]) -> Run:
        """The run of `arm` with `seed`: the experiment, `common`, the arm's own changes, the
        command line. Raises BadInput."""
        experiment = Path(os.path.normpath(self.path.parent / self.tree["experiment"]))
        layers = (
            nested(self.tree.get("common", {}), f"{self.path}: common"),
            nested(changes, f"{self.path}: arm '{arm}'"),
            (str(self.path), {"experiment": self.name, "arm": str(arm), "seed": seed}),
        )
        config, origin = load_config(experiment, self.overrides, layers)
        run = (str(arm), seed, experiment, _decided(config, origin, layers), config)
        if self.tree.get("runner", "own") == "own":
            return Run(*run)
        made = VerlRun(*run, self.tree["verl"], self.tree["gpus"])
        made.plan()  # what verl cannot do is said before anything runs
        return made

    def sweep(self, runs: list[Run]) -> Sweep:
        tree = self.tree
        gpus = tree.get("gpus")
        if tree.get("runner") == "verl" and len(launch.visible_gpus()) < tree["gpus"]:
            gpus = 0  # they are a Ray cluster's, which verl asks
        taken = [str(name) for name in tree.get("takes_from", [])]
        return Sweep(
            self.name,
            runs,
            tree.get("workers", 1),
            taken,
            tree.get("launcher", "local"),
            gpus,
            tree.get("slurm", {}),
        )


def describe(path: str | Path, overrides: Sequence[str] = ()) -> Description:
    """Read sweep file `path`. `overrides` are for every run, those that begin with `sweep.` for
    the sweep. Raises BadInput."""
    path = find(path)
    tree = _read(path)
    mine: dict[str, Any] = {}
    rest: list[str] = []
    for item in overrides:
        if item.startswith("sweep."):
            mine |= parse_overrides([item.removeprefix("sweep.")])
        else:
            rest.append(item)
    for key in mine:
        if key not in OF_THE_SWEEP:
            raise BadInput(f"command line: unknown key 'sweep.{key}'{nearest(key, OF_THE_SWEEP, 'sweep.')}")
    for where, keys in ((path, tree), ("command line: sweep", mine)):
        for key in keys:
            if key not in KEYS:
                raise BadInput(f"{where}: unknown key '{key}'{nearest(str(key), KEYS)}")
        keys |= {key: _read_as(key, value, f"{where}: {key}") for key, value in keys.items()}
        for key, value in keys.items():
            if not isinstance(value, KEYS[key]) or isinstance(value, bool):
                raise BadInput(f"{where}: '{key}' takes a {KEYS[key].__name__}, not {value!r}")
    tree |= mine
    for key in ("experiment", "seeds"):
        if not tree.get(key):
            raise BadInput(f"{path}: '{key}' is missing or empty")
    strange = [key for key in (OF_A_GRID if "search" in tree or "space" in tree else OF_A_SEARCH) if key in tree]
    if strange:
        raise BadInput(
            f"{path}: '{strange[0]}' is of {'a grid' if strange[0] in OF_A_GRID else 'a search'}, and this is none"
        )
    if tree.get("workers", 1) < 1 or tree.get("gpus", 0) < 0 or tree.get("trials", 1) < 1:
        raise BadInput(f"{path}: workers and trials must be at least 1, gpus at least 0")
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in tree["seeds"]):
        raise BadInput(f"{path}: seeds must be a list of whole numbers, not {tree['seeds']!r}")
    for name in tree.get("takes_from", []):  # a reference is <sweep>/<arm>/seed<k> under the same root
        if not isinstance(name, str) or len(Path(name).parts) != 1:
            raise BadInput(f"{path}: takes_from names sweeps, folders right under results, not {name!r}")
    if tree.get("runner", "own") not in RUNNERS:
        raise BadInput(f"{path}: unknown runner '{tree['runner']}'{nearest(tree['runner'], RUNNERS)}")
    if tree.get("runner") == "verl":
        tree["verl"] = flatten(tree.get("verl", {}))
        verl.check(path, tree)
    elif "verl" in tree:
        raise BadInput(f"{path}: 'verl' is for runner: verl")
    where = tree.get("launcher", "local")
    if where not in launch.NAMES and not where.startswith("ray://"):
        raise BadInput(f"{path}: unknown launcher '{where}'{nearest(where, launch.NAMES)}")
    return Description(path, tree, rest)


def _read_as(key: str, value: Any, where: str) -> Any:
    """The value of a sweep file's own key: names as text, the rest with plain numbers. What arms
    and `common` say is for the schema to read."""
    if key in ("arms", "grid", "common"):
        return value
    if key in ("takes_from", "varies") and isinstance(value, list):
        return [as_text(name) for name in value]
    return as_text(value) if KEYS[key] is str else as_numbers(value, where)


def expand(d: Description) -> Sweep:
    """Arms × seeds of a sweep file. Raises BadInput, also when arms differ in anything that
    `varies` does not name."""
    path, tree = d.path, d.tree
    for key in () if tree.get("grid") else ("varies", "arms"):
        if not tree.get(key):
            raise BadInput(f"{path}: '{key}' is missing or empty")
    arms, varies = {**tree.get("arms", {}), **_product(path, tree)}, [*tree.get("varies", []), *tree.get("grid", {})]
    runs = []
    for seed in tree["seeds"]:  # seed by seed, so that an early look compares all arms
        for arm, changes in arms.items():
            if not isinstance(changes, (dict, type(None))):
                raise BadInput(f"{path}: arm '{arm}' takes keys like {{method: grpo}}, not {changes!r}")
            runs.append(d.run(arm, seed, {**_of_seed(path, tree, seed), **(changes or {})}))
    for n, run in enumerate(runs):
        if any(run.folder == other.folder for other in runs[:n]):
            raise BadInput(f"{path}: two runs would write to {run.folder}")
    _refuse_other_differences(path, runs, [*varies, *tree.get("per_seed", {})])
    for run in runs:
        run.refuse_other_run()
    return d.sweep(runs)


def _product(path: Path, tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of `grid`, one per combination of its values, named after them as they were
    written: beta1=0.5,beta2=1. Raises BadInput."""
    grid = tree.get("grid", {})
    for key, values in grid.items():
        if not isinstance(values, list) or not values or any(isinstance(v, (list, dict)) for v in values):
            raise BadInput(f"{path}: grid: '{key}' takes a list of single values, not {values!r}")
    last = [key.rpartition(".")[2] for key in grid]
    names = last if len(set(last)) == len(last) else list(grid)
    made = {}
    for combination in itertools.product(*grid.values()) if grid else ():
        arm = ",".join(f"{name}={as_text(value)}" for name, value in zip(names, combination))
        if arm in tree.get("arms", {}) or arm in made:
            raise BadInput(f"{path}: grid: two arms are called '{arm}'")
        made[arm] = dict(zip(grid, combination))
    return made


def _of_seed(path: Path, tree: dict[str, Any], seed: int) -> dict[str, Any]:
    """The values of `per_seed` for `seed`. Raises BadInput."""
    made = {}
    for key, values in tree.get("per_seed", {}).items():
        if not isinstance(values, list) or not values:
            raise BadInput(f"{path}: per_seed: '{key}' takes a list of values, not {values!r}")
        made[key] = values[seed % len(values)]
    return made


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The sweep file at `path` on top of the one that it includes, if any."""
    tree = read_yaml(path)
    base = tree.pop("include", None)
    if not isinstance(tree.get("common", {}), dict):
        raise BadInput(f"{path}: 'common' takes a dict, not {tree['common']!r}")
    if base is None:
        return tree
    if not isinstance(base, str) or (path.parent / base).resolve() in (*seen, path.resolve()):
        raise BadInput(f"{path}: 'include' takes the name of another sweep file, not {base!r}")
    included = _read(path.parent / base, (*seen, path.resolve()))
    return included | tree | {"common": {**included.get("common", {}), **tree.get("common", {})}}


def _decided(config: Config, origin: dict[str, str], layers: Sequence[Layer]) -> tuple[str, ...]:
    """The `key=value` items that make `config` of its experiment: whatever a layer of the sweep or
    the command line decided, as it came out."""
    models = [as_override("model", tree["model"]) for _, tree in layers if isinstance(tree.get("model"), str)]
    here = {"command line", *(where for where, _ in layers)}
    values = flatten(config.to_dict())
    return (*models, *(as_override(k, values[k]) for k, where in origin.items() if where in here and k in values))


def _refuse_other_differences(path: Path, runs: list[Run], varies: list[str]) -> None:
    """Arms may differ in what `varies` names (a key or a whole section) and in the seed."""
    first = runs[0].config.identity()
    for run in runs[1:]:
        other = run.config.identity()
        for key in sorted(first.keys() | other.keys()):
            if not under(key, [*varies, "seed"]) and first.get(key) != other.get(key):
                raise BadInput(
                    f"{path}: arms '{runs[0].arm}' and '{run.arm}' differ in '{key}', which `varies` does not name"
                )
