"""The entropy ledger of GRPO and CE-GPPO on the testbed: what each class did to the entropy, at
once and through momentum, and how first order agrees with what was measured.

Reads the runs of sweeps/ledger_20.yaml. A ledger is of a whole looked-at step.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, ledger, load, numbers, stats, style

SWEEP = "ledger_20"
ARMS = ["grpo", "cegppo"]
BLOCKS = ("ledger_20", "ledger_20 agreement", "ledger_20 check")


def draw(results: Path) -> None:
    runs = _runs(results)
    figure, axes = plt.subplots(2, 4, figsize=(13.8, 6.6), constrained_layout=True, width_ratios=(1.25, 1.25, 1, 1))
    for row, arm in zip(axes, ARMS):
        mine = ledger.entries(runs[runs["arm"] == arm])
        bars(row[0], mine)
        over_steps(row[1], mine)
        whole = mine[["ledger/predicted", "dentropy/measured"]].to_numpy().T * ledger.MILLI
        scatter(row[2], {"whole step": whole})
        scatter(row[3], parts(mine))
        row[0].set_ylabel(f"{style.look(arm)[0]}\nΔH of a step, 10⁻³ nats")
        print(ledger.text(runs[runs["arm"] == arm], style.look(arm)[0], momentum(results, arm)), end="\n\n")
    titles = ("By class: at once, and carried (pale)", "Over the run: at once + carried", "Whole steps")
    for axis, title in zip(axes[0], (*titles, "Classes of one update")):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1, 2:]:
        axis.set_xlabel("first order, 10⁻³ nats")
    axes[-1, 1].set_xlabel("step")
    for axis in axes[:, 2:].flat:
        axis.set_ylabel("measured", labelpad=2)
        axis.tick_params(labelleft=True)
    style.legend(figure, 6, axes[0, 1])
    interval = "bars: mean and 95 % t interval over seeds" if runs["seed"].nunique() > 1 else "bars: one seed"
    looked = len(ledger.entries(runs))
    style.caption(
        figure,
        f"testbed, sweep {SWEEP}: {evolution.seeds(runs)} an algorithm, {looked} looked-at steps, all updates of"
        f" a step; {interval}; areas: mean over seeds, not smoothed;\n“before”: what momentum from before the step did;"
        " right: the last update of each looked-at step, each class's part taken alone",
    )
    print(f"figure: {style.save(figure, results, 'ledger')}")


def _runs(results: Path) -> pd.DataFrame:
    runs = load.metrics(results, SWEEP, ARMS)
    if ledger.entries(runs).empty:
        old = f": {ledger.OLD}" if ledger.is_old(runs) else ""
        raise load.Missing(f"no ledger in {results / SWEEP}{old}")
    return runs


def momentum(results: Path, arm: str) -> float:
    """AdamW's β₁ of an arm of the sweep."""
    folder = next(folder for folder in load.run_folders(results / SWEEP) if folder.parent.name == arm)
    return ledger.momentum(folder)


