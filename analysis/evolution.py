"""Entropy, accuracy and clip shares over training, an algorithm a colour: the figure and table
of several experiments."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import load, numbers, stats, style

WINDOW = 5  # steps of the moving average in every panel but the benchmarks'


def draw(results: Path, experiment: str, arms: list[str]) -> None:
    """Draw <results>/figures/<experiment>; print the table and, with several seeds, the paired
    differences."""
    runs, tests = load.metrics(results, experiment, arms), load.evaluations(results, experiment, arms)
    figure, (top, (low, high)) = plt.subplots(2, 2, figsize=(8.4, 5.8), sharex=True, constrained_layout=True)
    entropy_and_accuracy(top, runs, tests, arms)
    over_steps(low, runs, arms, "clip/low", 100)
    over_steps(high, runs, arms, "clip/high", 100)
    low.set(title="Outside the clip, low side (A < 0)", xlabel="step", ylabel="% of tokens", ylim=(0, None))
    high.set(title="Outside the clip, high side (A > 0)", xlabel="step", ylabel="% of tokens", ylim=(0, None))
    style.legend(figure, 3, top[0])
    finish(figure, results, experiment, runs, tests, arms)


def finish(
    figure: plt.Figure,
    results: Path,
    name: str,
    runs: pd.DataFrame,
    tests: pd.DataFrame,
    arms: list[str],
    more: str = "",
) -> None:
    """Caption (ending in `more`) and file; print the table and the paired differences."""
    n = tests.groupby("benchmark")["n"].first().sum()
    style.caption(figure, f"{caption(runs)}; {n} problems; moving average over {WINDOW} steps (accuracy: none){more}")
    path = style.save(figure, results, name)
    print(table(runs, tests, arms).to_string(index=False))
    if runs["seed"].nunique() > 1:
        print(f"\npaired differences by seed, mean [95 % t interval], {seeds(runs)}")
        print(differences(runs, tests, arms).to_string(index=False))
    print(f"\nfigure: {path}")


def seeds(runs: pd.DataFrame) -> str:
    """How many seeds an arm has."""
    low, high = runs.groupby("arm")["seed"].nunique().agg(["min", "max"])
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"


def caption(runs: pd.DataFrame) -> str:
    return f"testbed, {seeds(runs)} an arm" + (
        ", mean and 95 % t interval over seeds" if runs["seed"].nunique() > 1 else ""
    )


def entropy_and_accuracy(axes: list[plt.Axes], runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str]) -> None:
    """The pair of panels that most figures of the paper are: policy entropy, and the benchmarks'
    mean accuracy."""
    over_steps(axes[0], runs, arms, "entropy/mean")
    axes[0].set(title="Policy entropy", ylabel="nats per token")
    for arm in arms:
        seen = tests[tests["arm"] == arm].groupby(["step", "seed"])["accuracy"].mean().unstack()
        curve(axes[1], seen, arm, marker="o", markersize=3)
    axes[1].set(
        title=f"Benchmark accuracy, avg@{load.samples(tests)}",
        ylabel=f"mean of {tests['benchmark'].nunique()} benchmarks",
    )


def over_steps(axis: plt.Axes, runs: pd.DataFrame, arms: list[str], key: str, scale: float = 1) -> None:
    """`scale` times the metric `key` of each arm, smoothed."""
    for arm in arms:
        curve(axis, smooth(runs[runs["arm"] == arm], key) * scale, arm)


def curve(axis: plt.Axes, steps_by_seeds: pd.DataFrame, arm: str, **options: Any) -> None:
    """The mean over seeds, with its interval as a band when there are several."""
    label, line = style.look(arm)
    axis.plot(steps_by_seeds.mean(axis=1), **{"label": label, **line, **options})
    if steps_by_seeds.shape[1] > 1:
        bounds = [stats.mean_over_seeds(row)[1:] for row in steps_by_seeds.to_numpy()]
        axis.fill_between(steps_by_seeds.index, *np.transpose(bounds), color=line["color"], alpha=0.13, linewidth=0)


def each_seed(axis: plt.Axes, runs: pd.DataFrame, key: str, arm: str) -> None:
    """`key` of an arm's `runs`, smoothed: a thin line a seed and their mean. For few seeds, or runs
    that part ways, of which a mean with an interval says little."""
    label, line = style.look(arm)
    smoothed = smooth(runs, key)
    if smoothed.shape[1] > 1:
        axis.plot(smoothed, **line | {"linewidth": 0.7, "alpha": 0.6})
    axis.plot(smoothed.mean(axis=1), label=label, **line | {"linewidth": 2.2})


def smooth(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Steps × seeds of `key`, moving average."""
    return by_step(runs, key).rolling(WINDOW, min_periods=1).mean()


