"""The map: in which regimes β decides the entropy, foretold from GRPO's runs alone and measured.

Reads the runs of sweeps/map/: the same arms in every regime of experiments/regimes/. A prediction
is (β₁, β₂) · L × steps / (1 − β₁ of AdamW), L the levers of the regime's GRPO runs
(docs/entropy.md); a measurement the difference to GRPO, paired by seed.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, ledger, lever, load, numbers, stats, style
from .lever import Foretold
from .stats import Triple

BLOCKS = ("map", "map agreement")
FEW = 5  # regimes, below which no correlation is quoted
FOLDER, REFERENCE, MAIN, CLIP_HIGHER = "map", "grpo", "cegppo", "clip_higher"
SIDES = {"high": ("β = (0, 1)", "#A9C934", "^"), "low": ("β = (1, 0)", "#B36BC9", "v")}


@dataclass(frozen=True)
class Regime:
    """What came of the arms in one regime, against GRPO."""

    name: str
    arms: dict[str, Foretold]  # by arm
    clip_higher: Triple | None  # difference of entropy; no lever foretells it
    accuracy: dict[str, Triple]  # difference, by arm
    start: float  # GRPO's entropy, nats
    end: float
    clipped: dict[str, float]  # GRPO's shares of tokens clipped "low" and "high", over the run
    true_reward: bool  # no coin in it

    def says(self) -> str:
        """What β does here, in words that the intervals allow."""
        measured = self.arms[MAIN].measured
        side = stats.side(*measured[1:])
        if stats.band(*measured[1:], lever.MATTERS) == "within":
            return "does not matter" if side == "undecided" else f"{'raises' if side == 'above' else 'lowers'} a little"
        return {"above": "raises entropy", "below": "lowers entropy"}.get(side, "undecided")


def read(results: Path) -> list[Regime]:
    """The regimes that have GRPO and CE-GPPO, the largest foretold rise first. Raises Missing."""
    root = results / FOLDER
    found: dict[str, dict[str, Foretold]] = {}
    for row in lever.foretold(root):
        if row.reference == REFERENCE:
            found.setdefault(row.sweep, {})[row.arm] = row
    regimes = [_regime(root, name, arms) for name, arms in found.items() if MAIN in arms]
    if not regimes:
        raise load.Missing(f"no regime with runs of {REFERENCE} and {MAIN} in {root} (sweeps/map/)")
    return sorted(regimes, key=lambda regime: -regime.arms[MAIN].predicted[0])


def _regime(root: Path, name: str, arms: dict[str, Foretold]) -> Regime:
    there = {folder.parent.name for folder in load.run_folders(root / name)}
    known = [REFERENCE, *arms, *({CLIP_HIGHER} & there)]
    runs, tests = load.metrics(root, name, known), load.evaluations(root, name, known)
    of = {arm: runs[runs["arm"] == arm] for arm in known}
    last = tests["step"].max()
    score = {arm: evolution.accuracy_at(tests[tests["arm"] == arm], last) for arm in known}
    start, end = evolution.ends(of[REFERENCE], "entropy/mean")
    settings = load.settings(load.run_folders(root / name)[0])
    return Regime(
        name,
        arms,
        lever.measured(of[CLIP_HIGHER], of[REFERENCE]) if CLIP_HIGHER in of else None,
        {arm: stats.mean_over_seeds(stats.paired(score[arm], score[REFERENCE])) for arm in known[1:]},
        float(start.mean()),
        float(end.mean()),
        {side: float(of[REFERENCE][f"clip/{side}"].mean()) for side in ("low", "high")},
        settings.get("reward", "task") == "task" and settings.get("reward_signal", 1.0) == 1,
    )


def draw(results: Path) -> None:
    regimes = read(results)
    height = 1.6 + 0.5 * len(regimes)
    figure, axes = plt.subplots(1, 3, figsize=(13.2, height), constrained_layout=True, width_ratios=(1.25, 0.6, 1))
    entropy(axes[0], regimes)
    accuracy(axes[1], regimes)
    against(axes[2], regimes)
    style.legend(figure, 6, axes[0])
    steps = _steps(results, regimes)
    style.caption(
        figure,
        f"testbed, {len(regimes)} regimes (docs/regimes.md), {_seeds(regimes)} an arm, {steps} steps; entropy of the"
        f" last {evolution.WINDOW} steps and accuracy at the end less GRPO's, paired by seed, mean and 95 % t interval"
        ";\nforetold: from GRPO's runs alone, first order; regimes in that order, the largest rise on top; grey band:"
        f" ±{lever.MATTERS} nats",
    )
    print(cells(regimes).to_string(index=False), "", agreements(regimes).to_string(index=False), sep="\n")
    print(f"figure: {style.save(figure, results, 'map')}")


def entropy(axis: plt.Axes, regimes: list[Regime]) -> None:
    """Differences of entropy, a regime a row, and what was foretold."""
    y = np.arange(len(regimes))[::-1].astype(float)
    axis.axvspan(-lever.MATTERS, lever.MATTERS, color="#000000", alpha=0.06, linewidth=0)
    axis.axvline(0, color="black", linewidth=1)
    kinds = [(MAIN, "CE-GPPO (0.5, 1)", style.look(MAIN)[1]["color"], "o")]
    kinds += [(arm, *look) for arm, look in SIDES.items()]
    kinds += [(CLIP_HIGHER, style.look(CLIP_HIGHER)[0], style.look(CLIP_HIGHER)[1]["color"], "s")]
    for (arm, label, colour, marker), shift in zip(kinds, (0.19, 0.02, -0.15, -0.32)):
        for place, regime in zip(y, regimes):
            measured = regime.clip_higher if arm == CLIP_HIGHER else getattr(regime.arms.get(arm), "measured", None)
            if measured is not None:
                bar(axis, measured, place + shift, colour, marker, 5.5 if arm == MAIN else 4, label)
    for place, regime in zip(y, regimes):
        bar(axis, regime.arms[MAIN].predicted, place + 0.36, "#777777", "D", 4, "foretold for (0.5, 1)", open_=True)
    axis.set_yticks(y, [f"{r.name}\n{r.start:.2f} → {r.end:.2f}" for r in regimes], fontsize=8)
    axis.set_ylim(-0.6, len(regimes) - 0.3)
    axis.set_xscale("symlog", linthresh=0.1, linscale=1.2)
    ticks = [-1, -0.3, -0.1, -0.05, 0, 0.05, 0.1, 0.3, 1]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=7.5)
    axis.set_xticks([], minor=True)
    axis.set(title="Entropy less GRPO's, nats (GRPO: start → end at the left)")


def bar(
    axis: plt.Axes,
    triple: Triple,
    y: float,
    colour: str,
    marker: str,
    size: float,
    label: str | None = None,
    open_: bool = False,
) -> None:
    """A mean with its interval, lying."""
    mean, low, high = triple
    if not np.isnan(low):
        axis.plot([low, high], [y, y], color=colour, linewidth=1.3, solid_capstyle="butt")
    axis.plot(
        mean, y, marker=marker, color=colour, markersize=size, markerfacecolor="white" if open_ else colour,
        linestyle="none", label=label,
    )  # fmt: skip


def accuracy(axis: plt.Axes, regimes: list[Regime]) -> None:
    """Differences of accuracy of CE-GPPO (0.5, 1), in the same rows."""
    axis.axvline(0, color="black", linewidth=1)
    for place, regime in zip(np.arange(len(regimes))[::-1], regimes):
        bar(axis, regime.accuracy[MAIN], float(place) + 0.14, style.look(MAIN)[1]["color"], "o", 6)
    axis.set_yticks(np.arange(len(regimes)), [""] * len(regimes))
    axis.set_ylim(-0.6, len(regimes) - 0.3)
    axis.set_title("Accuracy of (0.5, 1) less GRPO's")


def against(axis: plt.Axes, regimes: list[Regime]) -> None:
    """Measured against foretold."""
    for arm, (label, colour, marker) in {MAIN: ("", style.look(MAIN)[1]["color"], "o"), **SIDES}.items():
        for regime in regimes:
            if arm not in regime.arms:
                continue
            row = regime.arms[arm]
            (x, x_low, x_high), (y, y_low, y_high) = row.predicted, row.measured
            axis.plot([x_low, x_high], [y, y], color=colour, linewidth=0.8, alpha=0.6)
            axis.plot([x, x], [y_low, y_high], color=colour, linewidth=0.8, alpha=0.6)
            axis.plot(x, y, marker=marker, color=colour, markersize=5, linestyle="none", label=label or None)
            if arm == MAIN and abs(y) > lever.MATTERS:
                place = (-6, 5) if regimes.index(regime) % 2 else (-6, -10)
                axis.annotate(
                    regime.name, (x, y), place, textcoords="offset points", fontsize=6.5, color="#444444", ha="right"
                )
    limits = (-1.5, 1.5)
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("symlog", linthresh=0.1, linscale=1.2)
    axis.plot(limits, limits, color="black", linewidth=0.8, linestyle=(0, (4, 3)))
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axvline(0, color="black", linewidth=0.6)
    ticks = [-1, -0.3, -0.1, 0, 0.1, 0.3, 1]
    for put in (axis.set_xticks, axis.set_yticks):
        put(ticks, [f"{t:g}" for t in ticks], fontsize=7.5)
        put([], minor=True)
    axis.set(xlim=limits, ylim=limits, xlabel="foretold, nats", ylabel="measured, nats")
    of = points(regimes, MAIN)
    axis.set_title(f"Foretold and measured; (0.5, 1): ρ = {correlations(of['lever'], of['measured']).split()[0]}")


def points(regimes: list[Regime], arm: str) -> pd.DataFrame:
    """A row per regime that has `arm`: its measured difference, and the two things that foretell
    it, the lever and the plain share of tokens that GRPO clips on the side that the arm opens."""
    side, sign = ("low", -1) if arm == "low" else ("high", 1)
    rows = [(regime, regime.arms[arm]) for regime in regimes if arm in regime.arms]
    return pd.DataFrame(
        {
            "lever": [row.predicted[0] for _, row in rows],
            "clip share": [sign * regime.clipped[side] for regime, _ in rows],
            "measured": [row.measured[0] for _, row in rows],
            "side": [stats.side(*row.measured[1:]) for _, row in rows],
            "true_reward": [regime.true_reward for regime, _ in rows],
        }
    )


def correlations(foretold: pd.Series, measured: pd.Series) -> str:
    """Spearman's ρ, and Pearson's r in brackets, which one far point decides."""
    by_rank = ledger.agreement(foretold.rank(), measured.rank())["correlation"]
    return f"{by_rank:+.2f} ({ledger.agreement(foretold, measured)['correlation']:+.2f})"


def agreements(regimes: list[Regime]) -> pd.DataFrame:
    """How far the levers, and the plain clip share, order what was measured: all regimes, and those
    with a true reward alone. Fewer than FEW regimes make no row."""
    made = []
    for arm, label in {MAIN: "(0.5, 1)", "high": "(0, 1)", "low": "(1, 0)"}.items():
        every = points(regimes, arm)
        for which, of in {"all": every, "true reward": every[every["true_reward"].astype(bool)]}.items():
            if len(of) < FEW:
                continue
            decided = of[of["side"] != "undecided"]
            right = int((np.sign(decided["lever"]) == np.sign(decided["measured"])).sum())
            row = {"β": label, "settings": f"{which}, {len(of)}"}
            row |= {name: correlations(of[name], of["measured"]) for name in ("lever", "clip share")}
            made.append(row | {"decided, sign right": f"{len(decided)}, {right}"})
    return pd.DataFrame(made)


def cells(regimes: list[Regime]) -> pd.DataFrame:
    """A row a regime."""
    show = lambda triple: "" if triple is None else ledger.show(triple, "{:+.3f}")
    rows = []
    for regime in regimes:
        main = regime.arms[MAIN]
        measured = {arm: row.measured for arm, row in regime.arms.items()}
        rows.append(
            {
                "regime": regime.name,
                "GRPO": f"{regime.start:.2f} → {regime.end:.2f}",
                "foretold for (0.5, 1)": show(main.predicted),
                "(0.5, 1)": show(main.measured),
                "β (0.5, 1)": regime.says(),
                "(0, 1)": show(measured.get("high")),
                "(1, 0)": show(measured.get("low")),
                "clip-higher": show(regime.clip_higher),
                "accuracy of (0.5, 1)": show(regime.accuracy[MAIN]),
                "seeds": main.seeds,
            }
        )
    made = pd.DataFrame(rows)
    return made.drop(columns=[name for name in made if (made[name] == "").all()])


def blocks(results: Path) -> dict[str, str]:
    """The map's table, and how far the levers foretold it."""
    regimes = read(results)
    agreed = agreements(regimes)
    return {
        "map": numbers.markdown(cells(regimes)),
        "map agreement": numbers.NOTHING if agreed.empty else numbers.markdown(agreed),
    }


def _seeds(regimes: list[Regime]) -> str:
    counts = sorted({row.seeds for regime in regimes for row in regime.arms.values()})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _steps(results: Path, regimes: list[Regime]) -> str:
    counts = {int(load.metrics(results / FOLDER, regime.name, [REFERENCE])["step"].max()) for regime in regimes}
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
