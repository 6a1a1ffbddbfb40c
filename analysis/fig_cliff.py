"""Why the low side collapses: both sides given back in full, with a weight of the low side that
stays as a token becomes impossible, and with one that vanishes. Reads the runs of
sweeps/cliff.yaml."""

from pathlib import Path

import matplotlib.pyplot as plt

from . import evolution, load, style

ARMS = ["constant", "vanishing"]
PANELS = {
    "entropy/mean": ("Policy entropy", "nats per token"),
    "length/mean": ("Length of a response", "tokens; the limit is 48"),
    "clip/low": ("Outside the clip, low side (A < 0)", "share of tokens"),
}
BLOCKS = ("cliff",)


def draw(results: Path) -> None:
    runs, tests = load.metrics(results, "cliff", ARMS), load.evaluations(results, "cliff", ARMS)
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.4), constrained_layout=True)
    for axis, (key, (title, unit)) in zip(axes, PANELS.items()):
        for arm in ARMS:
            evolution.each_seed(axis, runs[runs["arm"] == arm], key, arm)
        axis.set(title=title, xlabel="step", ylabel=unit, ylim=(0, None))
    style.legend(figure, 2, axes[0])
    style.caption(
        figure,
        f"testbed, a coin for a reward, {evolution.seeds(runs)} an arm (thin: each; thick: their mean), moving average"
        f" over {evolution.WINDOW} steps",
    )
    print(evolution.table(runs, tests, ARMS).to_string(index=False))
    print(f"\nfigure: {style.save(figure, results, 'cliff')}")


def blocks(results: Path) -> dict[str, str]:
    return {"cliff": evolution.block(results, "cliff", ARMS)}
