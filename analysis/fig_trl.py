"""TRL's GRPOTrainer with our losses beside our own runs: the same model, prompts and settings,
twice.

Reads results/trl/runs.csv (benchmarks/trl_runs.py) and the runs of sweeps/map/coin_updates16.yaml,
the rollouts and seeds that both have.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, load, numbers, stats, style

REGIME, SWEEP = "coin_updates16", "map/coin_updates16"
ARMS = ["grpo", "cegppo"]
THEIRS = {arm: f"trl_{arm}" for arm in ARMS}
IN_ORDER = "grpo_in_order"  # TRL's GRPO without its shuffling: groups stay together in an update
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
    seeds = set.intersection(*(set(both[both["arm"] == arm]["seed"]) for arm in (*ARMS, *THEIRS.values())))
    if not seeds:
        raise load.Missing(f"{path} and the runs of {results / SWEEP} have no seed in common")
    last = both.groupby(["arm", "seed"])["step"].max().min()
    return both[both["seed"].isin(seeds) & (both["step"] <= last)].reset_index(drop=True)


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
    print(table(found).to_string(index=False))
    print(f"\nfigure: {style.save(figure, results, 'trl')}")


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Each quantity of each algorithm here and in TRL, the difference paired by seed, and what
    CE-GPPO does to it in either."""
    rows = []
    for name, of in QUANTITIES.items():
        known = {arm: of(mine) for arm, mine in found.groupby("arm")}
        for arm in ARMS:
            difference = stats.paired(known[THEIRS[arm]], known[arm])
            rows.append([name, style.look(arm)[0], known[arm], known[THEIRS[arm]], difference])
        if IN_ORDER in known:
            difference = stats.paired(known[IN_ORDER], known["grpo"])
            rows.append([name, "GRPO, not shuffled", known["grpo"], known[IN_ORDER], difference])
        effect = [stats.paired(known[b], known[a]) for a, b in (ARMS, THEIRS.values())]
        rows.append([name, "CE-GPPO less GRPO", *effect, stats.paired(effect[1], effect[0])])
    said = [
        [name, arm, *(evolution.over(v, signed="less" in arm) for v in (ours, theirs)), evolution.over(d, signed=True)]
        for name, arm, ours, theirs, d in rows
    ]
    return pd.DataFrame(said, columns=["quantity", "arm", "ours", "TRL", "TRL less ours"])


def blocks(results: Path) -> dict[str, str]:
    found = runs(results)
    counted = evolution.seeds(found[found["arm"].isin(ARMS)])
    facts = f"{counted} an arm, {found['step'].max()} rollouts; 95 % t intervals over seeds."
    return {"trl": f"{facts}\n\n{numbers.markdown(table(found))}"}
