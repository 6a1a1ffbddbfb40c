"""The paper's Figure 6 on the testbed: β = (0, 1) throughout, against a late switch to (0.5, 1) and
against (0.5, 1) throughout.

Reads the runs of sweeps/beta_schedule.yaml.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, load, style

ARMS = {"constant": "beta_0_1", "switch": "switch", "cegppo": "beta_0.5_1"}  # and the look of each


def draw(results: Path) -> None:
    runs, tests = (
        load.metrics(results, "beta_schedule", list(ARMS)),
        load.evaluations(results, "beta_schedule", list(ARMS)),
    )
    switch = switched(runs[runs["arm"] == "switch"])
    runs, tests = runs.replace({"arm": ARMS}), tests.replace({"arm": ARMS})
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), constrained_layout=True)
    evolution.entropy_and_accuracy(axes, runs, tests, list(ARMS.values()))
    for axis in axes:
        axis.axvline(switch, color="#333333", linestyle=(0, (4, 3)), linewidth=0.9)
        axis.set_xlabel("step")
    more = f"\ndashed: the switch, after step {switch}"
    style.legend(figure, 3, axes[0])
    evolution.finish(figure, results, "fig6", runs, tests, list(ARMS.values()), more)


def switched(runs: pd.DataFrame) -> int:
    """The number of steps after which β1 changes."""
    beta1 = evolution.by_step(runs, "knob/beta1").iloc[:, 0]
    return int(beta1.index[beta1 != beta1.iloc[0]].min()) - 1