def bars(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """Mean ΔH of a step by class, at once beside carried, and of the momentum from before."""
    names = {**ledger.CLASSES, "momentum": "before"}
    for i, key in enumerate(names):
        fill = style.area(key) if key in style.CLASSES else {"facecolor": "#777777"}
        pair = [(-0.2, "predicted", 1.0), (0.2, "carried", 0.55)] if key in style.CLASSES else [(0, "predicted", 1.0)]
        for shift, kind, alpha in pair:
            values = ledger.by_seed(rows, rows[f"ledger/{kind}_{key}"]) * ledger.MILLI
            mean, low, high = stats.mean_over_seeds(values)
            axis.bar(i + shift, mean, 0.38, alpha=alpha, **fill)
            if not np.isnan(low):
                axis.errorbar(i + shift, mean, [[mean - low], [high - mean]], color="#333333", linewidth=1.0)
    axis.set_xticks(range(len(names)), names.values(), fontsize=8)
    axis.axhline(0, color="#333333", linewidth=0.6)
    axis.grid(axis="x", visible=False)


def over_steps(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """Stacked areas by class, mean over seeds: what raises the entropy above zero, what lowers it
    below; the lines are the classes' sum and what was measured."""
    whole = pd.DataFrame(
        {key: rows[f"ledger/predicted_{key}"] + rows[f"ledger/carried_{key}"] for key in ledger.CLASSES}
    )
    mean = whole.groupby(rows["step"]).mean() * ledger.MILLI
    for sign in (1, -1):
        floor = np.zeros(len(mean))
        for key, name in ledger.CLASSES.items():
            part = np.where(np.sign(mean[key]) == sign, mean[key], 0.0)
            axis.fill_between(mean.index, floor, floor + part, **style.area(key), label=name if sign == 1 else None)
            floor = floor + part
    measured = rows["dentropy/measured"].groupby(rows["step"]).mean() * ledger.MILLI
    axis.plot(mean.sum(axis=1), color="black", linewidth=1.4, label="sum of classes")
    axis.plot(measured, color="black", linewidth=1.4, linestyle=(0, (1, 1)), label="measured, whole step")
    axis.axhline(0, color="#333333", linewidth=0.6)


def parts(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """[2, n] of each class: first order and measured of the update that was taken apart, where it
    holds tokens of the class, 10⁻³ nats."""
    made = {}
    for key in ledger.CLASSES:
        names = [f"ledger/first_order_{key}", f"ledger/measured_{key}"]
        if set(names) <= set(rows):
            pairs = rows[names].dropna().to_numpy().T * ledger.MILLI
            made[key] = pairs[:, (pairs != 0).any(axis=0)]
    return made


def scatter(axis: plt.Axes, points: dict[str, np.ndarray]) -> None:
    """First order against measured; the line is equality."""
    lines = []
    for key, (p, m) in points.items():
        colour = style.CLASSES[key]["facecolor"] if key in style.CLASSES else "#555555"
        marker = "^" if key.startswith("na") else "o"
        axis.scatter(
            p, m, s=13, marker=marker, color=colour, edgecolor="#333333", linewidth=0.3, alpha=0.85, rasterized=True
        )  # fmt: skip
        fit = ledger.agreement(p, m)
        name = ledger.CLASSES.get(key)
        lines.append(f"{f'{name}: ' if name else ''}slope {fit['slope']:.2f}, R² {fit['R2']:.2f}")
    if not any(pairs.size for pairs in points.values()):
        axis.text(0.5, 0.5, "not recorded\n(diagnostics.parts)", transform=axis.transAxes, ha="center", fontsize=8)
        return
    flat = np.concatenate([pairs.ravel() for pairs in points.values()])
    axis.plot([flat.min(), flat.max()], [flat.min(), flat.max()], color="#333333", linewidth=0.8)
    axis.text(0.03, 0.97, "\n".join(lines), transform=axis.transAxes, va="top", fontsize=7.5)
    axis.locator_params(axis="x", nbins=5)


def blocks(results: Path) -> dict[str, str]:
    """The numbers that README.md and docs/entropy.md quote."""
    runs = _runs(results)
    by_arm = {arm: runs[runs["arm"] == arm] for arm in ARMS}
    made = {
        arm: ledger.cells(ledger.table(mine, momentum(results, arm))).set_index("part").drop(columns="eventual")
        for arm, mine in by_arm.items()
    }
    order = list(dict.fromkeys(part for cells in made.values() for part in cells.index))
    wide = pd.concat([cells.reindex(order).add_prefix(f"{style.look(a)[0]}: ") for a, cells in made.items()], axis=1)
    count = {arm: len(ledger.entries(mine)) for arm, mine in by_arm.items()}
    what = f"{evolution.seeds(runs)} an algorithm, {' and '.join(map(str, count.values()))} looked-at steps"
    said = [
        f"* {style.look(arm)[0]}: {ledger.check_text(mine, momentum(results, arm))}. {ledger.facts(mine).capitalize()}."
        for arm, mine in by_arm.items()
    ]
    return {
        "ledger_20": f"{_table(wide)}\n\n({what}.)",
        "ledger_20 agreement": _table(pd.concat([_agreement(arm, mine) for arm, mine in by_arm.items()], axis=1)),
        "ledger_20 check": "\n".join(said),
    }


def _agreement(arm: str, rows: pd.DataFrame) -> pd.DataFrame:
    """How an arm's parts agree, indexed by part, a column a kind."""
    made = ledger.agreement_cells(ledger.agreements(rows)).set_index("part")
    first = [f"{slope}, {r2} ({n})" if n else "" for slope, r2, n in zip(made["slope"], made["R²"], made["n"])]
    name = style.look(arm)[0]
    return pd.DataFrame({f"{name}: slope, R² (n)": first, f"{name}: logit r": made["logit r"]}, index=made.index)


def _table(parts: pd.DataFrame) -> str:
    return numbers.markdown(parts.rename_axis("part").reset_index().fillna(""))
