"""The coins once more, on ten seeds that the map had not used. Reads the runs of sweeps/again/."""

from pathlib import Path

import matplotlib.pyplot as plt

from . import evolution, load, style

FOLDER = "again"
ARMS = ["grpo", "cegppo", "high", "low"]
BLOCKS = ("again",)


def draw(results: Path) -> None:
    found = load.arms_of(results / FOLDER, ARMS)
    figure, axes = plt.subplots(
        1, len(found), figsize=(0.6 + 4.6 * len(found), 3.8), constrained_layout=True, squeeze=False
    )
    for axis, (name, arms) in zip(axes[0], found.items()):
        runs = load.metrics(results / FOLDER, name, arms)
        tests = load.evaluations(results / FOLDER, name, arms)
        evolution.entropies(axis, runs, arms, name)
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
        f"In `{name}`:\n\n{evolution.block(results / FOLDER, name, arms)}"
        for name, arms in load.arms_of(results / FOLDER, ARMS).items()
    ]
    return {FOLDER: "\n\n".join(parts)}
