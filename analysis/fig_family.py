"""The family: what every method does to entropy and accuracy, in two regimes, against GRPO.

Reads results/family/<regime>/, whatever methods the runs there have. A method's place is by its
entropy less GRPO's for each point of accuracy by which it differs, at least one point, which is
about the sampling error of one evaluation: what raises entropy at no price is on top, what lowers
it for nothing at the bottom.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, ledger, load, numbers, stats, style, tables
from .fig_map import bar
from .stats import Triple

BLOCKS = ("family",)
FOLDER, REFERENCE = "family", "grpo"
FIRST = ("coin", "task")  # the order of regimes; others follow
POINT = 0.01
SURE = 0.05  # below it a corrected p is marked
COLOURS = {"entropy_less": "#0072B2", "accuracy_less": "#D55E00"}
NONE = (np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Method:
    """A method in a regime. Differences are to GRPO, paired by seed."""

    start: float  # entropy, first steps, nats
    end: Triple  # entropy, last steps
    accuracy: Triple  # at the last evaluation that all runs have
    entropy_less: Triple  # NONE for GRPO itself
    accuracy_less: Triple
    seeds: int
    # p of the differences with Holm's correction over the regime's methods; NaN: no interval.
    entropy_p: float = np.nan
    accuracy_p: float = np.nan

    @property
    def place(self) -> float:
        """Nats of entropy more than GRPO's for each point of accuracy; 0 for GRPO."""
        if np.isnan(self.entropy_less[0]):
            return 0.0
        return self.entropy_less[0] / max(abs(self.accuracy_less[0]) / POINT, 1.0)


def read(results: Path) -> dict[str, dict[str, Method]]:
    """{regime: {arm: Method}}, arms in their order. Raises Missing."""
    root = results / FOLDER
    there = [path.name for path in load.regimes(root)]
    order = [*(name for name in FIRST if name in there), *(name for name in there if name not in FIRST)]
    made = {name: found for name in order if (found := _regime(root, name))}
    if not made:
        raise load.Missing(f"no regime with finished runs of {REFERENCE} and another method in {root} (sweeps/family/)")
    return made


def _regime(root: Path, name: str) -> dict[str, Method]:
    finished = [f for f in load.run_folders(root / name) if load.meta(f).get("status", "finished") == "finished"]
    names = sorted({folder.parent.name for folder in finished})
    if REFERENCE not in names or len(names) < 2:
        return {}
    keep = {(folder.parent.name, int(folder.name.removeprefix("seed"))) for folder in finished}
    pick = lambda frame: frame[[pair in keep for pair in zip(frame["arm"], frame["seed"])]]
    runs, tests = pick(load.metrics(root, name, names)), pick(load.evaluations(root, name, names))
    last = evolution.last_evaluation(tests)
    of = lambda frame, arm: frame[frame["arm"] == arm]
    ends = {arm: evolution.ends(of(runs, arm), "entropy/mean") for arm in names}
    score = {arm: evolution.accuracy_at(of(tests, arm), last) for arm in names} if last is not None else {}
    others = [arm for arm in names if arm != REFERENCE]
    entropy = {arm: stats.paired(ends[arm][1], ends[REFERENCE][1]) for arm in others}
    accuracy = {arm: stats.paired(score[arm], score[REFERENCE]) for arm in others} if score else {}
    adjusted = lambda pairs: dict(zip(pairs, map(float, stats.holm([stats.p_value(v) for v in pairs.values()]))))
    entropy_p, accuracy_p = adjusted(entropy), adjusted(accuracy)
    less = lambda pairs, arm: stats.mean_over_seeds(pairs[arm]) if len(pairs.get(arm, ())) else NONE
    made = {}
    for arm in names:
        start, end = ends[arm]
        made[arm] = Method(
            float(start.mean()),
            stats.mean_over_seeds(end),
            stats.mean_over_seeds(score[arm]) if score else NONE,
            less(entropy, arm),
            less(accuracy, arm),
            len(end),
            entropy_p.get(arm, np.nan),
            accuracy_p.get(arm, np.nan),
        )
    return dict(sorted(made.items(), key=lambda item: -item[1].place))


