"""The paper's Figure 2, and ours beside it: entropy and benchmark accuracy of GRPO, clip-higher and
CE-GPPO.

Ours are the runs of sweeps/algorithms.yaml on the testbed. The paper's curves are digitised from
its Figure 2 (DeepSeek-R1-Distill-Qwen-7B; <results>/paper/), in axes of their own: another model,
other problems, other steps. What the paper calls DAPO is clip-higher alone, and its CE-GPPO at 7B
has β = (0.75, 1).
"""

from pathlib import Path

import matplotlib.pyplot as plt

from . import evolution, load, style

ARMS = ["grpo", "clip_higher", "cegppo", "cegppo_0.75"]
THEIRS = {"grpo": "grpo", "clip_higher": "clip_higher", "cegppo": "cegppo_0.75"}
PANELS = {  # file: (column, title, label)
    "fig2a_entropy_7b.csv": ("entropy", "The paper's Figure 2a: entropy, 7B", "nats per token"),
    "fig2b_aime24_7b.csv": ("aime24_avg32", "The paper's Figure 2b: AIME 2024, 7B", "avg@32"),
}


def draw(results: Path) -> None:
    runs, tests = load.metrics(results, "algorithms", ARMS), load.evaluations(results, "algorithms", ARMS)
    figure, (ours, theirs) = plt.subplots(2, 2, figsize=(8.4, 6.2), constrained_layout=True)
    evolution.entropy_and_accuracy(ours, runs, tests, ARMS)
    for axis, title in zip(ours, ("Ours: policy entropy", f"Ours: benchmark accuracy, avg@{load.samples(tests)}")):
        axis.set(title=title, xlabel="step")
    for axis, (file, (column, title, label)) in zip(theirs, PANELS.items()):
        points = load.paper(results, file)
        for method, arm in THEIRS.items():
            mine = points[points["method"] == method]
            axis.plot(mine["step"], mine[column], **style.look(arm)[1], marker="s", markersize=2.5, linewidth=1.1)
        axis.set(title=title, xlabel="step", ylabel=label, facecolor="#F1F1F1")
    more = (
        "\ngrey panels: the paper's own curves, digitised from its Figure 2 (±0.01 nats, ±0.002 accuracy); number of"
        " seeds not stated"
    )
    style.legend(figure, 4, ours[0])
    evolution.finish(figure, results, "fig2", runs, tests, ARMS, more)
