"""What a new user met in the first hour and no longer meets; numbered as they were found."""

import numpy as np
import pandas as pd
import pytest

from analysis import evolution, health


@pytest.mark.parametrize("steps, width", [(1, 1), (2, 1), (5, 2), (9, 4), (10, 5), (60, 5)])
def test_01_the_first_and_the_last_steps_do_not_overlap(steps, width):
    values = np.arange(steps, dtype=float)
    runs = pd.DataFrame({"step": np.arange(steps) + 61, "seed": 0, "entropy/mean": values})  # a fork begins late
    start, end = (ends.item() for ends in evolution.ends(runs, "entropy/mean"))
    assert start == values[:width].mean() and end == values[-width:].mean()
    assert health._ends(runs, "entropy/mean") == (start, end) and evolution.window_of(runs) == width
