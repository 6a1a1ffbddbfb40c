"""The second rung, TinyStories-15M: its entropy with a coin for a reward and with a happy word, and
what β did to it, beside what the levers of GRPO's runs had foretold. Reads the runs of
sweeps/stories/."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, ledger, lever, load, numbers, style
from .fig_map import bar
from .lever import Foretold

FOLDER, REFERENCE = "stories", "grpo"
ARMS = [REFERENCE, "cegppo", "high", "low"]
HAPPY = ("happy", "happy_again")  # the same on other seeds
REWARDS = {"coin": "coin", "happy": "happy word", "happy_again": "happy word, other seeds"}
BLOCKS = ("stories",)


def draw(results: Path) -> None:
    found, rows = load.arms_of(results / FOLDER, ARMS), forecasts(results)
    runs = {name: load.metrics(results / FOLDER, name, arms) for name, arms in found.items()}
    figure, axes = plt.subplots(1, 3, figsize=(12.4, 3.8), constrained_layout=True)
    if "coin" in found:
        evolution.entropies(axes[0], runs["coin"], found["coin"], "With a coin: policy entropy")
    happy = [runs[name] for name in HAPPY if name in runs and evolution.recorded(runs[name], "reward/mean")]
    if happy:
        earned = pd.concat(happy)
        for arm in ARMS[:2]:
            evolution.each_seed(axes[1], earned[earned["arm"] == arm], "reward/mean", arm)
        axes[1].set(title=f"With a happy word: reward, {evolution.seeds(earned)}", xlabel="step", ylabel="mean reward")
    differences(axes[2], rows)
    style.legend(figure, len(ARMS), *axes[:2])
    counted = evolution.seeds(pd.concat(runs.values()))
    style.caption(
        figure,
        f"TinyStories-15M, {counted} an arm (thin: each; thick: their mean), moving average over"
        f" {evolution.WINDOW} steps\nright: entropy of the last {evolution.WINDOW} steps less GRPO's, paired by seed,"
        " mean and 95 % t interval; open: foretold from GRPO's runs alone, first order",
    )
    print(cells(results).to_string(index=False))
    print(f"\nfigure: {style.save(figure, results, FOLDER)}")


def forecasts(results: Path) -> dict[tuple[str, str], Foretold]:
    """{(regime, arm): what was foretold and what was measured}."""
    return {(row.sweep, row.arm): row for row in lever.foretold(results / FOLDER) if row.reference == REFERENCE}


def differences(axis: plt.Axes, rows: dict[tuple[str, str], Foretold]) -> None:
    """Differences to GRPO, measured and foretold, a regime and arm a row."""
    order = [(name, arm) for name in REWARDS for arm in ARMS if (name, arm) in rows]
    axis.axvline(0, color="black", linewidth=1)
    axis.axvspan(-lever.MATTERS, lever.MATTERS, color="#000000", alpha=0.06, linewidth=0)
    for y, key in zip(range(len(order), 0, -1), order):
        colour = style.look(key[1])[1]["color"]
        bar(axis, rows[key].measured, y, colour, "o", 6)
        bar(axis, rows[key].predicted, y + 0.3, "#777777", "D", 4, open_=True)
    axis.set_yticks(
        range(len(order), 0, -1), [f"{style.look(arm)[0]}\n{REWARDS[name]}" for name, arm in order], fontsize=8
    )
    axis.set(title="Entropy less GRPO's, nats", ylim=(0.4, len(order) + 0.7))


def cells(results: Path) -> pd.DataFrame:
    """A row a regime and arm."""
    rows, foretold = [], forecasts(results)
    for name, arms in load.arms_of(results / FOLDER, ARMS).items():
        runs = load.metrics(results / FOLDER, name, arms)
        for arm in arms:
            mine = runs[runs["arm"] == arm]
            start, end = evolution.ends(mine, "entropy/mean")
            reward = evolution.ends(mine, "reward/mean") if evolution.recorded(mine, "reward/mean") else ()
            known = foretold.get((name, arm))
            show = lambda triple: ledger.show(triple, "{:+.3f}")
            rows.append(
                {
                    "reward": name,
                    "arm": style.look(arm)[0],
                    "entropy": f"{start.mean():.3f} → {end.mean():.3f}",
                    "at the end, by seed": ", ".join(f"{value:.2f}" for value in end),
                    "less GRPO's": show(known.measured) if known else "",
                    "foretold": show(known.predicted) if known else "",
                    "mean reward": " → ".join(f"{part.mean():.2f}" for part in reward),
                    "outside, low / high": f"{mine['clip/low'].mean():.2%} / {mine['clip/high'].mean():.2%}",
                    "seeds": mine["seed"].nunique(),
                }
            )
    return pd.DataFrame(rows)


def blocks(results: Path) -> dict[str, str]:
    return {FOLDER: numbers.markdown(cells(results))}
