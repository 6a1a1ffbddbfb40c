"""Where β matters with a true reward: small steps beside long ones. Reads sweeps/phase/ and the
map's `task`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import broke, evolution, load, numbers, stats, style

FOLDER = "phase"
CELL = "phase/u16_lr5e-4"
PANELS = {
    "map/task": "Short steps: 8 updates at 2e-4",
    CELL: "Long steps: 16 updates at 5e-4",
}
SHOWN = ["grpo", "clip_higher", "cegppo"]
ARMS = {
    "grpo": "GRPO",
    "clip_higher": "clip-higher",
    "high": "β = (0, 1)",
    "beta_0.2_1": "β = (0.2, 1)",
    "cegppo": "CE-GPPO (0.5, 1)",
    "beta_0.75_1": "CE-GPPO (0.75, 1)",
    "low": "β = (1, 0)",
    "dgpo": "DGPO",
}
BLOCKS = ("phase", "phase cells")
# Every cell beside the long steps: updates per rollout and learning rate.
CELLS = {"phase/u16_lr2e-4": "16 updates at 2e-4", "phase/u8_lr5e-4": "8 updates at 5e-4", CELL: "16 updates at 5e-4"}


def draw(results: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.0, 3.6), sharey=True, constrained_layout=True)
    for axis, (experiment, title) in zip(axes, PANELS.items()):
        runs = load.metrics(results, experiment, SHOWN)
        for arm in SHOWN:
            evolution.each_seed(axis, runs[runs["arm"] == arm], "accuracy/mean", arm)
        axis.set(title=title, xlabel="step", ylim=(0, 0.85))
        print(f"{title}: {evolution.seeds(runs)}")
    axes[0].set(ylabel="training accuracy")
    style.legend(figure, len(SHOWN), *axes)
    style.caption(
        figure,
        "testbed, true reward; thin: each run, thick: their mean; moving average over"
        f" {evolution.WINDOW} steps; 5 seeds left, 10 right",
    )
    print(f"figure: {style.save(figure, results, FOLDER)}")


def rows(results: Path, experiment: str) -> pd.DataFrame:
    """A row per arm: accuracy, how many runs broke, and the entropy of the rest, beside GRPO's."""
    arms = [arm for arm in ARMS if arm in load.arms_of(results / FOLDER, list(ARMS))[experiment.split("/")[1]]]
    runs = load.metrics(results, experiment, arms)
    of = {arm: runs[runs["arm"] == arm] for arm in arms}
    last = {arm: evolution.ends(of[arm], "accuracy/mean")[1] for arm in arms}
    area = {arm: of[arm].groupby("seed")["accuracy/mean"].mean() for arm in arms}
    entropy = {arm: evolution.ends(of[arm], "entropy/mean")[1] for arm in arms}
    broken = {arm: broke.broke(of[arm]) for arm in arms}
    signed = lambda values: evolution.show(stats.mean_over_seeds(values), signed=True)
    made = []
    for arm in arms:
        share, low, high = broke.share(broken[arm])
        row = {"arm": ARMS[arm], "accuracy": evolution.show(stats.mean_over_seeds(last[arm]))}
        row |= {"minus GRPO": "", "mean over all steps, minus GRPO": ""}
        row["broke"] = f"{int(broken[arm].sum())} of {len(broken[arm])}"
        row["share [95 %]"] = f"{share:.2f} [{low:.2f}, {high:.2f}]"
        row["entropy of the rest, minus GRPO"] = ""
        if arm != "grpo":
            row["minus GRPO"] = signed(stats.paired(last[arm], last["grpo"]))
            row["mean over all steps, minus GRPO"] = signed(stats.paired(area[arm], area["grpo"]))
            both = broke.rest(stats.paired(entropy[arm], entropy["grpo"]), broken[arm], broken["grpo"])
            row["entropy of the rest, minus GRPO"] = signed(both) if len(both) >= 3 else f"{len(both)} runs are left"
        made.append(row | {"seeds": of[arm]["seed"].nunique()})
    return pd.DataFrame(made)


def cells(results: Path) -> pd.DataFrame:
    """A row per cell and arm that two cells or more have: accuracy and entropy at the end, beside
    GRPO's, and how many runs broke."""
    known = load.arms_of(results / FOLDER, ["grpo", "cegppo", "high"])
    made = []
    for experiment, label in CELLS.items():
        arms = known.get(experiment.split("/")[1], [])
        runs = load.metrics(results, experiment, arms) if "grpo" in arms else pd.DataFrame()
        for arm in arms if len(runs) else []:
            of, reference = (runs[runs["arm"] == name] for name in (arm, "grpo"))
            broken = broke.broke(of)
            row = {"cell": label, "arm": ARMS[arm], "broke": f"{int(broken.sum())} of {len(broken)}"}
            for key, name in (("accuracy/mean", "accuracy"), ("entropy/mean", "entropy, nats")):
                own, theirs = (evolution.ends(frame, key)[1] for frame in (of, reference))
                row[name] = f"{own.mean():.3f}"
                difference = stats.mean_over_seeds(stats.paired(own, theirs))
                row[f"{name}, minus GRPO"] = "" if arm == "grpo" else evolution.show(difference, signed=True)
            made.append(row)
    return pd.DataFrame(made)


def blocks(results: Path) -> dict[str, str]:
    return {FOLDER: numbers.markdown(rows(results, CELL)), "phase cells": numbers.markdown(cells(results))}
