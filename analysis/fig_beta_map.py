"""Final entropy and accuracy over (β1, β2). Reads the runs of sweeps/beta_grid.yaml and, for (1,
0), sweeps/one_side.yaml.

A cell has the mean over seeds and its 95 % t interval; a pair that no sweep runs stays empty.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, load, stats, style

GRID = ["beta_0_0", "beta_0_1", "beta_0.25_1", "beta_0.5_1", "beta_0.75_1", "beta_1_0.5", "beta_1_0.75", "beta_1_1"]


def draw(results: Path) -> None:
    runs, tests = (
        pd.concat(
            [read(results, "beta_grid", GRID), read(results, "one_side", ["low"]).replace({"arm": {"low": "beta_1_0"}})]
        )
        for read in (load.metrics, load.evaluations)
    )
    last = tests["step"].max()
    by_arm = lambda frame, measure: {arm: stats.mean_over_seeds(measure(rows)) for arm, rows in frame.groupby("arm")}
    entropy = by_arm(runs, lambda rows: evolution.ends(rows, "entropy/mean")[1])
    accuracy = by_arm(tests, lambda rows: evolution.accuracy_at(rows, last))
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.6), constrained_layout=True)
    heat(axes[0], entropy, f"Entropy, last {evolution.WINDOW} steps, nats")
    heat(axes[1], accuracy, f"Accuracy, step {last}, avg@{load.samples(tests)}")
    style.caption(
        figure,
        f"testbed, {evolution.seeds(runs)} a cell: mean and 95 % t interval; empty: not run; (0, 0) has GRPO's"
        " gradient",
    )
    for name, cells in (("entropy", entropy), ("accuracy", accuracy)):
        print(name, *(f"{style.look(arm)[0]} {evolution.show(cells[arm])}" for arm in sorted(cells)), sep="\n  ")
    print(f"\nfigure: {style.save(figure, results, 'beta_map')}")


def heat(axis: plt.Axes, cells: dict[str, tuple[float, float, float]], title: str) -> None:
    """A cell a pair, darker the lower the value, so that it reads in grey."""
    where = {arm: tuple(map(float, arm.split("_")[1:])) for arm in cells}
    beta1, beta2 = (sorted({pair[i] for pair in where.values()}) for i in (0, 1))
    values = np.full((len(beta2), len(beta1)), np.nan)
    for arm, pair in where.items():
        values[beta2.index(pair[1]), beta1.index(pair[0])] = cells[arm][0]
    image = axis.imshow(values, origin="lower", cmap="cividis", aspect="auto")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for arm, pair in where.items():
        mean, low, high = cells[arm]
        colour = "white" if mean < middle else "black"
        place = (beta1.index(pair[0]), beta2.index(pair[1]))
        axis.text(*place, f"{mean:.3f}\n[{low:.3f},\n{high:.3f}]", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(beta1)), [f"{b:g}" for b in beta1])
    axis.set_yticks(range(len(beta2)), [f"{b:g}" for b in beta2])
    axis.set(title=title, xlabel="β1: low side, A < 0", ylabel="β2: high side, A > 0")
    axis.grid(False)
    axis.figure.colorbar(image, ax=axis)
