"""Runs that broke: which they are, their share with its interval, and what the rest say.

A run **broke** when, over its last five steps, `accuracy/mean` is below half of what it was over
its first five, or `verdict/truncated` (responses cut at the token limit before an answer) is a half
or more. A mean over runs of which some broke describes none of them, and its t interval is too
narrow (tests/test_broke.py measures it); so the share of runs that broke stands beside the mean of
the rest.
"""

import numpy as np
import pandas as pd

from . import stats
from .evolution import ends

LEAST_SHARE = 0.5  # of the accuracy at the start
CUT = 0.5  # share of responses that were cut at the token limit
DEFINITION = (
    f"A run broke: over its last five steps accuracy is below {LEAST_SHARE:.0%} of its first five steps', or"
    f" {CUT:.0%} of the responses or more are cut at the token limit."
)


def broke(runs: pd.DataFrame) -> pd.Series:
    """Whether each run of an arm broke, by seed; empty where neither measure is recorded."""
    found = []
    if "accuracy/mean" in runs and runs["accuracy/mean"].notna().any():
        first, last = ends(runs, "accuracy/mean")
        found.append(last < LEAST_SHARE * first.reindex(last.index))  # a run that goes on has no end yet
    if "verdict/truncated" in runs and runs["verdict/truncated"].notna().any():
        found.append(ends(runs, "verdict/truncated")[1] >= CUT)
    return pd.DataFrame(found).any() if found else pd.Series(dtype=bool)


def share(broken: pd.Series) -> stats.Triple:
    """The share of runs that broke, with its Clopper–Pearson interval."""
    count, n = int(broken.sum()), len(broken)
    return count / n, *stats.clopper_pearson(count, n)


def rest(values: pd.Series, *broken: pd.Series) -> pd.Series:
    """`values` by seed, of the seeds whose runs did not break in any of `broken`."""
    gone = {seed for one in broken for seed in one.index[one.to_numpy(bool)]}
    return values[[seed not in gone for seed in values.index]]


def table(runs: pd.DataFrame, known: dict[str, dict[str, pd.Series]], look: dict[str, str]) -> pd.DataFrame:
    """A row per arm: how many runs broke, their share, and entropy and accuracy at the end of the
    rest, also minus the first arm's by seed. `known`: numbers by seed of each arm, the first being
    the reference; `look`: how arms are called. Empty where no run broke."""
    broken = {arm: broke(runs[runs["arm"] == arm]) for arm in known}
    if not any(one.any() for one in broken.values()):
        return pd.DataFrame()
    first, rows = next(iter(known)), []
    for arm, of in known.items():
        if broken[arm].empty:
            continue
        value, low, high = share(broken[arm])
        row = {"arm": look[arm], "broke": f"{int(broken[arm].sum())} of {len(broken[arm])}"}
        row["share [95 %]"] = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        for name, quantity in (("entropy", "entropy, last steps"), ("accuracy", "accuracy, last")):
            if quantity not in of:
                continue
            row[f"{name} of the rest"] = _interval(rest(of[quantity], broken[arm]))
            if arm != first and quantity in known[first]:
                both = rest(stats.paired(of[quantity], known[first][quantity]), broken[arm], broken[first])
                row[f"{name} of the rest − {look[first]}"] = _interval(both, signed=True)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _interval(values: pd.Series, signed: bool = False) -> str:
    if values.empty:
        return "none is left"
    mean, low, high = stats.mean_over_seeds(values)
    form = "{:+.3f}" if signed else "{:.3f}"
    text = form.format(mean)
    known = len(values) >= 3 and np.isfinite([low, high]).all()
    return f"{text} [{form.format(low)}, {form.format(high)}] ({len(values)})" if known else f"{text} ({len(values)})"
