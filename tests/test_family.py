"""The figures of the family and of the controllers: what is said of a run, by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis import fig_auto, fig_family


@pytest.mark.parametrize(
    "entropy, stays, over",
    [
        ([0.5, 0.7, 0.9, 1.2, 1.0, 1.05], 5.0, 0.2),  # within a tenth from step 5; at 1.2 before
        ([0.5, 0.7, 0.95, 1.0, 0.98, 1.0], 3.0, 0.0),
        ([0.5, 0.6, 0.7, 0.8, 0.85, 0.85], math.inf, 0.0),  # never there
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1.0, 0.0),
        ([1.5, 1.2, 0.9, 0.8, 1.0, 1.2], math.inf, 0.2),  # from above: beyond is below
    ],
)
def test_when_it_stays_and_how_far_it_went_beyond(entropy, stays, over):
    target = np.full(6, 1.0)
    assert fig_auto.stays_from(np.array(entropy), target) == stays
    assert fig_auto.overshoot(np.array(entropy), target) == pytest.approx(over)


def test_accuracy_at_equal_entropy():
    """Means over five steps: entropy 0.76 and accuracy 0.12 in those that end with the fifteenth,
    the last that are within 5 % of 0.79."""
    steps = np.arange(20)
    mine = pd.DataFrame({"entropy/mean": 1 - 0.02 * steps, "accuracy/mean": 0.01 * steps})
    assert fig_auto.at_entropy(mine, 0.79) == pytest.approx(0.12)
    assert math.isnan(fig_auto.at_entropy(mine, 2.0))


@pytest.mark.parametrize(
    "entropy, accuracy, place", [(0.1, -0.05, 0.02), (0.1, 0.05, 0.02), (0.1, 0.002, 0.1), (-0.1, 0.0, -0.1)]
)
def test_nats_a_point(entropy, accuracy, place):
    """At least a point, so that nothing is divided by next to nothing."""
    method = fig_family.Method(0.6, (0.7, 0.6, 0.8), (0.5,) * 3, (entropy, 0, 0), (accuracy, 0, 0), 5)
    assert method.place == pytest.approx(place)
    assert fig_family.Method(0.6, (0.7,) * 3, (0.5,) * 3, fig_family.NONE, fig_family.NONE, 5).place == 0.0
