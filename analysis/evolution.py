"""Entropy, accuracy and clip shares over training, an algorithm a colour: the figure and table
of several experiments."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import load, numbers, stats, style, tables

WINDOW = 5  # steps of the moving average in every panel but the benchmarks'
INTERVAL = 3  # seeds from which an interval over them is shown
COMPARED = ("entropy, last steps", "entropy, whole run", "accuracy, last", "accuracy, best", "length, last steps")
ANYWHERE = (-np.inf, np.inf)
Look = Callable[[str], tuple[str, dict]]  # (label, line style) of an arm


def draw(results: Path, experiment: str, arms: list[str]) -> None:
    """Draw <results>/figures/<experiment>; print the table and, with several seeds, the paired
    differences."""
    runs, tests = load.metrics(results, experiment, arms), load.evaluations(results, experiment, arms)
    figure = panels(runs, tests, arms, style.look)
    finish(figure, results, experiment, runs, tests, arms)


def panels(runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str], look: Look, title: str = "") -> plt.Figure:
    """Entropy, accuracy (where nothing was evaluated, the reward) and what is outside the clip,
    as far as they are recorded; `title` above the legend."""
    sides = [key for key in ("clip/low", "clip/high") if has(runs, key)]
    figure, axes = plt.subplots(
        1 + bool(sides), 2, figsize=(8.4, 5.8 if sides else 3.4), sharex=True, constrained_layout=True, squeeze=False
    )
    entropy_and_accuracy(axes[0], runs, tests, arms, look)
    titles = {"clip/low": "Outside the clip, low side (A < 0)", "clip/high": "Outside the clip, high side (A > 0)"}
    for axis, key in zip(axes[-1], sides):
        over_steps(axis, runs, arms, key, 100, look)
        axis.set(title=titles[key], ylabel="% of tokens", ylim=(0, None))
    for axis in axes[-1]:
        axis.set_xlabel("step")
    longest = max(len(style.shown(look(arm)[0])) for arm in arms)
    style.legend(figure, 3 if longest <= 32 else 2 if longest <= 50 else 1, axes[0][0], title=title)
    return figure


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


def caption(runs: pd.DataFrame, experiment: str = "testbed") -> str:
    counts = runs.groupby("arm")["seed"].nunique()
    shown = ", mean and 95 % t interval over seeds" if counts.max() >= INTERVAL else ", thin: each, thick: their mean"
    return f"{experiment}, {seeds(runs)} an arm" + (shown if counts.max() > 1 else "")


def entropy_and_accuracy(
    axes: Sequence[plt.Axes], runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str], look: Look = style.look
) -> None:
    """The pair of panels that most figures of the paper are: policy entropy, and the benchmarks'
    mean accuracy; the reward where nothing was evaluated."""
    over_steps(axes[0], runs, arms, "entropy/mean", look=look, within=(0.0, np.inf))
    axes[0].set(title="Policy entropy", ylabel="nats per token", ylim=(max(0.0, axes[0].get_ylim()[0]), None))
    if tests.empty:
        over_steps(axes[1], runs, arms, "reward/mean", look=look)
        axes[1].set(title="Reward in training (no benchmark)", ylabel="mean of what was sampled")
        return
    for arm in arms:
        seen = tests[tests["arm"] == arm].groupby(["step", "seed"])["accuracy"].mean().unstack()
        curve(axes[1], seen, arm, look, within=(0.0, 1.0), marker="o", markersize=3)
    low, high = axes[1].get_ylim()
    axes[1].set(
        title=f"Benchmark accuracy, avg@{load.samples(tests)}",
        ylabel=f"mean of {tests['benchmark'].nunique()} benchmarks",
        ylim=(max(0.0, low), min(1.0, high)),
    )


def over_steps(
    axis: plt.Axes,
    runs: pd.DataFrame,
    arms: list[str],
    key: str,
    scale: float = 1,
    look: Look = style.look,
    within: tuple[float, float] = ANYWHERE,
) -> None:
    """`scale` times the metric `key` of each arm, smoothed. An arm without a value of it has a line
    in the legend alone. Raises Missing where no arm has one."""
    if not has(runs, key):
        raise load.Missing(f"no '{key}' in the runs of {', '.join(sorted(set(runs['arm'])))}")
    for arm in arms:
        mine = runs[runs["arm"] == arm]
        if has(mine, key):
            curve(axis, smooth(mine, key) * scale, arm, look, within)
        else:
            axis.plot([], [], label=style.shown(look(arm)[0]), **look(arm)[1])


def curve(
    axis: plt.Axes,
    steps_by_seeds: pd.DataFrame,
    arm: str,
    look: Look = style.look,
    within: tuple[float, float] = ANYWHERE,
    **options: Any,
) -> None:
    """The mean over seeds, with its interval as a band from three seeds up (cut to what values
    can be, `within`), and each seed as a thin line where there are two."""
    label, line = look(arm)
    axis.plot(steps_by_seeds.mean(axis=1), **{"label": style.shown(label), **line, **options})
    if steps_by_seeds.shape[1] >= INTERVAL:
        bounds = [stats.mean_over_seeds(row)[1:] for row in steps_by_seeds.to_numpy()]
        band = np.clip(np.transpose(bounds), *within)
        axis.fill_between(steps_by_seeds.index, *band, color=line["color"], alpha=0.13, linewidth=0)
    elif steps_by_seeds.shape[1] > 1:
        axis.plot(steps_by_seeds, **{**line, "linewidth": 0.6, "alpha": 0.5})


def each_seed(axis: plt.Axes, runs: pd.DataFrame, key: str, arm: str) -> None:
    """`key` of an arm's `runs`, smoothed: a thin line a seed and their mean. For few seeds, or runs
    that part ways, of which a mean with an interval says little."""
    label, line = style.look(arm)
    smoothed = smooth(runs, key)
    if smoothed.shape[1] > 1:
        axis.plot(smoothed, **line | {"linewidth": 0.7, "alpha": 0.6})
    axis.plot(smoothed.mean(axis=1), label=style.shown(label), **line | {"linewidth": 2.2})


def entropies(axis: plt.Axes, runs: pd.DataFrame, arms: list[str], title: str) -> None:
    """The policy entropy of each arm, every seed."""
    for arm in arms:
        each_seed(axis, runs[runs["arm"] == arm], "entropy/mean", arm)
    axis.set(title=title, xlabel="step", ylabel="entropy, nats per token", ylim=(0, None))


def smooth(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Steps × seeds of `key`, moving average."""
    return by_step(runs, key).rolling(WINDOW, min_periods=1).mean()


