"""The paper's Figure 5 on the testbed: GRPO with an entropy bonus of coefficient α. Reads the
runs of sweeps/entropy_bonus.yaml."""

from pathlib import Path

import matplotlib.pyplot as plt

from . import evolution, load, style

ARMS = ["grpo", "alpha_0.001", "alpha_0.003", "clip_higher", "cegppo"]


def draw(results: Path) -> None:
    runs, tests = load.metrics(results, "entropy_bonus", ARMS), load.evaluations(results, "entropy_bonus", ARMS)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), constrained_layout=True)
    evolution.entropy_and_accuracy(axes, runs, tests, ARMS)
    for axis in axes:
        axis.set_xlabel("step")
    style.legend(figure, 5, axes[0])
    evolution.finish(figure, results, "fig5", runs, tests, ARMS)
