"""TRL's GRPOTrainer with our losses beside our own runs: the same model, prompts and settings,
twice.

Reads results/trl/runs.csv (benchmarks/trl_runs.py) and the runs of sweeps/map/coin_updates16.yaml,
as far as TRL's go.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import evolution, load, numbers, stats, style

REGIME, SWEEP = "coin_updates16", "map/coin_updates16"
ARMS = ["grpo", "cegppo"]
THEIRS = {arm: f"trl_{arm}" for arm in ARMS}
SHUFFLED = "grpo_shuffled"  # our GRPO with TRL's way of dealing a rollout's responses to its updates
PANELS = {
    "entropy/mean": ("Policy entropy", "nats per token"),
    "accuracy/mean": ("Accuracy of what was sampled", "share; the reward is a coin"),
    "clip/low": ("Outside the clip, low side (A < 0)", "share of tokens"),
    "clip/high": ("Outside the clip, high side (A > 0)", "share of tokens"),
}
# What is compared, one number a run.
QUANTITIES = {
    "entropy, last rollouts": lambda mine: evolution.ends(mine, "entropy/mean")[1],
    "entropy, whole run": lambda mine: mine.groupby("seed")["entropy/mean"].mean(),
    "accuracy, whole run": lambda mine: mine.groupby("seed")["accuracy/mean"].mean(),
    "outside, low, %": lambda mine: 100 * mine.groupby("seed")["clip/low"].mean(),
    "outside, high, %": lambda mine: 100 * mine.groupby("seed")["clip/high"].mean(),
    "length, last rollouts": lambda mine: evolution.ends(mine, "length/mean")[1],
}
BLOCKS = ("trl",)


def runs(results: Path) -> pd.DataFrame:
    """A row a rollout of every run, ours under the arms' names and TRL's under THEIRS. Raises
    Missing."""
    path = results / "trl" / "runs.csv"
    if not path.is_file():
        raise load.Missing(f"no {path}; benchmarks/trl_runs.py makes it")
    theirs = pd.read_csv(path)
    theirs = theirs[theirs["experiment"] == REGIME].drop(columns="experiment")
    ours = load.metrics(results, SWEEP, ARMS)
    theirs["arm"] = theirs["arm"].replace(THEIRS)
    both = pd.concat([ours[theirs.columns], theirs], ignore_index=True)
    if theirs.empty:
        raise load.Missing(f"{path} has no run of {REGIME}")
    last = both.groupby(["arm", "seed"])["step"].max().min()
    return both[both["step"] <= last].reset_index(drop=True)


def look(arm: str) -> tuple[str, dict]:
    """Ours as everywhere, TRL's in the same colour, thin and solid."""
    label, line = style.look(arm.removeprefix("trl_"))
    return (f"{label}, TRL", line | {"linestyle": "-", "linewidth": 0.9}) if arm in THEIRS.values() else (label, line)


def draw(results: Path) -> None:
    found = runs(results)
    arms = [name for arm in ARMS for name in (arm, THEIRS[arm])]
    drawn = evolution.caption(found[found["arm"].isin(arms)], REGIME)
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.8), sharex=True, constrained_layout=True)
    for axis, (key, (title, unit)) in zip(axes.flat, PANELS.items()):
        evolution.over_steps(axis, found, arms, key, look=look)
        axis.set(title=title, ylabel=unit)
    for axis in axes[-1]:
        axis.set_xlabel("rollout")
    style.legend(figure, 4, axes[0][0])
    style.caption(figure, f"{drawn}; moving average over {evolution.WINDOW} rollouts; TRL 1.16.0")
    print(table(found).to_string(index=False), dealt(found))
    print(f"\nfigure: {style.save(figure, results, 'trl')}")


def difference(theirs: pd.Series, ours: pd.Series) -> stats.Triple:
    """(mean of theirs less mean of ours, low, high): Student's t interval with one variance for
    both, so that a single run of theirs says something. Two runs of ours at least."""
    squares = sum(float(((v - v.mean()) ** 2).sum()) for v in (theirs, ours))
    df = len(theirs) + len(ours) - 2
    half = stats.t_quantile((1 + stats.LEVEL) / 2, df) * np.sqrt(squares / df * (1 / len(theirs) + 1 / len(ours)))
    mean = float(theirs.mean() - ours.mean())
    return mean, mean - half, mean + half


def compared(found: pd.DataFrame) -> list[tuple[str, str, pd.Series, pd.Series, stats.Triple]]:
    """(quantity, of what, ours, TRL's, the difference): each algorithm, and what CE-GPPO does to it
    in either, by seed."""
    made = []
    for name, of in QUANTITIES.items():
        known = {arm: of(mine) for arm, mine in found.groupby("arm")}
        pairs = {style.look(arm)[0]: (known[arm], known[THEIRS[arm]]) for arm in ARMS}
        effects = [stats.paired(known[b], known[a]) for a, b in (ARMS, THEIRS.values())]
        pairs["CE-GPPO less GRPO"] = effects[0], effects[1]
        made += [(name, what, ours, theirs, difference(theirs, ours)) for what, (ours, theirs) in pairs.items()]
    return made


def table(found: pd.DataFrame) -> pd.DataFrame:
    """`compared` as text."""
    rows = []
    for name, what, ours, theirs, triple in compared(found):
        means = [f"{v.mean():+.3f}" if "less" in what else f"{v.mean():.3f}" for v in (ours, theirs)]
        rows.append([name, what, *means, evolution.show(triple, signed=True), f"{len(ours)}, {len(theirs)}"])
    return pd.DataFrame(rows, columns=["quantity", "arm", "ours", "TRL", "TRL less ours", "runs"])


def blocks(results: Path) -> dict[str, str]:
    found = runs(results)
    triples = [triple for *_, triple in compared(found)]
    apart = sum(low > 0 or high < 0 for _, low, high in triples)
    facts = (
        f"{found['step'].max()} rollouts; 95 % t intervals over runs, with one variance for both. Intervals that"
        f" exclude 0: {apart} of {len(triples)}; chance alone gives {len(triples) * 0.05:.1f}."
    )
    return {"trl": f"{facts}\n\n{numbers.markdown(table(found))}{dealt(found)}"}


def dealt(found: pd.DataFrame) -> str:
    """What TRL's way of dealing responses to updates does to our GRPO, as text; "" where no run has
    it."""
    if SHUFFLED not in set(found["arm"]):
        return ""
    said = []
    for name in ("entropy, whole run", "outside, low, %", "outside, high, %"):
        mixed, ours = (QUANTITIES[name](found[found["arm"] == arm]) for arm in (SHUFFLED, "grpo"))
        said.append(f"{name.removesuffix(', %')} {evolution.show(difference(mixed, ours), signed=True)}")
    count = found[found["arm"] == SHUFFLED]["seed"].nunique()
    head = f"Our GRPO with responses shuffled over the updates as TRL does, seeds: {count}, less in order"
    return f"\n\n{head}: {'; '.join(said)}."
