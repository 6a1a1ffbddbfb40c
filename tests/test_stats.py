"""Statistics, against scipy and by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis import stats
from cegppo import evaluate


@pytest.mark.parametrize("df", [1, 2, 4, 9, 200])
def test_t_quantile(df):
    for p in (0.6, 0.9, 0.975, 0.995):
        assert stats.t_quantile(p, df) == pytest.approx(scipy.stats.t.ppf(p, df), rel=1e-9)


def test_mean_over_seeds():
    values = np.array([0.1, 0.4, 0.2, 0.5, 0.3])
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert stats.mean_over_seeds(values) == pytest.approx((0.3, theirs.low, theirs.high))
    mean, low, high = stats.mean_over_seeds([0.7])
    assert mean == 0.7 and np.isnan(low) and np.isnan(high)
    assert (
        stats.mean_over_seeds([0.1, np.nan]) == (np.inf,) * 3
        and stats.mean_over_seeds([0.1, np.inf, 0.2]) == (np.inf,) * 3
    )


def test_five_seeds_are_too_few_for_a_percentile_bootstrap():
    """The numbers in the module's docstring: 84 % and 94 % of nominal 95 % intervals cover the
    mean of five normal values."""
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(1500, 5))
    covers = lambda interval: interval[1] <= 0 <= interval[2]
    percentile = np.mean([covers(stats.bootstrap_mean([x], draws=500, seed=i)) for i, x in enumerate(samples)])
    t = np.mean([covers(stats.mean_over_seeds(x)) for x in samples])
    assert 0.80 < percentile < 0.87 and 0.93 < t < 0.97


def test_interquartile_mean():
    rng = np.random.default_rng(0)
    for shape in ((5, 6), (3, 1), (4, 4), (1, 7)):
        scores = rng.random(shape)
        assert stats.interquartile_mean(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))
    assert stats.interquartile_mean(np.array([[0.0, 1.0], [2.0, 100.0]])) == 1.5  # one left out at either end
    stack = rng.random((10, 5, 6))
    assert stats.interquartile_mean(stack) == pytest.approx([scipy.stats.trim_mean(s, 0.25, axis=None) for s in stack])


def test_bootstrap_over_seeds_against_scipy():
    rng = np.random.default_rng(1)
    scores = rng.random((8, 3)) + rng.random((8, 1))  # seeds differ as a whole
    estimate, low, high = stats.bootstrap_seeds(scores, stats.interquartile_mean)
    theirs = scipy.stats.bootstrap(
        (np.arange(8),), lambda rows: scipy.stats.trim_mean(scores[rows], 0.25, axis=None), vectorized=False,
        n_resamples=3000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert estimate == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))
    assert low == pytest.approx(theirs.low, abs=0.02) and high == pytest.approx(theirs.high, abs=0.02)
    assert (estimate, low, high) == stats.bootstrap_seeds(scores, stats.interquartile_mean)  # seeded
    # Seeds are kept whole: drawing every column by itself would average a common shift away.
    shifted = np.repeat(rng.random((6, 1)), 20, axis=1)
    mean = lambda s: s.mean((-2, -1))
    _, low, high = stats.bootstrap_seeds(shifted, mean)
    _, one, other = stats.bootstrap_seeds(shifted[:, :1], mean)
    assert (low, high) == pytest.approx((one, other))


def test_paired_differences_use_common_seeds():
    first, second = pd.Series({0: 1.0, 1: 2.0, 3: 5.0}), pd.Series({0: 0.5, 1: 2.5, 2: 9.0})
    assert stats.paired(first, second).to_dict() == {0: 0.5, 1: -0.5}


def test_slope():
    values = np.array([[1.0, 2.0, 3.0], [0.0, 5.0, 0.0], [3.0, 1.0, -4.0]])
    x = np.array([0.0, 0.25, 1.0])
    assert stats.slope(values, x) == pytest.approx([scipy.stats.linregress(x, row).slope for row in values])


def test_side():
    assert stats.side(0.1, 0.2) == "above" and stats.side(-0.2, -0.1) == "below"
    assert stats.side(-0.1, 0.2) == stats.side(0.0, 0.2) == stats.side(np.nan, np.nan) == "undecided"
    assert stats.side(1.5, 1.9, bound=2) == "below" and stats.side(np.inf, np.inf, bound=2) == "above"


def test_pass_at_k_is_the_packages():
    counts = np.random.default_rng(0).integers(0, 9, 40)
    for k in (1, 2, 5, 8):
        assert stats.pass_at_k(8, counts, k) == pytest.approx(evaluate.pass_at_k(8, counts, k), abs=1e-12)
    row = evaluate.summary("sum", 8, counts.tolist(), {})
    assert stats.avg_at_k(8, counts) == pytest.approx(row["avg@8"]) and stats.pass_at_k(8, counts, 4) == pytest.approx(
        row["pass@4"]
    )
    assert stats.pass_at_k(4, np.array([1]), 2) == pytest.approx(0.5)  # 1 − C(3, 2) / C(4, 2)
    with pytest.raises(ValueError):
        stats.pass_at_k(4, np.array([1]), 5)
