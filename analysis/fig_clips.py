"""Which tokens the clip cuts: shares by side and class over time, and how probable they are. Reads
the runs of sweeps/algorithms.yaml.

The side goes with the advantage's sign: NA&HP and NA&LP leave the interval on the low side, PA&HP
and PA&LP on the high side.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, ledger, load, style

ARMS = ["grpo", "clip_higher", "cispo", "gspo", "cegppo", "cegppo_0.75"]
SIDES = {"low": ("A < 0", ["na_hp", "na_lp"]), "high": ("A > 0", ["pa_hp", "pa_lp"])}


def draw(results: Path) -> None:
    runs = load.metrics(results, "algorithms", ARMS)
    figure, axes = plt.subplots(2, 3, figsize=(11.4, 6.2), sharex=True, constrained_layout=True)
    for row, (side, (sign, classes)) in zip(axes, SIDES.items()):
        for axis, key in zip(row, classes):
            evolution.over_steps(axis, runs, ARMS, f"clip/{key}", 100)
            axis.set(title=f"Outside, {side} side: {ledger.CLASSES[key]}", ylabel="% of all tokens", ylim=(0, None))
        probabilities(row[2], runs[runs["arm"] == "grpo"], side)
        row[2].set_title(f"GRPO: probability of tokens outside, {side} side ({sign})", fontsize=8.5)
    for axis in axes[1]:
        axis.set_xlabel("step")
    style.legend(figure, len(ARMS), axes[0, 0])
    style.caption(
        figure,
        f"{evolution.caption(runs)}; moving average over {evolution.WINDOW} steps; bounds: the loss's own for tokens,"
        " else 0.2; right: 10 %, 50 % and 90 % quantile, mean over seeds",
    )
    print(f"figure: {style.save(figure, results, 'clips')}")


def probabilities(axis: plt.Axes, runs: pd.DataFrame, side: str) -> None:
    """Quantiles of the probability at the update of the tokens outside; the line at 0.5 parts
    high from low."""
    low, middle, high = (evolution.smooth(runs, f"clip/prob_{side}_{q}").mean(axis=1) for q in ("q10", "q50", "q90"))
    line = style.look("grpo")[1]
    axis.fill_between(low.index, low, high, color=line["color"], alpha=0.2, linewidth=0, label="10 to 90 %")
    axis.plot(middle, **line, label="median")
    axis.axhline(0.5, color="#333333", linestyle=(0, (4, 3)), linewidth=0.9)
    axis.set(ylabel="probability at the update", ylim=(0, 1))
    axis.legend(fontsize=7, loc="upper right", ncol=2)
