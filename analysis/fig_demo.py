"""The demo's question and its answer: with a true reward and long steps, does β₁ decide whether a
run survives? Reads the runs of sweeps/demo.yaml."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import broke, evolution, load, stats, style

SWEEP = "demo"
ARMS = {"grpo": "GRPO", "beta_0.2_1": "β = (0.2, 1)", "beta_0.75_1": "CE-GPPO (0.75, 1)"}
LOOKS = {"grpo": "grpo", "beta_0.2_1": "beta_0.25_1", "beta_0.75_1": "beta_1_0.75"}  # whose colours tell the arms apart
PANELS = {"accuracy/mean": "Training accuracy", "entropy/mean": "Policy entropy, nats per token"}


def draw(results: Path) -> None:
    runs = load.metrics(results, SWEEP, list(ARMS))
    load.refuse_unfinished(runs, results / SWEEP)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.0, 3.6), constrained_layout=True)
    for axis, (key, title) in zip(axes, PANELS.items()):
        for arm, label in ARMS.items():
            smoothed = evolution.smooth(runs[runs["arm"] == arm], key)
            line = style.look(LOOKS[arm])[1]
            axis.plot(smoothed, **line | {"linewidth": 0.7, "alpha": 0.6})
            axis.plot(smoothed.mean(axis=1), label=label, **line | {"linewidth": 2.2})
        axis.set(title=title, xlabel="step", ylim=(0, None))
    style.legend(figure, len(ARMS), axes[0])
    style.caption(
        figure,
        f"testbed, true reward, 16 updates per step at 5e-4, {evolution.seeds(runs)} per arm (thin: each run; thick:"
        f" their mean), moving average over {evolution.WINDOW} steps",
    )
    path = style.save(figure, results, SWEEP)
    print(table(runs).to_string(index=False))
    print("\nDoes β₁ decide whether a run survives? Accuracy in the last steps, minus GRPO's:")
    for arm in list(ARMS)[1:]:
        print(f"  {ARMS[arm]:<18}  {answer(runs, arm)}")
    print(f"\nfigure: {path}")


def last(runs: pd.DataFrame, arm: str, key: str) -> pd.Series:
    """Mean of `key` over the last steps of an arm, by seed."""
    return evolution.ends(runs[runs["arm"] == arm], key)[1]


def answer(runs: pd.DataFrame, arm: str) -> str:
    """The difference to GRPO with its interval, and what may be said of it."""
    triple = stats.mean_over_seeds(stats.paired(last(runs, arm, "accuracy/mean"), last(runs, "grpo", "accuracy/mean")))
    side = stats.side(*triple[1:])
    if triple[1] != triple[1]:
        says = "one seed: no interval, so nothing is said"
    elif side == "undecided":
        says = "undecided with these seeds"
    else:
        says = f"yes: accuracy is {'higher' if side == 'above' else 'lower'}"
    return f"{evolution.show(triple, signed=True)}. {says[0].upper()}{says[1:]}."


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per arm: accuracy and entropy at the ends, how many runs broke, what was clipped."""
    rows = []
    for arm, label in ARMS.items():
        of = runs[runs["arm"] == arm]
        ends = {key: evolution.ends(of, key) for key in PANELS}
        row = {"arm": label}
        for key, name in (("accuracy/mean", "accuracy"), ("entropy/mean", "entropy")):
            row[name] = f"{ends[key][0].mean():.2f} → {ends[key][1].mean():.2f}"
        broken = broke.broke(of)
        row["broke"] = f"{int(broken.sum())} of {len(broken)}" if len(broken) else ""
        row["clipped below / above"] = f"{of['clip/low'].mean():.2%} / {of['clip/high'].mean():.2%}"
        rows.append(row)
    return pd.DataFrame(rows)
