"""The demo's question and its answer: does β decide the entropy, with a coin for a reward and with
the task's? Reads the runs of sweeps/demo.yaml."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, ledger, lever, load, stats, style

SWEEP = "demo"
REWARDS = {"coin": "the reward is a coin", "task": "the reward is the task"}
METHODS = ("grpo", "cegppo")
ARMS = [f"{reward}_{method}" for reward in REWARDS for method in METHODS]
KINDS = {"foretold": ("#777777", "D"), "measured": (style.look("cegppo")[1]["color"], "o")}


def draw(results: Path) -> None:
    runs, tests = load.metrics(results, SWEEP, ARMS), load.evaluations(results, SWEEP, ARMS)
    load.refuse_unfinished(runs, results / SWEEP)
    found = {row.reference.partition("_")[0]: row for row in lever.foretold(results) if row.sweep == SWEEP}
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.6), constrained_layout=True, width_ratios=(1, 1, 0.8))
    for axis, (reward, title) in zip(axes, REWARDS.items()):
        courses(axis, runs, reward)
        axis.set(title=f"Entropy, {title}", xlabel="step", ylabel="nats per token")
    shared = [axis.get_ylim() for axis in axes[:2]]
    for axis in axes[:2]:
        axis.set_ylim(max(0.0, min(low for low, _ in shared)), max(high for _, high in shared))
    for n, row in enumerate(found[reward] for reward in reversed(REWARDS) if reward in found):
        for (kind, (colour, marker)), shift in zip(KINDS.items(), (0.12, -0.12)):
            mean, low, high = getattr(row, "predicted" if kind == "foretold" else kind)
            axes[2].plot([low, high], [n + shift] * 2, color=colour)
            axes[2].plot(mean, n + shift, marker=marker, color=colour, linestyle="none", label=kind)
    axes[2].axvline(0, color="black", linewidth=1)
    axes[2].set_yticks(range(len(found)), [reward for reward in reversed(REWARDS) if reward in found])
    axes[2].set(title="CE-GPPO less GRPO at the end", xlabel="nats per token", ylim=(-0.5, len(found) - 0.5))
    style.legend(figure, 4, axes[0], axes[2])
    seeds = runs["seed"].nunique()
    style.caption(
        figure,
        f"testbed, {seeds} seed{'s' * (seeds > 1)} an arm (thin: each; thick: their mean), moving average over"
        f" {evolution.WINDOW} steps; right: last {evolution.WINDOW} steps, paired by seed, mean and 95 % t interval;"
        "\nforetold: from GRPO's runs alone, by first order (docs/entropy.md)",
    )
    path = style.save(figure, results, SWEEP)
    print(cells(runs, tests).to_string(index=False))
    print("\nDoes β decide the entropy? CE-GPPO (0.5, 1) less GRPO at the end, nats:")
    for reward, row in found.items():
        print(f"  {REWARDS[reward]:<23} {answer(row)}")
    print(f"\nfigure: {path}")


def courses(axis: plt.Axes, runs: pd.DataFrame, reward: str) -> None:
    """Entropy of both methods, a thin line a seed."""
    for method in METHODS:
        label, line = style.look(method)
        smooth = evolution.smooth(runs[runs["arm"] == f"{reward}_{method}"], "entropy/mean")
        if smooth.shape[1] > 1:
            axis.plot(smooth, **line | {"linewidth": 0.7, "alpha": 0.6})
        axis.plot(smooth.mean(axis=1), label=label, **line | {"linewidth": 2.2})


def answer(row: lever.Foretold) -> str:
    """What was measured, what was foretold, and what may be said."""
    show = lambda triple: ledger.show(triple, "{:+.3f}")
    side = stats.side(*row.measured[1:])
    if np.isnan(row.measured[1]):
        says = "one seed: no interval, so nothing is said"
    elif side != "undecided":
        says = f"yes: it {'raises' if side == 'above' else 'lowers'} it"
    elif stats.band(*row.measured[1:], lever.MATTERS) == "within":
        says = f"no: less than {lever.MATTERS} nats either way"
    else:
        says = "undecided with these seeds"
    return f"measured {show(row.measured)}, foretold {show(row.predicted)}. {says[0].upper()}{says[1:]}."


def cells(runs: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for arm in ARMS:
        reward, method = arm.split("_")
        mine = runs[runs["arm"] == arm]
        start, end = evolution.ends(mine, "entropy/mean")
        seen = tests[tests["arm"] == arm]
        score = [evolution.accuracy_at(seen, step).mean() for step in (0, seen["step"].max())]
        rows.append(
            {
                "reward": reward,
                "algorithm": style.look(method)[0],
                "entropy": f"{start.mean():.3f} → {end.mean():.3f}",
                "accuracy": f"{score[0]:.3f} → {score[1]:.3f}",
                "outside, low / high": f"{mine['clip/low'].mean():.2%} / {mine['clip/high'].mean():.2%}",
                "seeds": len(end),
            }
        )
    return pd.DataFrame(rows)
