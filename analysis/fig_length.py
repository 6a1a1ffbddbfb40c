"""Three hundred steps with a true reward: does GRPO's entropy collapse, does clip-higher's stay
above it, and where does CE-GPPO's end? Reads sweeps/phase/length_u8_lr5e-4.yaml."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import broke, evolution, load, numbers, stats, style

SWEEP = "phase/length_u8_lr5e-4"
ARMS = ["grpo", "clip_higher", "cegppo"]
PANELS = {"entropy/mean": "Policy entropy, nats per token", "accuracy/mean": "Training accuracy"}
BLOCKS = ("length",)


def draw(results: Path) -> None:
    runs = load.metrics(results, SWEEP, ARMS)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.0, 3.6), constrained_layout=True)
    for axis, (key, title) in zip(axes, PANELS.items()):
        for arm in ARMS:
            evolution.each_seed(axis, runs[runs["arm"] == arm], key, arm)
        axis.set(title=title, xlabel="step", ylim=(0, None))
    style.legend(figure, len(ARMS), axes[0])
    style.caption(
        figure,
        f"testbed, true reward, 8 updates per rollout at 5e-4, {evolution.seeds(runs)} per arm (thin: each run; thick:"
        f" their mean), moving average over {evolution.WINDOW} steps",
    )
    print(table(runs).to_string(index=False))
    print(f"figure: {style.save(figure, results, 'length')}")


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per arm: entropy and accuracy of the first and the last steps, and the last minus
    GRPO's."""
    made = []
    for arm in ARMS:
        of, reference = (runs[runs["arm"] == name] for name in (arm, ARMS[0]))
        broken = broke.broke(of)
        row = {"arm": style.look(arm)[0]}
        for key, name in (("entropy/mean", "entropy, nats"), ("accuracy/mean", "accuracy")):
            start, end = evolution.ends(of, key)
            row[name] = f"{start.mean():.3f} → {end.mean():.3f}"
            difference = stats.paired(end, evolution.ends(reference, key)[1])
            row[f"{name}, minus GRPO"] = "" if arm == ARMS[0] else evolution.over(difference, signed=True)
        made.append(row | {"broke": f"{int(broken.sum())} of {len(broken)}", "seeds": of["seed"].nunique()})
    return pd.DataFrame(made)


def blocks(results: Path) -> dict[str, str]:
    return {"length": numbers.markdown(table(load.metrics(results, SWEEP, ARMS)))}
