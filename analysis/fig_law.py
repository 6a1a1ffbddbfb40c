"""Entropy against accuracy over all runs with the task's rewards, and the law R = −a·exp(H) + b
(arXiv 2505.22617) fitted to them.

A point is a run at an evaluated step: the benchmarks' mean accuracy against the policy entropy
there. The law is fitted by least squares; a, b and the band are from a bootstrap over whole runs. A
run that two sweeps share counts once. The law is said to fit when a > 0 and the residuals of no
evaluated step are off zero; and the steps apart, it is asked what entropy says about which run ends
up better.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, load, stats, style

SWEEPS = ["algorithms", "beta_grid", "entropy_bonus", "beta_schedule", "one_side"]
WHERE_RECORDED = ["clip_range", "updates_per_step"]
MARKERS = "osD^vP*X"


def draw(results: Path) -> None:
    found = [name for name in WHERE_RECORDED if (results / name).is_dir()]
    points = pd.concat([of_sweep(results, name) for name in SWEEPS + found], ignore_index=True)
    points = once(points)
    fits = bootstrap(points)
    (a, b), bounds = fits[0], np.quantile(fits[1:], [0.025, 0.975], axis=0)
    points["residual"] = points["accuracy"] - (b - a * np.exp(points["entropy"]))
    ends = points[points["step"] == points["step"].max()]
    steps = {step: stats.bootstrap_mean([rows["residual"]]) for step, rows in points.groupby("step")}
    off = [str(step) for step, (_, low, high) in steps.items() if low > 0 or high < 0]
    against = ["a is not above 0"] * int(bounds[0, 0] <= 0) + [
        f"residuals are off zero at step {', '.join(off)}"
    ] * bool(off)
    verdict = "does not fit" if against else "fits"
    r2 = 1 - points["residual"].var() / points["accuracy"].var()
    along = -np.corrcoef(np.exp(ends["entropy"]), ends["accuracy"])[0, 1]
    text = [
        (
            f"R = −a·exp(H) + b: {verdict}{': ' * bool(against)}{' and '.join(against)}; {points['run'].nunique()}"
            f" runs, {len(points)} points"
        ),
        (
            f"a = {a:.3f} [{bounds[0, 0]:.3f}, {bounds[1, 0]:.3f}]   b = {b:.3f} [{bounds[0, 1]:.3f},"
            f" {bounds[1, 1]:.3f}]   R² = {r2:.2f}"
        ),
        *(f"mean residual at step {step!s}: {evolution.show(triple, signed=True)}" for step, triple in steps.items()),
        f"at the last step alone, over {len(ends)} runs: correlation of −exp(H) and accuracy {along:+.2f}",
    ]
    print(*text, sep="\n")

    figure, (law, rest) = plt.subplots(1, 2, figsize=(9.6, 4.2), constrained_layout=True)
    shades = plt.get_cmap("cividis")(np.linspace(0, 0.9, len(steps)))
    for (step, rows), shade, marker in zip(points.groupby("step"), shades, MARKERS):
        look = dict(s=14, marker=marker, color=[shade], edgecolor="#333333", linewidth=0.3)
        law.scatter(rows["entropy"], rows["accuracy"], label=f"step {step!s}", **look)
        rest.scatter(rows["entropy"], rows["residual"], **look)
    x = np.linspace(points["entropy"].min(), points["entropy"].max(), 100)
    lines = fits[1:, 1:] - fits[1:, :1] * np.exp(x)
    law.fill_between(x, *np.quantile(lines, [0.025, 0.975], axis=0), color="#888888", alpha=0.35, linewidth=0)
    law.plot(x, b - a * np.exp(x), color="black", label=f"−{a:.2f}·exp(H) + {b:.2f}, R² = {r2:.2f}")
    rest.axhline(0, color="black", linewidth=1)
    law.set(title=f"R = −a·exp(H) + b: {verdict}", xlabel="policy entropy, nats per token", ylabel="benchmark accuracy")
    rest.set(title="Residuals", xlabel="policy entropy, nats per token", ylabel="accuracy less the law")
    style.legend(figure, len(steps) + 1, law)
    style.caption(
        figure,
        f"testbed, {points['run'].nunique()} runs of {len(SWEEPS + found)} sweeps, {evolution.seeds(points)} an arm;"
        f" entropy: mean of {evolution.WINDOW} steps up to the evaluated one; band: 95 % bootstrap over runs",
    )
    print(f"\nfigure: {style.save(figure, results, 'law')}")


def of_sweep(results: Path, experiment: str) -> pd.DataFrame:
    """The points of a sweep's runs; columns run, arm, seed, step, entropy, accuracy."""
    arms = sorted({f.parent.name for f in load.run_folders(results / experiment) if not load.tests(f).empty})
    if not arms:
        raise load.Missing(f"no runs in {results / experiment}")
    runs, tests = load.metrics(results, experiment, arms), load.evaluations(results, experiment, arms)
    rows = []
    for (arm, seed), seen in tests.groupby(["arm", "seed"]):
        entropy = runs[(runs["arm"] == arm) & (runs["seed"] == seed)].set_index("step")["entropy/mean"]
        entropy.at[0] = entropy.at[1]  # measured before the updates of step 1
        accuracies = seen.groupby("step")["accuracy"].mean()
        for step, accuracy in zip(accuracies.index.to_numpy(), accuracies):
            near = entropy[(entropy.index <= step) & (entropy.index > step - evolution.WINDOW)].mean()
            rows.append(
                {
                    "run": f"{experiment}/{arm}/{seed}",
                    "arm": arm,
                    "seed": seed,
                    "step": step,
                    "entropy": near,
                    "accuracy": accuracy,
                }
            )
    return pd.DataFrame(rows)


def once(points: pd.DataFrame) -> pd.DataFrame:
    """Without the copies of runs that sweeps share."""
    course = points.groupby("run")[["seed", "step", "entropy", "accuracy"]].apply(
        lambda rows: rows.to_numpy().tobytes()
    )
    return points[points["run"].isin(course.drop_duplicates().index)].reset_index(drop=True)


def bootstrap(points: pd.DataFrame, draws: int = 2000) -> np.ndarray:
    """(a, b) of the fit to all runs, then of fits to runs drawn with replacement; shape [1 +
    draws, 2]."""
    x = -np.exp(points["entropy"])
    of_points = pd.DataFrame({"n": 1.0, "x": x, "y": points["accuracy"], "xx": x * x, "xy": x * points["accuracy"]})
    sums = of_points.groupby(points["run"]).sum().to_numpy()
    counts = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    n, x, y, xx, xy = (np.vstack([np.ones(len(sums)), counts]) @ sums).T
    a = (n * xy - x * y) / (n * xx - x * x)
    return np.stack([a, (y - a * x) / n], axis=1)
