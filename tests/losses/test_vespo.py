import math

import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged, rows


def test_by_hand():
    """Two tokens of ratio 2 and 0.75: w = 1.5, φ₊ = e³·1.5²·e^(−4.5), φ₋ = e²·1.5³·e^(−3)."""
    x = rows([2.0, -1.0], [[2.0, 0.75], [2.0, 0.75]])
    loss_BT, weight_BT, facts = evaluated("vespo", x)
    phi = [math.exp(3 - 4.5) * 1.5**2, math.exp(2 - 3) * 1.5**3]
    right_BT = torch.tensor([[2 * phi[0]] * 2, [-phi[1]] * 2], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, right_BT)
    torch.testing.assert_close(loss_BT, -right_BT * x.logprob_BT.detach())
    assert not facts


def test_its_weight_is_largest_at_k_over_lambda_and_vanishes_far_away():
    weight = lambda ratio: evaluated("vespo", one_row([(1.0, ratio)]))[1].item()
    top = weight(2 / 3)
    assert top > 1 and all(weight(2 / 3 * f) < top for f in (0.9, 1.1)) and weight(1e-3) < 1e-4 > weight(1e2)


def test_without_powers_it_is_reinforce_whatever_the_ratio():
    x = ragged()
    none = dict(k_pos=0.0, k_neg=0.0, lambda_pos=0.0, lambda_neg=0.0)
    assert_same(evaluated("vespo", x, **none), evaluated("reinforce", x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("vespo")
