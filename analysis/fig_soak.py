"""A soak: memory, open handles and the time of a step over hours. Reads results/soak/*.csv, which
benchmarks/soak.py writes.

A slope is that of BLOCKS means of equal time, of which neighbours are about independent, after the
first WARM_UP; its interval is of the straight line through them (t, two degrees less).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import load, numbers, stats, style

WARM_UP = 0.1  # share of the time
PARTS = 10
PANELS = {
    "rss_mib": ("Resident memory", "MiB, all processes"),
    "handles": ("Open handles", "of all processes"),
    "cpu_ms": ("Processor time", "ms per token sampled, in that time"),
    "step_seconds": ("Time of a step", "s; others used the machine, too"),
}
BLOCKS = ("soak",)


def read(results: Path) -> dict[str, pd.DataFrame]:
    """{name: samples}, by hours. Raises Missing."""
    made = {}
    for path in sorted((results / "soak").glob("*.csv")):
        samples = pd.read_csv(path)[:-1]  # the last may be of processes that are ending
        samples["hours"] = samples["seconds"] / 3600
        window = max(1, len(samples) // 60)
        spent = samples[["cpu_seconds", "tokens"]].diff(window)
        samples["cpu_ms"] = 1000 * spent["cpu_seconds"] / spent["tokens"].where(spent["tokens"] > 0)
        made[path.stem] = samples
    if not made:
        raise load.Missing(f"{results / 'soak'}: no soak is recorded there (benchmarks/soak.py)")
    return made


def slope(samples: pd.DataFrame, key: str) -> tuple[float, float, float]:
    """(change of `key` an hour, and the ends of its 95 % interval)."""
    warm = samples[samples["hours"] >= WARM_UP * samples["hours"].max()]
    part = np.minimum((np.arange(len(warm)) * PARTS) // max(1, len(warm)), PARTS - 1)
    means = warm.assign(part=part).groupby("part")[["hours", key]].mean().dropna()
    x, y = means["hours"].to_numpy(), means[key].to_numpy()
    centred = x - x.mean()
    rate = float(centred @ y / (centred @ centred))
    left = y - y.mean() - rate * centred
    error = float(np.sqrt(left @ left / (len(x) - 2) / (centred @ centred)))
    half = stats.t_quantile((1 + stats.LEVEL) / 2, len(x) - 2) * error
    return rate, rate - half, rate + half


def draw(results: Path) -> None:
    soaks = read(results)
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.6), constrained_layout=True, sharex=True)
    for axis, (key, (title, unit)) in zip(axes.flat, PANELS.items()):
        for n, (name, samples) in enumerate(soaks.items()):
            shown = samples.dropna(subset=[key])
            axis.plot(shown["hours"], shown[key], color=style.COLOURS[n], linestyle=style.DASHES[n], label=name, lw=1)
        axis.set(title=title, ylabel=unit, ylim=(0, None))
    for axis in axes[1]:
        axis.set_xlabel("hours")
    style.legend(figure, len(soaks), axes[0][0])
    style.caption(figure, "a sample every few seconds; slopes and intervals: docs/reliability.md")
    print(blocks(results)["soak"])
    print(f"\nfigure: {style.save(figure, results, 'soak')}")


def blocks(results: Path) -> dict[str, str]:
    rows = []
    for name, s in read(results).items():
        row = {"soak": name, "hours": f"{s['hours'].max():.2f}", "steps": f"{s['steps'].max():,}"}
        for key, words in {"rss_mib": "memory, MiB", "handles": "handles", "cpu_ms": "processor, ms a token",
                           "step_seconds": "step, s"}.items():  # fmt: skip
            warm = s[s["hours"] >= WARM_UP * s["hours"].max()][key]
            rate, low, high = slope(s, key)
            digits = 3 if key == "cpu_ms" else 2 if key == "step_seconds" else 1
            row[words] = f"{warm.mean():.{digits}f}; {rate:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] an hour"
        rows.append(row)
    return {"soak": numbers.markdown(pd.DataFrame(rows))}