def draw(results: Path) -> None:
    regimes = read(results)
    every = list(next(iter(regimes.values())))  # rows in the order of the first regime
    every += [arm for found in regimes.values() for arm in found if arm not in every]
    figure, axes = plt.subplots(
        1, 2 * len(regimes), figsize=(1.6 + 2.9 * 2 * len(regimes), 1.3 + 0.24 * len(every)), sharey=True,
        constrained_layout=True, squeeze=False,
    )  # fmt: skip
    place = {arm: float(len(every) - n) for n, arm in enumerate(every)}
    for number, (name, found) in enumerate(regimes.items()):
        for axis, key in zip(axes[0][2 * number : 2 * number + 2], COLOURS):
            axis.axvline(0, color="black", linewidth=1)
            for arm, method in found.items():
                triple = (0.0, np.nan, np.nan) if arm == REFERENCE else getattr(method, key)
                sure = arm == REFERENCE or stats.side(*triple[1:]) != "undecided"
                bar(axis, triple, place[arm], COLOURS[key], "o", 4.5, open_=not sure)
            unit = "entropy, nats" if key == "entropy_less" else "accuracy"
            axis.set_title(f"{name}: {unit}", fontsize=9)
            axis.set_yticks(list(place.values()), list(place), fontsize=8)
            axis.set_ylim(0.3, len(every) + 0.7)
    counts = sorted({method.seeds for found in regimes.values() for method in found.values()})
    style.caption(
        figure,
        f"testbed, {' to '.join(map(str, sorted({counts[0], counts[-1]})))} seeds a method; entropy of the last"
        f" {evolution.WINDOW} steps and accuracy at the end less GRPO's, paired by seed, mean and 95 % t interval;"
        f" filled where it excludes 0, by itself.\nRows: entropy for a point of accuracy, in {next(iter(regimes))}",
    )
    path = tables.save(results, "family", [_section(name, found) for name, found in regimes.items()], _long(regimes))
    for name, found in regimes.items():
        print(f"{name}\n{cells(found).to_string(index=False)}\n")
    print(f"table: {path}")
    print(f"figure: {style.save(figure, results, 'family')}")


def cells(found: dict[str, Method]) -> pd.DataFrame:
    """A row a method."""
    show = lambda triple, form, p: "" if np.isnan(triple[0]) else ledger.show(triple, form) + " *" * (p < SURE)
    rows = []
    for arm, m in found.items():
        rows.append(
            {
                "method": arm,
                "entropy": f"{m.start:.3f} → {m.end[0]:.3f}",
                "less GRPO's": show(m.entropy_less, "{:+.3f}", m.entropy_p),
                "accuracy": "" if np.isnan(m.accuracy[0]) else f"{m.accuracy[0]:.3f}",
                "less GRPO's ": show(m.accuracy_less, "{:+.3f}", m.accuracy_p),
                "nats a point": "" if arm == REFERENCE else f"{m.place:+.3f}",
                "seeds": str(m.seeds),
            }
        )
    return pd.DataFrame(rows)


def _section(name: str, found: dict[str, Method]) -> tables.Section:
    return tables.Section(
        f"The family in {name}",
        "Differences are paired by seed, mean with 95 % t interval. Nats a point: entropy less GRPO's over the points"
        " of accuracy (0.01) by which the method differs, at least one. * where p is below 0.05 with Holm's correction"
        " over the methods.",
        cells(found),
    )


def _long(regimes: dict[str, dict[str, Method]]) -> pd.DataFrame:
    """One number a row."""
    rows = []
    for name, found in regimes.items():
        for arm, m in found.items():
            for quantity in ("end", "accuracy", "entropy_less", "accuracy_less"):
                mean, low, high = getattr(m, quantity)
                row = {"regime": name, "method": arm, "quantity": quantity, "mean": mean, "low": low, "high": high}
                p = {"entropy_less": m.entropy_p, "accuracy_less": m.accuracy_p}.get(quantity, np.nan)
                rows.append(row | {"p_holm": p, "seeds": m.seeds})
    return pd.DataFrame(rows)


def blocks(results: Path) -> dict[str, str]:
    """Both regimes' tables."""
    regimes = read(results)
    parts = [f"In `{name}`:\n\n{numbers.markdown(cells(found))}" for name, found in regimes.items()]
    return {"family": "\n\n".join(parts)}
