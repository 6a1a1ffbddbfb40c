"""Entropy against accuracy over all runs with the task's rewards, and the law R = −a·exp(H) + b
(arXiv 2505.22617) fitted to them.

A point is a run at an evaluated step: the benchmarks' mean accuracy against the policy entropy
there. A run that two sweeps share counts once. All runs start from one policy and its one
evaluation, so the start is one point, drawn and not fitted: nothing over seeds can be said of it.
The law is fitted by least squares to the trained steps of each seed by themselves, since runs of
one seed are not independent (same prompts); a, b, R² and the mean residuals are means over seeds
with their t intervals. The law is refuted when a is below 0, or when the residuals of an evaluated
step are off zero after Holm's correction for the number of steps, and undecided when the sign of a
is. And the steps apart, it is asked what entropy says about which run ends up better.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, load, stats, style

SWEEPS = ["algorithms", "beta_grid", "entropy_bonus", "beta_schedule", "one_side"]
WHERE_RECORDED = ["clip_range", "updates_per_step"]
BLOCKS = ("law",)
MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Law:
    """The law fitted, and what speaks against it."""

    points: pd.DataFrame  # of trained steps, with `residual`
    start: pd.Series  # the one evaluation before training
    fits: pd.DataFrame  # a, b, r2 by seed
    sweeps: int

    @property
    def a(self) -> stats.Triple:
        return stats.mean_over_seeds(self.fits["a"])

    @property
    def b(self) -> stats.Triple:
        return stats.mean_over_seeds(self.fits["b"])

    def residuals(self) -> pd.DataFrame:
        """A row an evaluated step: mean, low, high of the residual over seeds, p after Holm."""
        by_seed = self.points.groupby(["step", "seed"])["residual"].mean().unstack()
        rows = [stats.mean_over_seeds(row) for _, row in by_seed.iterrows()]
        made = pd.DataFrame(rows, columns=["mean", "low", "high"], index=by_seed.index)
        return made.assign(p=stats.holm([stats.p_value(row) for _, row in by_seed.iterrows()]))

    def verdict(self) -> tuple[str, str]:
        """refuted, not refuted or undecided; and why."""
        rest = self.residuals()
        off = [str(step) for step in rest.index[rest["p"] < 1 - stats.LEVEL]]
        against = ["a is below 0"] * int(self.a[2] < 0)
        against += [f"residuals are off zero at step {', '.join(off)}"] * bool(off)
        if against:
            return "refuted", " and ".join(against)
        return ("not refuted", "") if self.a[1] > 0 else ("undecided", "the sign of a is")

    def lines(self) -> list[str]:
        verdict, why = self.verdict()
        (a, b), points = (self.a, self.b), self.points
        ends = points[points["step"] == points["step"].max()]
        along = [-np.corrcoef(np.exp(rows["entropy"]), rows["accuracy"])[0, 1] for _, rows in ends.groupby("seed")]
        off = self.start["accuracy"] - (b[0] - a[0] * np.exp(self.start["entropy"]))
        return [
            (
                f"R = −a·exp(H) + b: {verdict}{': ' * bool(why)}{why} ({points['run'].nunique()} runs, {len(points)}"
                f" points, {len(self.fits)} seeds, each fitted by itself)"
            ),
            f"a = {evolution.show(a)}, b = {evolution.show(b)}, R² = {self.fits['r2'].mean():.2f} within a seed",
            *(
                f"mean residual at step {step}: {evolution.show((r['mean'], r['low'], r['high']), signed=True)},"
                f" p {r['p']:.2g} (Holm)"
                for step, r in self.residuals().iterrows()
            ),
            f"the start, one evaluation and not fitted, lies {off:+.3f} off the law",
            (
                f"at the last step alone, {len(ends)} runs: correlation of −exp(H) and accuracy within a seed"
                f" {evolution.show(stats.mean_over_seeds(np.array(along)), signed=True)}"
            ),
        ]


def read(results: Path) -> Law:
    """The law over the runs of all sweeps. Raises Missing."""
    sweeps = SWEEPS + [name for name in WHERE_RECORDED if (results / name).is_dir()]
    points = once(pd.concat([of_sweep(results, name) for name in sweeps], ignore_index=True))
    start, points = points[points["step"] == 0].mean(numeric_only=True), points[points["step"] > 0]
    fits = pd.DataFrame({seed: fit(rows) for seed, rows in points.groupby("seed")}).T
    return Law(points.assign(residual=residual(points, fits)), start, fits, len(sweeps))


def blocks(results: Path) -> dict[str, str]:
    return {"law": "\n".join(f"* {line}" for line in read(results).lines())}


def draw(results: Path) -> None:
    found = read(results)
    points, start, fits, (a, *_), (b, *_) = found.points, found.start, found.fits, found.a, found.b
    print(*found.lines(), sep="\n")
    figure, (law, rest) = plt.subplots(1, 2, figsize=(9.6, 4.2), constrained_layout=True)
    law.scatter(start["entropy"], start["accuracy"], s=40, marker="*", color="black", label="the start, not fitted")
    steps = sorted(points["step"].unique())
    shades = plt.get_cmap("cividis")(np.linspace(0, 0.9, len(steps)))
    for (step, rows), shade, marker in zip(points.groupby("step"), shades, MARKERS):
        look = dict(s=14, marker=marker, color=[shade], edgecolor="#333333", linewidth=0.3)
        law.scatter(rows["entropy"], rows["accuracy"], label=f"step {step!s}", **look)
        rest.scatter(rows["entropy"], rows["residual"], **look)
    x = np.linspace(points["entropy"].min(), max(points["entropy"].max(), start["entropy"]), 100)
    lines = fits["b"].to_numpy()[:, None] - fits["a"].to_numpy()[:, None] * np.exp(x)
    bounds = np.transpose([stats.mean_over_seeds(at)[1:] for at in lines.T])
    law.fill_between(x, *bounds, color="#888888", alpha=0.35, linewidth=0)
    law.plot(x, b - a * np.exp(x), color="black", label=f"−{a:.2f}·exp(H) + {b:.2f}")
    rest.axhline(0, color="black", linewidth=1)
    law.set(title=f"R = −a·exp(H) + b: {found.verdict()[0]}", xlabel="policy entropy, nats per token")
    law.set(ylabel="benchmark accuracy")
    rest.set(title="Residuals", xlabel="policy entropy, nats per token", ylabel="accuracy less the law")
    style.legend(figure, len(steps) + 2, law)
    style.caption(
        figure,
        f"testbed, {points['run'].nunique()} runs of {found.sweeps} sweeps, {evolution.seeds(points)} an arm;"
        f" entropy: mean of {evolution.WINDOW} steps up to the evaluated one;\nline and band: mean and 95 % t interval"
        f" of {len(fits)} fits, one a seed",
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


def fit(points: pd.DataFrame) -> pd.Series:
    """(a, b, r2) of R = b − a·exp(H), by least squares."""
    x, y = -np.exp(points["entropy"]), points["accuracy"]
    a = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    b = y.mean() - a * x.mean()
    return pd.Series({"a": a, "b": b, "r2": 1 - ((y - b - a * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()})


def residual(points: pd.DataFrame, fits: pd.DataFrame) -> pd.Series:
    """Accuracy less the law fitted to the point's own seed."""
    of = fits.loc[points["seed"]].set_index(points.index)
    return points["accuracy"] - (of["b"] - of["a"] * np.exp(points["entropy"]))
