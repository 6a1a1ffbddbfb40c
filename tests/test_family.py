"""The figures of the family and of the controllers: what is said of a run, by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from analysis import fig_auto, fig_family, stats
from analysis.fig_family import NONE


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


def test_a_star_is_what_holm_leaves():
    """The star is of the corrected p, whatever the interval by itself."""
    sure = lambda p: fig_family.Method(0.6, (0.7,) * 3, (0.5,) * 3, (0.1, 0.05, 0.15), (0.1, 0.05, 0.15), 5, p, 1.0)
    found = {"a": sure(0.04), "b": sure(0.06), "grpo": fig_family.Method(0.6, (0.7,) * 3, (0.5,) * 3, NONE, NONE, 5)}
    table = fig_family.cells(found).set_index("method")
    assert [cell.endswith("*") for cell in table["less GRPO's"]] == [True, False, False]
    assert not any("*" in cell for cell in table["less GRPO's "])


def test_the_correction_is_over_a_regimes_methods(tmp_path):
    """Two methods, three seeds, differences to GRPO known: p by hand, the smaller one doubled."""
    levels = {"grpo": [0.0, 0.0, 0.0], "far": [1.0, 1.1, 1.2], "near": [0.1, -0.1, 0.2]}
    for arm, values in levels.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "family" / "coin" / arm / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "entropy/mean": 2.0 + value}) + "\n")
            tested = {"step": 1, "benchmark": "sums", "n": 1, "k": 1, "correct": [seed % 2]}
            (folder / "eval.jsonl").write_text(json.dumps(tested) + "\n")
            (folder / "meta.json").write_text(json.dumps({"status": "finished", "steps": 1}))
    found = fig_family.read(tmp_path)["coin"]
    p = {arm: stats.p_value(np.array(levels[arm])) for arm in ("far", "near")}
    assert found["far"].entropy_p == pytest.approx(2 * p["far"])
    assert found["near"].entropy_p == pytest.approx(p["near"])
    assert math.isnan(found["grpo"].entropy_p) and found["far"].accuracy_p == 1.0
