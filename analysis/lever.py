"""What β would do to the entropy, from a run's levers (docs/entropy.md).

A lever is the first-order change of entropy that giving one side's gradient back would add, per
unit of β: L_low for β₁ (A < 0), L_high for β₂ (A > 0). The run itself has β⁰, which is (0, 0) for a
loss without β, and at β first order says (β − β⁰) · L a step, at once. Nothing here knows what the
policy becomes under another β: that is what first order leaves out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import evolution, ledger, load, stats
from .stats import Triple

SIDES = ("low", "high")
MATTERS = 0.03  # nats, a twentieth of the testbed's entropy: a difference within it does not matter
PREFERRED = np.array([0.5, 1.0])  # the paper's choice


@dataclass(frozen=True)
class Levers:
    """Levers of one or several runs of an arm, nats a step (logit space: units of logit step)."""

    values_U2: np.ndarray  # a row a unit, columns low and high
    unit: str  # what a row is: "seeds", or steps of one run

    def of(self, side: str) -> Triple:
        return stats.mean_over_seeds(self.values_U2[:, SIDES.index(side)])

    def sign(self, side: str) -> str:
        """`above`, `below` or `undecided`."""
        return stats.side(*self.of(side)[1:])

    def moves(self, change_2: np.ndarray) -> Triple:
        """What a change of β does a step, at once."""
        return stats.mean_over_seeds(self.values_U2 @ np.asarray(change_2, float))

    def spread(self, changes_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([P] mean, [P] half of its 95 % t interval) of `moves` for many changes of β; NaN halves
        from a single unit."""
        values_UP, n = self.values_U2 @ changes_P2.T, len(self.values_U2)
        if n < 2:
            return values_UP.mean(axis=0), np.full(len(changes_P2), np.nan)
        quantile = stats.t_quantile((1 + stats.LEVEL) / 2, n - 1)
        return values_UP.mean(axis=0), quantile * values_UP.std(axis=0, ddof=1) / np.sqrt(n)

    def over(self) -> str:
        return f"{len(self.values_U2)} {self.unit}"


def read(metrics: pd.DataFrame, prefix: str) -> Levers | None:
    """The levers `prefix`_low and _high (`ledger/lever`) or `prefix`/low (`lever`): of each seed
    the mean over its steps, or of one run a row a step. None where they are not recorded."""
    names = [f"{prefix}_{side}" if prefix == "ledger/lever" else f"{prefix}/{side}" for side in SIDES]
    if not set(names) <= set(metrics) or metrics[names].notna().sum().min() == 0:
        return None
    rows = metrics.dropna(subset=names)
    if ledger.seeds(rows) > 1:
        return Levers(rows.groupby("seed")[names].mean().to_numpy(), "seeds")
    return Levers(rows[names].to_numpy(), "looked-at steps" if prefix == "ledger/lever" else "steps")


def beta_of(folder: Path, metrics: pd.DataFrame) -> np.ndarray:
    """(β₁, β₂) of the run in `folder`: 0 where the loss has none, the mean over steps where a
    schedule moves it."""
    loss = load.settings(folder).get("loss", {})
    made = []
    for name in ("beta1", "beta2"):
        moved = metrics.get(f"knob/{name}")
        made.append(float(moved.mean()) if moved is not None and moved.notna().any() else loss.get(name, 0.0))
    return np.array(made, float)


def neutral(levers: Levers, solve: str = "high") -> Triple | None:
    """(slope, low, high) of the line of β along which entropy keeps the run's course, solved for
    the β of the side `solve`: dβ₂/dβ₁ = −L_low / L_high. Fieller's interval at 95 %: the slopes s
    at which the interval of L_low + s L_high holds 0. None where those are not one interval, the
    sign of the lever below the line being undecided."""
    values_U2 = levers.values_U2 if solve == "high" else levers.values_U2[:, ::-1]
    n, (a, b) = len(values_U2), values_U2.mean(axis=0)
    if n < 2:
        return None
    covariance = np.cov(*values_U2.T) * stats.t_quantile((1 + stats.LEVEL) / 2, n - 1) ** 2 / n
    # (a + s b)² = V_a + 2 s V_ab + s² V_b
    square, linear, constant = b**2 - covariance[1, 1], 2 * (a * b - covariance[0, 1]), a**2 - covariance[0, 0]
    if square <= 0:
        return None
    root = np.sqrt(max(linear**2 - 4 * square * constant, 0.0))
    return float(-a / b), float((-linear - root) / (2 * square)), float((-linear + root) / (2 * square))


def recommend(levers: Levers, own_2: np.ndarray, target: float) -> tuple[np.ndarray | None, list[str]]:
    """(β, the sides it rests on): the β in [0, 1]² nearest to (0.5, 1) with (β − own) · L =
    `target` (nats a step, at once). A side whose sign is undecided is left where the run has it.
    None where no β reaches the target, or no side is decided."""
    decided = [side for side in SIDES if levers.sign(side) != "undecided"]
    lever_2 = np.array([levers.of(side)[0] if side in decided else 0.0 for side in SIDES])
    if not decided:
        return None, []
    total = target + lever_2 @ own_2  # β · L on the target line
    if len(decided) == 1:
        which = SIDES.index(decided[0])
        found = own_2.copy()
        found[which] = total / lever_2[which]
        return (found if 0 <= found[which] <= 1 else None), decided
    points = []
    for axis in (0, 1):  # where the line crosses the square's edges
        for edge in (0.0, 1.0):
            other = (total - edge * lever_2[axis]) / lever_2[1 - axis]
            if -1e-12 <= other <= 1 + 1e-12:
                point = np.full(2, edge)
                point[1 - axis] = min(max(other, 0.0), 1.0)
                points.append(point)
    if not points:
        return None, decided
    start = min(points, key=tuple)
    end = max(points, key=lambda p: float((p - start) @ (p - start)))
    along = end - start
    length = float(along @ along)
    share = float((PREFERRED - start) @ along) / length if length > 0 else 0.0
    return start + min(max(share, 0.0), 1.0) * along, decided


