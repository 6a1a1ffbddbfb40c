"""The paper's Figure 3 on the testbed: the grid of (β1, β2), entropy and accuracy. Reads the runs
of sweeps/beta_grid.yaml.

Left β1 varies at β2 = 1, right β2 varies at β1 = 1; the paper says entropy falls faster with a
larger β1 and with a smaller β2.
"""

from pathlib import Path

import matplotlib.pyplot as plt

from . import evolution, load, style

COLUMNS = {
    "β1 varies, β2 = 1": ["beta_0_1", "beta_0.25_1", "beta_0.5_1", "beta_0.75_1", "beta_1_1"],
    "β2 varies, β1 = 1": ["beta_1_0.5", "beta_1_0.75", "beta_1_1"],
}
REFERENCES = ["beta_0_0", "clip_higher"]
ARMS = [*REFERENCES, *dict.fromkeys(arm for arms in COLUMNS.values() for arm in arms)]


def draw(results: Path) -> None:
    runs, tests = load.metrics(results, "beta_grid", ARMS), load.evaluations(results, "beta_grid", ARMS)
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 6.8), sharex=True, sharey="row", constrained_layout=True)
    for (title, arms), pair in zip(COLUMNS.items(), axes.T):
        evolution.entropy_and_accuracy(pair, runs, tests, [*REFERENCES, *arms])
        for axis in pair:
            axis.set_title(f"{axis.get_title()}: {title}")
        pair[1].set_xlabel("step")
    for axis in axes[:, 1]:
        axis.set_ylabel("")
    style.legend(figure, 5, *axes[0])
    evolution.finish(figure, results, "fig3", runs, tests, ARMS)
