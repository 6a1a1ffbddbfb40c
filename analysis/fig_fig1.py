"""The paper's Figure 1 on the testbed: where the clip cuts, and what becomes of the entropy without
PA&LP or without NA&LP.

Left: each token of one recorded step of GRPO, its importance ratio against its probability, in the
four classes. Then the entropy when the gradient outside the clip is returned on one side, on both
or on neither, with the task's rewards and with random ones. Reads the token record of
results/algorithms/grpo/seed0 and the runs of sweeps/one_side.yaml and sweeps/one_side_random.yaml.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, ledger, load, style

# Arms of the sweep and the β that gives them their look; cutting a side is what makes an algorithm
# lack that side's rare tokens.
ARMS = {
    "none": ("beta_0_0", "lacks both: β = (0, 0)"),
    "low": ("beta_1_0", "lacks PA&LP: β = (1, 0)"),
    "high": ("beta_0_1", "lacks NA&LP: β = (0, 1)"),
    "both": ("beta_1_1", "lacks neither: β = (1, 1)"),
}
BLOCKS = ("one_side_random",)
MARKERS = {"pa_hp": "o", "pa_lp": "o", "na_hp": "^", "na_lp": "^"}


def draw(results: Path) -> None:
    run = results / "algorithms" / "grpo" / "seed0"
    figure, (ratios, real, random) = plt.subplots(
        1, 3, figsize=(12.2, 4.0), constrained_layout=True, width_ratios=(1.25, 1, 1)
    )
    record = load.tokens(run)
    scatter(ratios, record, load.setting(run, "loss.eps_low"), load.setting(run, "loss.eps_high"))
    captions = []
    for axis, experiment, title in (
        (real, "one_side", "Entropy, task rewards"),
        (random, "one_side_random", "Entropy, random rewards"),
    ):
        runs = load.metrics(results, experiment, list(ARMS))
        captions.append(evolution.caption(runs))
        for arm, (look, label) in ARMS.items():
            evolution.curve(axis, evolution.smooth(runs[runs["arm"] == arm], "entropy/mean"), look, label=label)
        axis.set(title=title, xlabel="step", ylabel="nats per token")
        axis.set_ylim(
            bottom=max(0.0, axis.get_ylim()[0])
        )  # an interval of five seeds may reach below what an entropy can be
    style.legend(figure, 4, real)
    shown = (record["class"] != "none").sum()
    style.caption(
        figure,
        f"left: GRPO, seed 0, step {record['step'].iloc[0]}, {shown:,} tokens with A ≠ 0; dashed: p = 0.5, ratio 1 and"
        f" the clip\nmiddle and right: {' / '.join(dict.fromkeys(captions))}; moving average over {evolution.WINDOW}"
        " steps",
    )
    print(record.groupby(["class", "side"]).size().unstack(fill_value=0).to_string())
    print(f"\nfigure: {style.save(figure, results, 'fig1')}")


def scatter(axis: plt.Axes, record: pd.DataFrame, eps_low: float, eps_high: float) -> None:
    """Ratio against probability, a token a mark; the labels count how many of a class lie
    outside the clip."""
    for key, name in ledger.CLASSES.items():
        mine = record[record["class"] == key]
        outside = (mine["side"] != "inside").sum()
        colour = style.CLASSES[key]["facecolor"]
        axis.scatter(
            mine["prob"], mine["ratio"], s=9, marker=MARKERS[key], color=colour, edgecolor="#333333", linewidth=0.2,
            rasterized=True,
            label=f"{name}: {outside} of {len(mine)} outside",
        )  # fmt: skip
    for height in (1 - eps_low, 1, 1 + eps_high):
        axis.axhline(height, color="#333333", linestyle=(0, (4, 3)), linewidth=0.9)
    axis.axvline(0.5, color="#333333", linestyle=(0, (4, 3)), linewidth=0.9)
    axis.set_yscale("log")
    ticks = [0.1, 0.25, 0.5, 1 - eps_low, 1, 1 + eps_high, 2, 4, 10]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    low, high = record["ratio"].min(), record["ratio"].max()
    axis.set(
        title="Importance ratio and probability", xlabel="token probability", ylabel="π / π_old", xlim=(-0.02, 1.02)
    )
    axis.set_ylim(low / 1.15, high * (high / low) ** 0.35)  # room for the legend
    axis.legend(
        fontsize=7,
        ncol=2,
        loc="upper center",
        columnspacing=1,
        handletextpad=0.2,
        frameon=True,
        framealpha=1,
        edgecolor="none",
    )


def blocks(results: Path) -> dict[str, str]:
    """The table of random rewards, by β."""
    named = {arm: f"β = ({look.removeprefix('beta_').replace('_', ', ')})" for arm, (look, _) in ARMS.items()}
    return {name: evolution.block(results, name, named) for name in BLOCKS}
