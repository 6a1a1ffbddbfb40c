"""The coins once more, on ten seeds that the map had not used. Reads the runs of sweeps/again/."""

from pathlib import Path

import matplotlib.pyplot as plt

from . import evolution, load, style

FOLDER = "again"
ARMS = ["grpo", "cegppo", "high", "low"]
BLOCKS = ("again",)


def regimes(results: Path) -> dict[str, list[str]]:
    """{regime: its arms in order}, of those that have run. Raises Missing."""
    root = results / FOLDER
    made = {}
    for folder in load.regimes(root):
        there = {run.parent.name for run in load.run_folders(folder)}
        made[folder.name] = [arm for arm in ARMS if arm in there]
    if not made:
        raise load.Missing(f"no runs in {root} (sweeps/again/)")
    return made


def draw(results: Path) -> None:
    found = regimes(results)
    figure, axes = plt.subplots(
        1, len(found), figsize=(0.6 + 4.6 * len(found), 3.8), constrained_layout=True, squeeze=False
    )
    for axis, (name, arms) in zip(axes[0], found.items()):
        runs = load.metrics(results / FOLDER, name, arms)
        tests = load.evaluations(results / FOLDER, name, arms)
        for arm in arms:
            evolution.each_seed(axis, runs[runs["arm"] == arm], "entropy/mean", arm)
        axis.set(title=name, xlabel="step", ylabel="entropy, nats per token", ylim=(0, None))
        print(f"{name}\n{evolution.table(runs, tests, arms).to_string(index=False)}\n")
    style.legend(figure, len(ARMS), *axes[0])
    style.caption(
        figure,
        f"testbed, a coin for a reward, {evolution.seeds(runs)} an arm (thin: each; thick: their mean), moving average"
        f" over {evolution.WINDOW} steps",
    )
    print(f"figure: {style.save(figure, results, FOLDER)}")


def blocks(results: Path) -> dict[str, str]:
    parts = [
        f"In `{name}`:\n\n{evolution.block(results / FOLDER, name, arms)}" for name, arms in regimes(results).items()
    ]
    return {FOLDER: "\n\n".join(parts)}