def entropies(runs: pd.DataFrame) -> pd.Series:
    """The policy's entropy at a run's end, by seed."""
    return evolution.ends(runs, "entropy/mean")[1]


def measured(arm: pd.DataFrame, reference: pd.DataFrame) -> Triple | None:
    """The paired difference of entropy at the end, over the seeds that both have to the same
    step; None without one."""
    last = min(arm["step"].max(), reference["step"].max())
    whole = [rows[rows.groupby("seed")["step"].transform("max") >= last] for rows in (arm, reference)]
    difference = stats.paired(*(entropies(rows[rows["step"] <= last]) for rows in whole))
    return stats.mean_over_seeds(difference) if len(difference) else None


@dataclass(frozen=True)
class Foretold:
    """One arm with a β, foretold from the runs of its sweep that have none, and measured."""

    sweep: str
    reference: str
    arm: str
    beta_2: np.ndarray
    predicted: Triple  # eventual, nats at the end of the run
    measured: Triple
    seeds: int

    def verdict(self) -> str:
        signs = [stats.side(*triple[1:]) for triple in (self.predicted, self.measured)]
        same = "agree" if self.predicted[0] * self.measured[0] > 0 else "differ"
        return f"signs {same}" if "undecided" not in signs else f"undecided (the means' signs {same})"


def foretold(results: Path) -> list[Foretold]:
    """Every arm of the loss `cegppo` that stands in a sweep under `results` beside an arm of
    `ppo_clip` with levers and the same configuration otherwise. A damaged run is left out, with a
    line on standard error."""
    made: list[Foretold] = []
    for sweep in load.sweeps(results):
        arms = _intact(sweep)
        first = {arm: load.settings(folders[0]) for arm, folders in arms.items()}
        names = {arm: settings.get("loss", {}).get("name") for arm, settings in first.items()}
        references = [arm for arm, name in names.items() if name == "ppo_clip"]
        references = [arm for arm in references if read(load.run(arms[arm][0]), "ledger/lever") is not None]
        pairs = [(r, arm) for r in references for arm in names if names[arm] == "cegppo" and same(first[arm], first[r])]
        frame = {arm: _of_arm(arms[arm]) for arm in dict.fromkeys(arm for pair in pairs for arm in pair)}
        for reference, arm in pairs:
            theirs, ours = frame[arm], frame[reference]
            levers, found = read(ours, "ledger/lever"), measured(theirs, ours)
            if found is None or levers is None:
                continue
            gain = ledger.steps_of(ours) / (1 - ledger.momentum(arms[reference][0]))
            beta_2 = beta_of(arms[arm][0], theirs[theirs["seed"] == theirs["seed"].min()])
            mean, low, high = levers.moves(beta_2)
            predicted = (gain * mean, gain * low, gain * high)
            common = len(set(theirs["seed"]) & set(ours["seed"]))
            made.append(Foretold(str(sweep.relative_to(results)), reference, arm, beta_2, predicted, found, common))
    return made


def _intact(sweep: Path) -> dict[str, list[Path]]:
    """The runs of `sweep` by arm, those whose record can be read; a line for each other."""
    arms: dict[str, list[Path]] = {}
    try:
        folders = load.run_folders(sweep)
    except load.Missing as error:
        folders = []
        print(f"left out, damaged: {error}", file=sys.stderr)
    for folder in folders:
        try:
            with load.undamaged(folder):
                load.run(folder), load.settings(folder)
        except load.Missing as error:
            print(f"left out, damaged: {error}", file=sys.stderr)
        else:
            arms.setdefault(folder.parent.name, []).append(folder)
    return arms


def _of_arm(folders: list[Path]) -> pd.DataFrame:
    """The steps of an arm's runs, with their arm and seed."""
    frames = [load.run(f).assign(arm=f.parent.name, seed=int(f.name.removeprefix("seed"))) for f in folders]
    return pd.concat([frame for frame in frames if not frame.empty] or frames, ignore_index=True)


def same(one: dict, other: dict) -> bool:
    """Whether two configurations differ in nothing but the loss's β, in names and in what is
    looked at, which changes no run. A key that only one of them has came with a later version,
    whose default is what was done before; only a controller is never taken for its default."""
    names = ("experiment", "arm", "seed", "method", "results", "run_dir", "report", "wandb", "tensorboard")
    apart = ("diagnostics", "controller", "loss")
    bare = lambda settings: {k: v for k, v in settings.items() if k not in (*names, *apart)}
    clip = lambda settings: {k: v for k, v in settings["loss"].items() if k not in ("name", "beta1", "beta2")}
    control = lambda settings: settings.get("controller", {"name": "none"})
    alike = _agree(bare(one), bare(other)) and _agree(clip(one), clip(other))
    return alike and control(one) == control(other)


def _agree(one: Any, other: Any) -> bool:
    """Whether two nested values say the same of every key that both have; lists item by item."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)