def by_step(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Steps × seeds of `key`, as recorded."""
    if not has(runs, key):
        raise load.Missing(f"no '{key}' in the runs of {', '.join(sorted(set(runs['arm'])))}")
    return runs.pivot(index="step", columns="seed", values=key)


def window(steps: int) -> int:
    """How many steps a start and an end are means of: WINDOW, and of a short run at most half, so
    that they do not overlap."""
    return max(1, min(WINDOW, steps // 2))


def window_of(runs: pd.DataFrame) -> int:
    """The same, of what was recorded."""
    return window(int(runs["step"].max() - runs["step"].min() + 1))


def ends(runs: pd.DataFrame, key: str) -> tuple[pd.Series, pd.Series]:
    """Mean of `key` over the first and over the last steps (`window`), by seed."""
    first, last, width = runs["step"].min(), runs["step"].max(), window_of(runs)
    by_seed = lambda rows: rows.groupby("seed")[key].mean()
    return by_seed(runs[runs["step"] < first + width]), by_seed(runs[runs["step"] > last - width])


def accuracy_at(tests: pd.DataFrame, step: int) -> pd.Series:
    """Mean of the benchmarks at `step`, by seed."""
    return tests[tests["step"] == step].groupby("seed")["accuracy"].mean()


def recorded(runs: pd.DataFrame, key: str) -> bool:
    """Whether every arm has values of `key`."""
    return key in runs and bool(runs[key].notna().groupby(runs["arm"]).any().all())


def has(runs: pd.DataFrame, key: str) -> bool:
    """Whether any of `runs` has a value of `key`."""
    return key in runs and bool(runs[key].notna().any())


def last_evaluation(tests: pd.DataFrame) -> int | None:
    """The last step that all runs were evaluated at; None when there is none."""
    steps = [set(mine["step"]) for _, mine in tests.groupby(["arm", "seed"])]
    return max(set.intersection(*steps), default=None) if steps else None


def by_seed(runs: pd.DataFrame, tests: pd.DataFrame, arm: str) -> dict[str, pd.Series]:
    """What is said of an arm, one number a seed each, as far as it is recorded: entropy, accuracy
    at the last step that all runs were evaluated at and at each run's best, shares outside the
    clip, levers, response length. Levers are those of the ledger where any arm has them, in 10⁻³
    nats a step, else those of logit space."""
    mine, seen, made = runs[runs["arm"] == arm], tests[tests["arm"] == arm], {}
    has = lambda key: key in mine and mine[key].notna().any()
    mean = lambda key: mine.groupby("seed")[key].mean()
    if has("entropy/mean"):
        made["entropy, start"], made["entropy, last steps"] = ends(mine, "entropy/mean")
        made["entropy, whole run"] = mean("entropy/mean")
    last = last_evaluation(tests)
    if last is not None:
        if (seen["step"] == 0).any():
            made["accuracy, start"] = accuracy_at(seen, 0)
        made["accuracy, last"] = accuracy_at(seen, last)
        best = load.at_checkpoint(seen, "best")
        if not best.empty:
            made["accuracy, best"] = best.groupby("seed")["accuracy"].mean()
    exact = "ledger/lever_low" in runs and runs["ledger/lever_low"].notna().any()
    for side in ("low", "high"):
        if has(f"clip/{side}"):
            made[f"outside {side}"] = mean(f"clip/{side}")
        lever = f"ledger/lever_{side}" if exact else f"lever/{side}"
        if has(lever):
            made[f"lever {side}"] = mean(lever) * (1e3 if exact else 1)
    if has("length/mean"):
        made["length, last steps"] = ends(mine, "length/mean")[1]
    return made


def table(runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str], look: Look = style.look) -> pd.DataFrame:
    """A row an arm, text. Intervals are over seeds, from three up."""
    rows = []
    last = last_evaluation(tests)
    form = {"outside low": "{:.2%}", "outside high": "{:.2%}", "lever low": "{:+.3g}", "lever high": "{:+.3g}"}
    for arm in arms:
        known = by_seed(runs, tests, arm)
        row = {"arm": look(arm)[0], "entropy (nats)": ""}
        if "entropy, start" in known:
            row["entropy (nats)"] = " → ".join(f"{known[k].mean():.3f}" for k in ("entropy, start", COMPARED[0]))
        for name in ("start", "last", "best"):
            if f"accuracy, {name}" in known:
                head = f"accuracy, step {last}" if name == "last" else f"accuracy, {name}"
                mine = known[f"accuracy, {name}"]
                row[head] = f"{mine.mean():.3f}" if name == "start" else over(mine)
        row |= {name: pattern.format(known[name].mean()) for name, pattern in form.items() if name in known}
        if "length, last steps" in known:
            row["length"] = f"{known['length, last steps'].mean():.1f}"
        rows.append(row | {"seeds": str(runs[runs["arm"] == arm]["seed"].nunique())})
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "seeds"))
    return pd.DataFrame(rows, columns=[*columns, "seeds"]).fillna("")


def over(values: pd.Series, signed: bool = False) -> str:
    """The mean over seeds, with its interval from three seeds up."""
    mean, low, high = stats.mean_over_seeds(values)
    known = (low, high) if len(values) >= INTERVAL else (None, None)
    return tables.interval(mean, *known, form="{:+.3f}" if signed else "{:.3f}")


def contrasts(runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Each arm less the first, by seed, a row a quantity and arm: `values` (a number a seed that
    both have), and from three seeds up p and Holm's p over the arms, each quantity by itself."""
    known, made = {arm: by_seed(runs, tests, arm) for arm in arms}, []
    for name in COMPARED:
        rows: list[dict[str, Any]] = []
        for arm in arms[1:]:
            if name in known[arm] and name in known[arms[0]]:
                values = stats.paired(known[arm][name], known[arms[0]][name])
                p = stats.p_value(values) if len(values) >= INTERVAL else np.nan
                rows.append({"arm": arm, "quantity": name, "values": values, "p": p})
        adjusted = stats.holm([row["p"] for row in rows])
        made += [row | {"holm": p} for row, p in zip(rows, adjusted)]
    return pd.DataFrame(made, columns=["arm", "quantity", "values", "p", "holm"])


def differences(runs: pd.DataFrame, tests: pd.DataFrame, arms: list[str], look: Look = style.look) -> pd.DataFrame:
    """`contrasts` as text; * where Holm's p is below 0.05."""
    rows = []
    for row in contrasts(runs, tests, arms).to_dict("records"):
        p, holm = (("" if np.isnan(v) else f"{v:.3f}" if v >= 0.001 else "< 0.001") for v in (row["p"], row["holm"]))
        rows.append(
            {
                "of": row["quantity"],
                "difference": f"{look(row['arm'])[0]} − {look(arms[0])[0]}",
                "mean": over(row["values"], signed=True) + (" *" if row["holm"] < 0.05 else ""),
                "p": p,
                "p (Holm)": holm,
                "pairs": str(len(row["values"])),
            }
        )
    return pd.DataFrame(rows, columns=["of", "difference", "mean", "p", "p (Holm)", "pairs"])


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
        if len(end) <= 10:
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
