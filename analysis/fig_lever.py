"""The lever: what (β₁, β₂) would do to the entropy, foretold from GRPO's runs alone, and what runs
with a β did.

Reads the runs of sweeps/ledger_20.yaml, and of sweeps/beta_grid.yaml where they are. Left in
parameter space, in nats over the run; right in logit space, which has signs and ratios but no size.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from . import advise, evolution, fig_ledger, ledger, lever, load, numbers, style
from .lever import Levers
from .stats import Triple

REFERENCE, ARM = fig_ledger.ARMS
BLOCKS = ("ledger_20 levers",)
# The paper's grid (its Figure 3): arms of beta_grid, against its beta_0_0 (GRPO's gradient).
GRID = ["beta_1_0.5", "beta_1_0.75", "beta_0.75_1", "beta_0.5_1", "beta_0.25_1", "beta_0_1", "beta_1_1"]
ZERO = "beta_0_0"


def draw(results: Path) -> None:
    runs = load.metrics(results, fig_ledger.SWEEP, fig_ledger.ARMS)
    parameter, logit, gain = _levers(results)
    found = measured(results)
    figure, axes = plt.subplots(1, 2, figsize=(12.6, 5.6), constrained_layout=True, width_ratios=(1.12, 1))
    largest = max(abs(triple[0]) for triple, _ in found.values())
    plane(axes[0], parameter, gain * ledger.steps_of(runs), "foretold change of entropy over the run, nats", largest)
    plane(axes[1], logit, 1.0, "a step, units of logit step")
    points(axes[0], found)
    points(axes[1], dict.fromkeys(found))
    axes[0].set_title("Parameter space; points: measured in runs, nats")
    axes[1].set_title("Logit space")
    handles, labels = axes[1].get_legend_handles_labels()
    hatch = plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#555555", hatch="..", linewidth=0)
    figure.legend(
        [*handles, hatch], [*labels, "sign undecided (95 % t interval over seeds holds 0)"],
        loc="outside upper center", ncol=3, fontsize=8, handlelength=3.2,
    )  # fmt: skip
    style.caption(
        figure,
        f"testbed; colour: from {evolution.seeds(runs[runs['arm'] == REFERENCE])} of {style.look(REFERENCE)[0]} alone,"
        f" sweep {fig_ledger.SWEEP}, first order at once × 1/(1 − AdamW's β₁) × steps; points: the paper's grid,"
        f" policy entropy over the last {evolution.WINDOW} steps\nless that of β = (0, 0), paired by seed, mean and"
        " 95 % t interval; " + "; ".join(_sources(found)),
    )
    print("\n".join(_lines(parameter, logit)))
    for (b1, b2), (triple, source) in found.items():
        print(f"measured at ({b1:g}, {b2:g}): {evolution.show(triple, signed=True)} ({source})")
    print(f"figure: {style.save(figure, results, 'lever')}")


def _sources(found: dict[tuple[float, float], tuple[Triple, str]]) -> list[str]:
    """Which β are of which runs."""
    by_source: dict[str, list[str]] = {}
    for (b1, b2), (_, source) in found.items():
        by_source.setdefault(source, []).append(f"({b1:g}, {b2:g})")
    return [f"{' '.join(betas)}: {source}" for source, betas in by_source.items()]


def _levers(results: Path) -> tuple[Levers, Levers, float]:
    """Levers of the arm without β in parameter and in logit space, and what makes an effect at
    once the eventual one."""
    runs = load.metrics(results, fig_ledger.SWEEP, [REFERENCE])
    parameter, logit = lever.read(runs, "ledger/lever"), lever.read(runs, "lever")
    if parameter is None or logit is None:
        raise load.Missing(f"no levers in the runs of {REFERENCE} in {results / fig_ledger.SWEEP}")
    return parameter, logit, 1 / (1 - fig_ledger.momentum(results, REFERENCE))


def measured(results: Path) -> dict[tuple[float, float], tuple[Triple, str]]:
    """By β: the paired difference of entropy, and of what runs. Where two sweeps have a β, the
    one with more seeds."""
    pairs = [(fig_ledger.SWEEP, ARM, REFERENCE)]
    if load.run_folders(results / "beta_grid"):
        pairs += [("beta_grid", arm, ZERO) for arm in GRID]
    made: dict[tuple[float, float], tuple[Triple, str]] = {}
    most: dict[tuple[float, float], int] = {}
    for sweep, arm, reference in pairs:
        runs = load.metrics(results, sweep, [arm, reference])
        ours, theirs = (runs[runs["arm"] == name] for name in (reference, arm))
        folder = next(f for f in load.run_folders(results / sweep) if f.parent.name == arm)
        beta1, beta2 = lever.beta_of(folder, theirs)
        beta = (float(beta1), float(beta2))
        common = len(set(ours["seed"]) & set(theirs["seed"]))
        triple = lever.measured(theirs, ours)
        if triple is not None and common > most.get(beta, 0):
            made[beta], most[beta] = (triple, f"{sweep}, {common} seeds"), common
    return made


def plane(axis: plt.Axes, levers: Levers, gain: float, label: str, at_least: float = 0.0) -> None:
    """What each β in the square does, a colour; dotted where the sign is undecided; and the line
    along which entropy keeps its course."""
    ticks = np.linspace(0, 1, 201)
    beta_P2 = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    mean, half = (value_P.reshape(201, 201) * gain for value_P in levers.spread(beta_P2))
    largest = max(np.abs(mean).max(), at_least)
    image = axis.imshow(
        mean, origin="lower", extent=(0, 1, 0, 1), cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto",
        interpolation="bilinear",
    )  # fmt: skip
    undecided = ~(np.abs(mean) > half)
    axis.contourf(ticks, ticks, undecided.astype(float), levels=[0.5, 1.5], colors="none", hatches=[".."])
    axis.contour(ticks, ticks, mean, levels=[0.0], colors="black", linewidths=1.8)
    axis.plot([], [], color="black", linewidth=1.8, label="entropy keeps GRPO's course")
    axis.set(xlabel="β1: low side, A < 0", ylabel="β2: high side, A > 0", xlim=(-0.1, 1.1), ylim=(-0.04, 1.11))
    axis.set_xticks(np.linspace(0, 1, 5))
    axis.set_yticks(np.linspace(0, 1, 5))
    axis.grid(False)
    axis.figure.colorbar(image, ax=axis, label=label)


def points(axis: plt.Axes, found: dict) -> None:
    """The paper's grid, each with what was measured there, where it is known."""
    axis.plot(0, 0, marker="s", color="black", markersize=6, clip_on=False)
    axis.annotate("GRPO", (0, 0), (7, 5), textcoords="offset points", fontsize=7.5, bbox=_plate())
    for (b1, b2), known in found.items():
        own = (b1, b2) == (0.5, 1.0)
        axis.plot(
            b1, b2, marker="D" if own else "o", color="white", markeredgecolor="black", markersize=7, clip_on=False,
            linestyle="none", label="the paper's grid of β" if (b1, b2) == (1.0, 1.0) else None,
        )  # fmt: skip
        if known is None:
            continue
        mean, low, high = known[0]
        text = f"{mean:+.3f}" + ("" if np.isnan(low) else f"\n[{low:+.2f}, {high:+.2f}]")
        place, anchor = ((-9, 0), ("right", "center")) if b2 < 1 else ((0, 7), ("center", "bottom"))
        axis.annotate(
            text, (b1, b2), place, textcoords="offset points", ha=anchor[0], va=anchor[1], fontsize=7, bbox=_plate()
        )


def _plate() -> dict:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2}


def _lines(parameter: Levers, logit: Levers) -> list[str]:
    own = np.zeros(2)
    return [*advise.lines_of("parameter space", parameter, own), *advise.lines_of("logit space", logit, own)]


def blocks(results: Path) -> dict[str, str]:
    """The levers, the lines and what was measured, for docs/entropy.md."""
    parameter, logit, gain = _levers(results)
    steps = ledger.steps_of(load.metrics(results, fig_ledger.SWEEP, [REFERENCE]))
    cells = advise.levers(parameter, logit, gain, steps)
    said = [f"* {line}" for line in _lines(parameter, logit)]
    show = lambda triple: ledger.show(triple, "{:+.3f}")
    for row in lever.foretold(results):
        if row.sweep == fig_ledger.SWEEP:
            said.append(
                f"* {row.arm} ({row.beta_2[0]:g}, {row.beta_2[1]:g}) less {row.reference}, entropy at the end: foretold"
                f" {show(row.predicted)}, measured {show(row.measured)} nats ({row.seeds} seeds): {row.verdict()}"
            )
    return {"ledger_20 levers": numbers.markdown(cells) + "\n\n" + "\n".join(said)}
