"""Estimates and intervals from a few seeds. Everything seeded, so that a table is the same every
time it is made.

Over seeds the interval is Student's t. A percentile bootstrap of five numbers is too narrow:
nominal 95 % intervals of a mean cover it in 84 % of 4,000 samples of five normal values (89 % of
ten), BCa's in 83 %; t intervals in 94 % (95 %). Bootstrap-t reaches 95 % too, at 1.6 times the
width of t, because a resample of five often has almost no spread. t is no cure for skew: for
lognormal values it covers 82 % (percentile 72 %), for runs of which two in five collapse 91 %
(percentile 87 %). tests/test_stats.py measures the first of these again.

The bootstrap is for what has no formula: many problems of one run (`bootstrap_mean`), and the
interquartile mean, whose interval at five seeds is therefore too narrow as well; captions say so.
"""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np
import pandas as pd

LEVEL = 0.95
Triple = tuple[float, float, float]  # mean, low, high


def bootstrap_mean(
    strata: Sequence[np.ndarray | pd.Series], level: float = LEVEL, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of the strata's means with a percentile bootstrap interval,
    resampled within each stratum."""
    rng = np.random.default_rng(seed)
    means = np.mean([rng.choice(s, size=(draws, len(s))).mean(axis=1) for s in map(np.asarray, strata)], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([np.mean(s) for s in strata])), float(low), float(high)


def bootstrap_seeds(
    scores_SB: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    level: float = LEVEL,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(estimate, low, high) of a statistic of S seeds × B benchmarks, percentile bootstrap; the
    statistic reduces the last two axes.

    Whole seeds are drawn: one run answers every benchmark, so its scores are not independent.
    (rliable draws each column by itself, which is right for a run a task and too narrow here.)
    """
    scores_SB = np.asarray(scores_SB, float)
    chosen = np.random.default_rng(seed).integers(0, len(scores_SB), (draws, len(scores_SB)))
    low, high = np.quantile(statistic(scores_SB[chosen]), [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(scores_SB)), float(low), float(high)


def interquartile_mean(scores_SB: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all scores, over the last two axes: ⌊n/4⌋ of the n are left out
    at either end, as rliable does."""
    flat = np.sort(scores_SB.reshape(*scores_SB.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def mean_over_seeds(values: np.ndarray | pd.Series, level: float = LEVEL) -> tuple[float, float, float]:
    """(mean, low, high) of one number a seed, Student's t interval; NaN bounds for a single seed.

    A value that is not finite makes all three infinite: a run that diverged is no sample of a
    normal quantity.
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return np.inf, np.inf, np.inf
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = t_quantile((1 + level) / 2, len(values) - 1) * float(values.std(ddof=1)) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def t_quantile(p: float, df: int) -> float:
    """Quantile p > 0.5 of Student's t with `df` degrees of freedom."""
    area = _t_area(df)
    low, high, target = 0.0, np.pi / 2, (2 * p - 1) * area(np.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if area(middle) < target else (low, middle)
    return float(np.sqrt(df) * np.tan(low))


def t_outside(t: float, df: int) -> float:
    """Probability that Student's t with `df` degrees of freedom is further from 0 than t ≥ 0: the
    p-value of a two-sided test."""
    area = _t_area(df)
    return float(1 - area(np.arctan(t / np.sqrt(df))) / area(np.pi / 2))


def _t_area(df: int) -> Callable[[float], float]:
    """∝ P(0 < T < t), as a function of arctan(t / √df)."""
    # P(0 < T < t) is ∝ ∫ cos(θ)^(df − 1) up to θ = arctan(t / √df): smooth and bounded, so 64 Gauss
    # points are exact to 1e-12.
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return lambda angle: angle / 2 * (weights @ np.cos(angle / 2 * (nodes + 1)) ** (df - 1))


def p_value(values: np.ndarray | pd.Series, bound: float = 0.0, inside: bool = False) -> float:
    """The least α whose 1 − α t interval of the mean over seeds decides on which side of `bound`
    the mean lies; `inside`: whether it lies within ±bound or beyond. NaN where no interval is to
    be had."""
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return np.nan
    mean, error = float(values.mean()), float(values.std(ddof=1)) / np.sqrt(len(values))
    distance = abs(bound - (abs(mean) if inside else mean))
    return float(distance == 0) if error == 0 else t_outside(distance / error, len(values) - 1)


def clopper_pearson(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) of a share of which `count` of `n` were seen: the exact interval (Clopper and
    Pearson 1934), which covers at least `level`."""
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else _root(lambda p: 1 - _at_most(count - 1, n, p) - tail)
    high = 1.0 if count == n else _root(lambda p: tail - _at_most(count, n, p))
    return low, high


def share_p(count: int, n: int, bound: float) -> float:
    """The least α whose 1 − α Clopper–Pearson interval decides on which side of `bound` the share
    lies."""
    return min(1.0, 2 * min(_at_most(count, n, bound), 1 - _at_most(count - 1, n, bound)))


def _at_most(count: int, n: int, p: float) -> float:
    """P(X ≤ count) of a binomial X."""
    return float(sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count + 1)))


def _root(rises: Callable[[float], float]) -> float:
    """Where a function that rises over [0, 1] is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) < 0 else (low, middle)
    return low


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values (1979), in the order given; NaN stays NaN and does not count. A
    verdict at adjusted p < α keeps the chance of one false verdict among all below α."""
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p, kind="stable") if np.isfinite(p[i])]
    made, largest = np.full(len(p), np.nan), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        made[i] = largest
    return made


def paired(first: pd.Series, second: pd.Series) -> pd.Series:
    """First less second by seed, for the seeds that both have. Both are indexed by seed."""
    return (first - second).dropna()


def slope(values_SX: np.ndarray, x_X: np.ndarray) -> np.ndarray:
    """Least-squares slope over x of each row (seed), [S]."""
    centred = np.asarray(x_X, float) - np.mean(x_X)
    return np.asarray(values_SX, float) @ centred / (centred @ centred)


def side(low: float, high: float, bound: float = 0.0) -> str:
    """Where a whole interval lies: `above` or `below` the bound, or `undecided` when it contains
    or touches it, or is unknown."""
    return "above" if low > bound else "below" if high < bound else "undecided"


def band(low: float, high: float, margin: float) -> str:
    """`within` when a whole interval lies inside ±margin, `outside` when it lies wholly outside on
    one side, else `undecided`. Two one-sided tests at half the level's error each."""
    if -margin < low and high < margin:
        return "within"
    return "outside" if low > margin or high < -margin else "undecided"


def avg_at_k(k: int, correct: np.ndarray) -> float:
    """Mean accuracy from the correct ones among k samples of each problem."""
    return float(np.mean(correct) / k)


def pass_at_k(n: int, correct: np.ndarray, k: int) -> float:
    """Unbiased pass@k from n samples a problem, mean over problems: 1 − C(n − c, k) / C(n, k)
    (arXiv 2107.03374, Eq. 1); 1 ≤ k ≤ n."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    left = n - np.asarray(correct, float)[:, None] - np.arange(k)
    return float(1 - np.prod(np.clip(left, 0, None) / (n - np.arange(k)), axis=1).mean())
