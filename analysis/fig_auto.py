"""Controllers of the entropy against their targets. Reads results/auto/<regime>/.

Of each run with a controller, of its entropy smoothed over a few steps: from which step on it stays
within a tenth of the target, how far beyond the target it went after it had come to it (overshoot),
and by the controller's own metrics how much of what was wanted was within reach. Of every run its
accuracy at the end, and at equal entropy: in the last steps in which its entropy was GRPO's end.
"""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, load, numbers, stats, style, tables

BLOCKS = ("auto",)
FOLDER, REFERENCE = "auto", "grpo"
FIRST = ("coin_large_step", "coin", "coin_updates16", "task")
SIDES = ("above", "below")  # of where GRPO ends: the target of an arm whose name ends so
NEAR = 0.1  # of the target, within which it is reached
EQUAL = 0.05  # of GRPO's entropy at the end, within which entropy is equal
LABELS = {
    "grpo": "GRPO", "cegppo": "CE-GPPO (0.5, 1)", "auto": "cegppo_auto", "auto_logit": "cegppo_auto, logit levers",
    "auto_logit_near": "cegppo_auto, logit levers, nearer target", "bonus": "adaptive_bonus",
}  # fmt: skip


def stays_from(entropy: np.ndarray, target: np.ndarray) -> float:
    """The step (1 the first) from which the entropy stays within NEAR of its target to the end; inf
    where it does not."""
    out = np.flatnonzero(np.abs(entropy - target) > NEAR * target)
    first = int(out[-1]) + 1 if len(out) else 0
    return float(first + 1) if first < len(entropy) else np.inf


def overshoot(entropy: np.ndarray, target: np.ndarray) -> float:
    """How far beyond the target, as a share of it, the entropy went after it had first come to it
    from where it began; 0 where it never came to it."""
    gap = (entropy - target) / target * (1 if entropy[0] < target[0] else -1)
    there = np.flatnonzero(gap >= 0)
    return float(gap[there[0] :].max()) if len(there) else 0.0


def at_entropy(mine: pd.DataFrame, wanted: float) -> float:
    """Training accuracy over the last WINDOW steps whose mean entropy is within EQUAL of `wanted`;
    NaN where there are none."""
    smoothed = mine[["entropy/mean", "accuracy/mean"]].rolling(evolution.WINDOW).mean()
    equal = smoothed.loc[(smoothed["entropy/mean"] - wanted).abs() <= EQUAL * wanted]
    return float(equal["accuracy/mean"].iloc[-1]) if len(equal) else np.nan


