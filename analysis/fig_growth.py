"""How the cost of a step grows: processor time and memory against tokens, answers, vocabulary and
updates, log-log, with slopes. Reads results/growth/growth.csv, which benchmarks/growth.py writes.

A slope is that of the straight line through the logarithms of the LAST largest values: 1 is
proportional, 0 does not grow.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import load, numbers, style

FILE = Path("growth") / "growth.csv"
BLOCKS = ("growth",)
LAST = 3
AXES = {
    "tokens": "tokens of an answer",
    "answers": "answers of a step",
    "vocabulary": "size of the vocabulary",
    "updates": "updates of a step",
}
PARTS = {"rollout": "sampling", "update": "updates", "whole": "whole step"}


def read(results: Path) -> pd.DataFrame:
    """axis, value, seconds of each part and of the whole, MiB. Raises Missing."""
    if not (results / FILE).is_file():
        raise load.Missing(f"{results / FILE}: no growth is recorded there (benchmarks/growth.py)")
    found = pd.read_csv(results / FILE)
    return found.assign(whole=found["rollout"] + found["update"])


def slope(rows: pd.DataFrame, key: str) -> float:
    """d log `key` / d log value over the largest values."""
    largest = rows.sort_values("value").tail(LAST)
    x, y = np.log(largest["value"].to_numpy(float)), np.log(largest[key].to_numpy(float))
    x = x - x.mean()
    return float(x @ y / (x @ x))


def draw(results: Path) -> None:
    found = read(results)
    figure, axes = plt.subplots(2, len(AXES), figsize=(11, 5), constrained_layout=True, sharex="col", sharey="row")
    for column, (axis, words) in enumerate(AXES.items()):
        rows = found[found["axis"] == axis].sort_values("value")
        time, memory = axes[0][column], axes[1][column]
        for n, (part, label) in enumerate(PARTS.items()):
            look = {"color": style.COLOURS[n], "linestyle": style.DASHES[n], "marker": "o", "markersize": 3}
            time.plot(rows["value"], rows[part], label=label, **look)
        memory.plot(rows["value"], rows["mib"], color="#444444", marker="o", markersize=3)
        time.set(xscale="log", yscale="log", title=f"whole step: slope {slope(rows, 'whole'):.2f}")
        memory.set(xscale="log", yscale="log", xlabel=words, title=f"slope {slope(rows, 'mib'):.2f}")
        memory.set_xticks(rows["value"], [f"{value:,}" for value in rows["value"]], rotation=45, fontsize=7)
        memory.set_yticks([30, 100, 300], ["30", "100", "300"])
        memory.minorticks_off()
    axes[0][0].set_ylabel("processor time, s")
    axes[1][0].set_ylabel("memory above the model, MiB")
    style.legend(figure, len(PARTS), axes[0][0])
    style.caption(
        figure, "one thing varied at a time from 256 answers of 32 tokens, 1,024 words, 8 updates; slopes of the"
        f" {LAST} largest; the testbed's shape, one thread",
    )  # fmt: skip
    print(blocks(results)["growth"])
    print(f"\nfigure: {style.save(figure, results, 'growth')}")


def blocks(results: Path) -> dict[str, str]:
    found = read(results)
    rows = []
    for axis, words in AXES.items():
        mine = found[found["axis"] == axis]
        row = {"against": words, "from … to": f"{mine['value'].min():,} … {mine['value'].max():,}"}
        row |= {f"{label}, slope": f"{slope(mine, part):.2f}" for part, label in PARTS.items()}
        rows.append(row | {"memory, slope": f"{slope(mine, 'mib'):.2f}"})
    return {"growth": numbers.markdown(pd.DataFrame(rows))}
