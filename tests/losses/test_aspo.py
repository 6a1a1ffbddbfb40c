import pytest
import torch

from .batches import CELLS, EPS, assert_reinforce_at_ratio_one, assert_same, evaluated, exact_eps, one_row, ragged


def test_weight_and_value_in_every_cell():
    """A > 0: A / r up to the upper bound. A < 0: A r from the lower one. Beyond: constants."""
    x = one_row(CELLS)
    loss_BT, weight_BT, _ = evaluated("aspo", x, **exact_eps(x))
    positive = lambda a, r: (a / r, a / r) if r <= 1 + EPS else (0.0, a / (1 + EPS))
    negative = lambda a, r: (a * r, a * r) if r >= 1 - EPS else (0.0, a * (1 - EPS))
    made = [positive(a, r) if a > 0 else negative(a, r) if a < 0 else (0.0, 0.0) for a, r in CELLS]
    torch.testing.assert_close(weight_BT, torch.tensor([[w for w, _ in made]], dtype=torch.float64))
    torch.testing.assert_close(loss_BT, -torch.tensor([[v for _, v in made]], dtype=torch.float64))


@pytest.mark.parametrize("advantage, ratio", [(1.5, 0.125), (-0.5, 8.0)])
def test_the_cap_keeps_the_gradient(advantage, ratio):
    loss_BT, weight_BT, _ = evaluated("aspo", one_row([(advantage, ratio)]), cap=3.0)
    torch.testing.assert_close(weight_BT, torch.tensor([[3 * advantage]], dtype=torch.float64))
    torch.testing.assert_close(loss_BT, -weight_BT)


def test_of_negative_advantages_it_is_ppo_clip():
    x = ragged()
    assert_same(evaluated("aspo", x, cap=99.0), evaluated("ppo_clip", x), x.advantage_BT < 0)


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("aspo")