def _run(mine: pd.DataFrame, wanted: float) -> dict[str, float]:
    """What is said of one run; `wanted` is GRPO's entropy at the end, of its seed."""
    made = {"end": float(mine["entropy/mean"].iloc[-evolution.WINDOW :].mean()), "equal": at_entropy(mine, wanted)}
    if "controller/target" in mine and mine["controller/target"].notna().any():
        entropy = mine["entropy/mean"].rolling(evolution.WINDOW, min_periods=1).mean().to_numpy()
        target = mine["controller/target"].ffill().bfill().to_numpy()
        made |= {"target": target[-1], "stays": stays_from(entropy, target), "over": overshoot(entropy, target)}
        made["error"] = float(np.abs(entropy - target)[len(target) // 2 :].mean())
        if "controller/reach" in mine:
            made["reach"] = float(mine["controller/reach"].iloc[len(mine) // 2 :].mean())
    return made


def read(results: Path) -> dict[str, tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """{regime: (metrics, evaluations, a row a run of what is said of it)}. Raises Missing."""
    root, made = results / FOLDER, {}
    there = [path.name for path in load.regimes(root)]
    for name in sorted(there, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        arms = list(dict.fromkeys(folder.parent.name for folder in load.run_folders(root / name)))
        if REFERENCE not in arms:
            continue
        arms = [REFERENCE, *(arm for arm in arms if arm != REFERENCE)]
        runs, tests = load.metrics(root, name, arms), load.evaluations(root, name, arms)
        ends = evolution.ends(runs[runs["arm"] == REFERENCE], "entropy/mean")[1]
        rows = []
        for arm, (seed, end) in itertools.product(arms, ends.items()):
            mine = runs[(runs["arm"] == arm) & (runs["seed"] == seed)].dropna(axis=1, how="all")
            if len(mine):
                rows.append({"arm": arm, "seed": seed} | _run(mine, float(end)))
        made[name] = (runs, tests, pd.DataFrame(rows))
    if not made:
        raise load.Missing(f"no regime with runs of {REFERENCE} in {root} (sweeps/auto/)")
    return made


def label(arm: str) -> str:
    name, side = parts(arm)
    return LABELS.get(name, name) + (f", target {side}" if side else "")


def cells(runs: pd.DataFrame, tests: pd.DataFrame, said: pd.DataFrame) -> pd.DataFrame:
    """A row an arm, GRPO first; means over seeds, with intervals from three up."""
    last = evolution.last_evaluation(tests) or 0
    score = {arm: evolution.accuracy_at(tests[tests["arm"] == arm], last) for arm in said["arm"].unique()}
    reference, rows = said[said["arm"] == REFERENCE].set_index("seed"), []
    for arm, mine in said.groupby("arm", sort=False):
        by_seed = mine.set_index("seed")
        known = set(by_seed.dropna(axis=1, how="all"))
        row = {"arm": label(str(arm)), "target": f"{by_seed['target'].mean():.2f}" if "target" in known else ""}
        row["entropy, end"] = evolution.over(by_seed["end"])
        row |= {"stays within 10 % from": "", "overshoot": "", "error, 2nd half": "", "within reach": ""}
        if "target" in known:
            reached = by_seed["stays"][np.isfinite(by_seed["stays"])]
            when = f", step {reached.median():.0f}" if len(reached) else ""
            row["stays within 10 % from"] = f"{len(reached)} of {len(by_seed)}{when}"
            row["overshoot"] = f"{by_seed['over'].mean():.0%}"
            row["error, 2nd half"] = f"{by_seed['error'].mean():.3f}"
        if "reach" in known:
            row["within reach"] = f"{by_seed['reach'].mean():.0%}"
        row |= {"accuracy, end": evolution.over(score[arm]), "less GRPO's": "", "at GRPO's entropy, less": ""}
        if arm != REFERENCE:
            equal = stats.paired(by_seed["equal"].dropna(), reference["equal"].dropna())
            row["less GRPO's"] = evolution.over(stats.paired(score[arm], score[REFERENCE]), signed=True)
            row["at GRPO's entropy, less"] = (
                f"{evolution.over(equal, signed=True)} ({len(equal)})" if len(equal) else "never"
            )
        rows.append(row | {"seeds": str(len(by_seed))})
    return pd.DataFrame(rows)


def parts(arm: str) -> tuple[str, str]:
    """(what sets the entropy, above or below) by the arm's name; "" where it has no target."""
    kind, _, side = arm.rpartition("_")
    return (kind, side) if side in SIDES else (arm, "")


def draw(results: Path) -> None:
    regimes = read(results)
    every = list(dict.fromkeys(arm for _, _, said in regimes.values() for arm in said["arm"]))
    kinds = list(dict.fromkeys(parts(arm)[0] for arm in every))  # the same look on either side
    looks = style.looks({kind: LABELS.get(kind, kind) for kind in kinds})
    sides = [side for side in SIDES if side in {parts(arm)[1] for arm in every}] or [""]
    figure, axes = plt.subplots(
        len(sides), len(regimes), figsize=(0.6 + 4.3 * len(regimes), 1.0 + 2.9 * len(sides)), sharex="col",
        constrained_layout=True, squeeze=False,
    )  # fmt: skip
    for column, (name, (runs, _, said)) in zip(axes.T, regimes.items()):
        for axis, side in zip(column, sides):
            arms = [arm for arm in said["arm"].unique() if parts(arm)[1] in ("", side)]
            aimed = [arm for arm in arms if parts(arm)[1]]
            if side and not aimed:  # no target on this side here
                axis.set_visible(False)
                continue
            look = lambda arm: looks[parts(arm)[0]]
            evolution.over_steps(axis, runs, arms, "entropy/mean", look=look, within=(0, np.inf))
            for target in sorted(set(said.loc[said["arm"].isin(aimed), "target"])) if aimed else ():
                axis.axhspan(target * (1 - NEAR), target * (1 + NEAR), color="black", alpha=0.06, linewidth=0)
                axis.axhline(target, color="black", linewidth=0.8, linestyle=(0, (4, 3)))
            axis.set(title=f"{name}, target {side}" if side else name, ylabel="entropy, nats per token")
        lowest = [axis for axis in column if axis.get_visible()][-1]
        lowest.set_xlabel("step")
        lowest.tick_params(labelbottom=True)
    style.legend(figure, 3, *axes[0])
    style.caption(
        figure,
        f"testbed; {evolution.caption(regimes[next(iter(regimes))][0], 'controllers')}; moving average over"
        f" {evolution.WINDOW} steps; dashed: the targets, grey: within {NEAR:.0%} of them",
    )
    sections = [tables.Section(f"Controllers in {name}", NOTE, cells(*found)) for name, found in regimes.items()]
    long = pd.concat([found[2].assign(regime=name) for name, found in regimes.items()], ignore_index=True)
    path = tables.save(results, "auto", sections, long, latex=False)
    for section in sections:
        print(f"{section.title}\n{section.cells.to_string(index=False)}\n")
    print(f"table: {path}")
    print(f"figure: {style.save(figure, results, 'auto')}")


NOTE = (
    "Stays: in how many runs the smoothed entropy comes within 10 % of the target and stays there to the end, and the"
    " median of the steps from which. Overshoot: beyond the target, after coming to it. Error: mean distance from the"
    " target in the second half, nats. Within reach: what the controller says of its levers, mean of the second half."
    " At GRPO's entropy: training accuracy in the last steps whose entropy is within 5 % of GRPO's end, less GRPO's"
    " (how many seeds have such steps)."
)


def blocks(results: Path) -> dict[str, str]:
    parts = [f"In `{name}`:\n\n{numbers.markdown(cells(*found))}" for name, found in read(results).items()]
    return {"auto": "\n\n".join(parts)}
