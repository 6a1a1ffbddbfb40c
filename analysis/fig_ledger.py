"""The entropy ledger of GRPO and CE-GPPO on the testbed: what each class did to the entropy,
predicted and measured.

Reads the runs of sweeps/algorithms.yaml. A ledger looks at one update in `diagnostics.every` steps,
so the numbers are of single updates, not of a whole step.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, ledger, load, style

ARMS = ["grpo", "cegppo"]
KINDS = {"predicted": "first order", "measured": "measured"}
MICRO = 1e6  # nats to 10⁻⁶ nats


def draw(results: Path) -> None:
    runs = load.metrics(results, "algorithms", ARMS)
    if ledger.entries(runs).empty:
        raise load.Missing(f"no ledger in {results / 'algorithms'}: the runs had diagnostics.every=0")
    figure, axes = plt.subplots(2, 4, figsize=(13.5, 6.0), constrained_layout=True)
    for row, arm in zip(axes, ARMS):
        mine = ledger.entries(runs[runs["arm"] == arm])
        bars(row[0], mine)
        for axis, kind in zip(row[1:3], KINDS):
            over_steps(axis, mine, kind)
        row[2].sharey(row[1])
        scatter(row[3], mine)
        row[0].set_ylabel(f"{style.look(arm)[0]}\nΔH of one update, 10⁻⁶ nats")
        print(ledger.text(runs[runs["arm"] == arm], style.look(arm)[0]), end="\n\n")
    axes[0, 0].set_title("By class: first order and measured")
    for axis, title in zip(axes[0, 1:], ("Over the run, first order", "Over the run, measured", "Whole step")):
        axis.set_title(title)
    style.legend(figure, 5, axes[0, 1])
    count = len(ledger.entries(runs)) // len(ARMS)
    style.caption(
        figure,
        f"testbed, {evolution.seeds(runs)} and {count} ledgers an algorithm; bars: mean ± standard error over seeds,"
        " pale: measured; areas: mean over seeds, not smoothed",
    )
    print(f"figure: {style.save(figure, results, 'ledger')}")


def bars(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """Mean ΔH of each class and of the momentum carried over, predicted beside measured."""
    parts = {**ledger.CLASSES, "momentum": "momentum"}
    for i, key in enumerate(parts):
        fill = style.area(key) if key in style.CLASSES else {"facecolor": "#777777"}
        for shift, kind, alpha in ((-0.2, "predicted", 1.0), (0.2, "measured", 0.55)):
            by_seed = (
                rows.groupby("seed")[f"ledger/{kind}_{key}"].mean() * MICRO
            )  # ledgers of one run are not independent
            error = by_seed.std(ddof=1) / np.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
            axis.bar(i + shift, by_seed.mean(), 0.38, yerr=error, ecolor="#333333", alpha=alpha, **fill)
    axis.set_xticks(range(len(parts)), parts.values(), fontsize=6.5)
    axis.axhline(0, color="#333333", linewidth=0.6)


def over_steps(axis: plt.Axes, rows: pd.DataFrame, kind: str) -> None:
    """Stacked areas by class, mean over seeds: what raises the entropy above zero, what lowers
    it below."""
    mean = rows.groupby("step")[[f"ledger/{kind}_{key}" for key in ledger.CLASSES]].mean() * MICRO
    for sign in (1, -1):
        floor = np.zeros(len(mean))
        for key, name in ledger.CLASSES.items():
            part = np.where(np.sign(mean[f"ledger/{kind}_{key}"]) == sign, mean[f"ledger/{kind}_{key}"], 0.0)
            axis.fill_between(mean.index, floor, floor + part, **style.area(key), label=name if sign == 1 else None)
            floor = floor + part
    axis.plot(mean.sum(axis=1), color="black", linewidth=1.4, label="sum of classes")
    axis.axhline(0, color="#333333", linewidth=0.6)
    axis.set_xlabel("step")


def scatter(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """Each ledger a point; the line is equality."""
    p, m = rows["ledger/predicted"] * MICRO, rows["dentropy/measured"] * MICRO
    axis.scatter(p, m, s=9, color="#333333", alpha=0.6)
    span = [min(p.min(), m.min()), max(p.max(), m.max())]
    axis.plot(span, span, color="#333333", linewidth=0.8)
    fit = ledger.agreement(p, m)
    axis.text(
        0.04,
        0.9,
        f"r = {fit['correlation']:.2f}, slope {fit['slope']:.2f}, R² = {fit['R2']:.2f}",
        transform=axis.transAxes,
        fontsize=8,
    )
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("first order")
    axis.set_ylabel("measured")
