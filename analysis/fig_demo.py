"""The demo's question and its answer: does β decide the entropy, with a coin for a reward and with
the task's? Reads the runs of sweeps/demo.yaml: GRPO, and CE-GPPO with the paper's β."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, ledger, lever, load, stats, style

SWEEP = "demo"
REWARDS = {"coin": "a coin for a reward, large step", "task": "the task's reward"}
METHODS = {"grpo": "grpo", "cegppo": "cegppo"}  # and whose look it has
ARMS = [f"{reward}_{method}" for reward in REWARDS for method in METHODS]


def draw(results: Path) -> None:
    runs, tests = load.metrics(results, SWEEP, ARMS), load.evaluations(results, SWEEP, ARMS)
    load.refuse_unfinished(runs, results / SWEEP)
    found = {row.arm: row for row in lever.foretold(results) if row.sweep == SWEEP}
    figure, axes = plt.subplots(1, 3, figsize=(11.8, 3.7), constrained_layout=True, width_ratios=(1, 1, 0.85))
    for axis, (reward, title) in zip(axes, REWARDS.items()):
        for method, look in METHODS.items():
            evolution.each_seed(axis, runs[runs["arm"] == f"{reward}_{method}"], "entropy/mean", look)
        axis.set(title=f"Entropy, {title}", xlabel="step", ylabel="nats per token")
    bounds = np.array([axis.get_ylim() for axis in axes[:2]])
    for axis in axes[:2]:
        axis.set_ylim(bounds[:, 0].min(), bounds[:, 1].max())
    differences(axes[2], found)
    style.legend(figure, 5, axes[0], axes[2])
    seeds = runs["seed"].nunique()
    style.caption(
        figure,
        f"testbed, {seeds} seed{'s' * (seeds > 1)} an arm (thin: each; thick: their mean), moving average over"
        f" {evolution.WINDOW} steps; right: last {evolution.WINDOW} steps, paired by seed, mean and 95 % t interval;"
        "\nforetold: from GRPO's runs alone, by first order (docs/entropy.md)",
    )
    path = style.save(figure, results, SWEEP)
    print(cells(runs, tests).to_string(index=False))
    print("\nDoes β decide the entropy? Difference to GRPO at the end, nats:")
    for arm in ARMS:
        if arm in found:
            reward, method = arm.split("_")
            print(f"  {REWARDS[reward]:<31} {style.look(METHODS[method])[0]}: {answer(found[arm])}")
    print(f"\nfigure: {path}")


def differences(axis: plt.Axes, found: dict[str, lever.Foretold]) -> None:
    """What each arm came to against GRPO, and what was foretold, a row an arm."""
    arms = [arm for arm in ARMS if arm in found][::-1]
    for place, arm in enumerate(arms):
        measured, foretold = found[arm].measured, found[arm].predicted
        colour = style.look(METHODS[arm.split("_")[1]])[1]["color"]
        for (mean, low, high), shift, shade, marker, label in (
            (measured, -0.13, colour, "o", None),
            (foretold, 0.17, "#777777", "D", "foretold"),
        ):
            axis.plot([low, high], [place + shift] * 2, color=shade)
            axis.plot(mean, place + shift, marker=marker, color=shade, linestyle="none", label=label)
    ends = np.abs([value for arm in arms for value in (*found[arm].measured, *found[arm].predicted)])
    reach = 1.15 * ends[np.isfinite(ends)].max(initial=0.01)
    axis.set_xlim(-reach, reach)
    axis.axvline(0, color="black", linewidth=1)
    names = [f"{arm.split('_')[0]}, {style.look(METHODS[arm.split('_')[1]])[0]}" for arm in arms]
    axis.set_yticks(range(len(arms)), names)
    axis.set(title="Less GRPO's at the end", xlabel="nats per token", ylim=(-0.6, len(arms) - 0.4))


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
                "algorithm": style.look(METHODS[method])[0],
                "entropy": f"{start.mean():.3f} → {end.mean():.3f}",
                "accuracy": f"{score[0]:.3f} → {score[1]:.3f}",
                "outside, low / high": f"{mine['clip/low'].mean():.2%} / {mine['clip/high'].mean():.2%}",
                "length": f"{evolution.ends(mine, 'length/mean')[1].mean():.0f}",
                "seeds": len(end),
            }
        )
    return pd.DataFrame(rows)
