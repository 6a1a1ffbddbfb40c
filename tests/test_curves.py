"""results/weights.csv is what the code says, and what it says of a few rules by hand."""

import csv

import pytest

from cegppo import config, curves

RECORDED = {(row["method"], row["old_probability"], row["ratio"]): row for row in csv.DictReader(curves.FILE.open())}
AGAIN = "run `python -m cegppo.curves`, then `python run.py figures --only weights`"


@pytest.mark.parametrize("method", config.methods())
def test_the_recorded_curves_are_those_of_the_code(method):
    of = curves.objective(method)
    for ratio in (0.5, 0.9, 1.5):
        row = RECORDED.get((method, "0.2", f"{ratio:g}"))
        assert row, AGAIN
        for key, sign in (("positive", 1.0), ("negative", -1.0)):
            assert float(row[key]) == pytest.approx(curves.weight(of, 0.2, sign, ratio), abs=1e-3), AGAIN


@pytest.mark.slow
def test_the_whole_file():
    assert curves.FILE.read_text() == curves.text(), AGAIN


@pytest.mark.parametrize(
    "method, ratio, positive, negative",
    [
        ("grpo", 1.5, 0.0, 1.5),
        ("grpo", 0.5, 0.5, 0.0),
        ("cegppo", 1.5, 1.2, 1.5),
        ("cegppo", 0.5, 0.5, 0.4),
        ("gppo", 1.5, 1.28, 1.5),
        ("cispo", 1.5, 1.2, 1.2),
        ("reinforce", 0.5, 1.0, 1.0),
        ("dgpo", 0.5, 0.5, 0.5 * 0.5 / 0.8),
        ("boundary_rescue", 1.3, 0.65, 1.3),  # one of two draws
    ],
)
def test_by_hand(method, ratio, positive, negative):
    of = curves.objective(method)
    found = [curves.weight(of, 0.2, sign, ratio) for sign in (1.0, -1.0)]
    assert found == pytest.approx([positive, negative], abs=1e-9)


def test_no_method_that_is_not_recorded_and_none_too_many():
    assert {method for method, _, _ in RECORDED} == set(config.methods()), AGAIN
