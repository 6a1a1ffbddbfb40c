"""The paper's Figure 4 on the testbed: KL(π_old ‖ π) and gradient norm of GRPO and CE-GPPO. Reads
the runs of sweeps/algorithms.yaml.

Stability is about single runs, so each seed has its thin line, unsmoothed; the thick line is their
mean.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, load, style

ARMS = ["grpo", "cegppo"]
PANELS = {
    "kl/old_k1": ("KL(π_old ‖ π), estimator k1 (signed)", "nats per token"),
    "kl/old_k3": ("KL(π_old ‖ π), estimator k3", "nats per token"),
    "grad/norm": ("Gradient norm before clipping", "norm"),
}


def draw(results: Path) -> None:
    runs = load.metrics(results, "algorithms", ARMS)
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.8), constrained_layout=True)
    rows = []
    for axis, (key, (title, unit)) in zip(axes, PANELS.items()):
        for arm in ARMS:
            label, line = style.look(arm)
            seeds = evolution.by_step(runs[runs["arm"] == arm], key)
            axis.plot(seeds, color=line["color"], linewidth=0.5, alpha=0.5)
            axis.plot(seeds.mean(axis=1), label=label, **line)
            rows.append({"metric": key, "algorithm": label, "mean": seeds.mean().mean(), "largest": seeds.max().max()})
        axis.set(title=title, xlabel="step", ylabel=unit)
    axes[0].set_yscale("symlog", linthresh=0.01)
    axes[1].set_yscale("log")
    axes[2].set_ylim(0, None)
    style.legend(figure, 2, axes[0])
    style.caption(
        figure,
        f"testbed, {evolution.seeds(runs)} an arm; thin: each seed, thick: their mean; mean over the updates of a step;"
        " not smoothed",
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4f}".format))
    print(f"\nfigure: {style.save(figure, results, 'fig4')}")