def by_step(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Steps × seeds of `key`, as recorded."""
    if key not in runs or runs[key].isna().all():
        raise load.Missing(f"no '{key}' in the runs of {', '.join(sorted(set(runs['arm'])))}")
    return runs.pivot(index="step", columns="seed", values=key)


def ends(runs: pd.DataFrame, key: str) -> tuple[pd.Series, pd.Series]:
    """Mean of `key` over the first and over the last WINDOW steps, by seed."""
    last = runs["step"].max()
    by_seed = lambda rows: rows.groupby("seed")[key].mean()
    return by_seed(runs[runs["step"] <= WINDOW]), by_seed(runs[runs["step"] > last - WINDOW])


def accuracy_at(tests: pd.DataFrame, step: int) -> pd.Series:
    """Mean of the benchmarks at `step`, by seed."""
    return tests[tests["step"] == step].groupby("seed")["accuracy"].mean()


def table(runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """A row an algorithm. Intervals are over seeds when there are several, else over problems
    (stratified by benchmark)."""
    rows = []
    for arm in arms:
        mine, seen = runs[runs["arm"] == arm], tests[tests["arm"] == arm]
        start, end = ends(mine, "entropy/mean")
        last = seen["step"].max()
        rows.append(
            {
                "algorithm": style.look(arm)[0],
                "entropy (nats)": f"{start.mean():.3f} → {end.mean():.3f}",
                "accuracy, start": interval(seen[seen["step"] == 0]),
                f"accuracy, step {last}": interval(seen[seen["step"] == last]),
                "outside low": f"{mine['clip/low'].mean():.2%}",
                "outside high": f"{mine['clip/high'].mean():.2%}",
                "seeds": mine["seed"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def interval(tests: pd.DataFrame) -> str:
    """Mean accuracy over benchmarks with its 95 % interval: Student's t over seeds, or for one
    seed a bootstrap over problems."""
    if tests["seed"].nunique() > 1:
        return show(stats.mean_over_seeds(tests.groupby("seed")["accuracy"].mean()))
    if tests["correct"].isna().any():  # another framework's run: no counts, so no interval over problems
        return f"{tests['accuracy'].mean():.3f}"
    strata = [
        np.concatenate([np.array(c) / k for c, k in zip(g["correct"], g["k"])]) for _, g in tests.groupby("benchmark")
    ]
    return show(stats.bootstrap_mean(strata))


def differences(runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Each arm less the first, by seed: entropy over the last steps and over the whole run,
    accuracy at the end."""
    of = lambda frame, arm: frame[frame["arm"] == arm]
    last = tests["step"].max()
    rows = []
    for arm in arms[1:]:
        pairs = {
            "entropy, last steps": [ends(of(runs, a), "entropy/mean")[1] for a in (arm, arms[0])],
            "entropy, whole run": [of(runs, a).groupby("seed")["entropy/mean"].mean() for a in (arm, arms[0])],
            f"accuracy, step {last}": [accuracy_at(of(tests, a), last) for a in (arm, arms[0])],
        }
        row = {"difference": f"{style.look(arm)[0]} − {style.look(arms[0])[0]}"}
        rows.append(
            row | {name: show(stats.mean_over_seeds(stats.paired(a, b)), signed=True) for name, (a, b) in pairs.items()}
        )
    return pd.DataFrame(rows)


def cells(runs: pd.DataFrame, tests: pd.DataFrame, arms: dict[str, str]) -> pd.DataFrame:
    """What docs quote of a sweep, a row an arm (name: label), the first being the one that the
    others are compared with: entropy at the ends, by seed and paired, accuracy, length."""
    of = lambda frame, arm: frame[frame["arm"] == arm]
    last, first = tests["step"].max(), next(iter(arms))
    signed = lambda a, b: show(stats.mean_over_seeds(stats.paired(a, b)), signed=True)
    rows = []
    for arm, label in arms.items():
        mine = of(runs, arm)
        (start, end), score = ends(mine, "entropy/mean"), accuracy_at(of(tests, arm), last)
        row = {"arm": label, "entropy": f"{start.mean():.3f} → {end.mean():.3f}"}
        if len(end) <= 5:
            row["at the end, by seed"] = ", ".join(f"{value:.2f}" for value in end)
        row |= {"less the first arm": "", f"accuracy, step {last}": show(stats.mean_over_seeds(score)), "less it": ""}
        if arm != first:
            row["less the first arm"] = signed(end, ends(of(runs, first), "entropy/mean")[1])
            row["less it"] = signed(score, accuracy_at(of(tests, first), last))
        length = ends(mine, "length/mean")[1] if "length/mean" in mine else pd.Series(dtype=float)
        row["length at the end"] = f"{length.min():.0f} to {length.max():.0f}" if len(length) else ""
        row["outside, low / high"] = f"{mine['clip/low'].mean():.2%} / {mine['clip/high'].mean():.2%}"
        rows.append(row | {"seeds": mine["seed"].nunique()})
    return pd.DataFrame(rows)


def block(results: Path, experiment: str, arms: list[str] | dict[str, str]) -> str:
    """`cells` of a sweep as Markdown. Raises Missing."""
    named = arms if isinstance(arms, dict) else {arm: style.look(arm)[0] for arm in arms}
    runs, tests = load.metrics(results, experiment, list(named)), load.evaluations(results, experiment, list(named))
    return numbers.markdown(cells(runs, tests, named))


def show(triple: tuple[float, float, float], signed: bool = False) -> str:
    return ("{:+.3f} [{:+.3f}, {:+.3f}]" if signed else "{:.3f} [{:.3f}, {:.3f}]").format(*triple)
