import math

import torch

from .batches import assert_same, evaluated, one_row, ragged


def test_by_hand():
    """π = e⁻¹ and entropies 3, 2 and 1: |Ω| is 2, 1 and 0 times A (1 − e⁻¹), so that with least =
    ¼ the weights are ¼, ½ and 1."""
    x = one_row([(1.5, 1.0)] * 3).but(entropy_BT=torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64))
    loss_BT, weight_BT, facts = evaluated("steer", x, least=0.25)
    expected = torch.tensor([[0.25, 0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(facts["entropy_weight"], expected)
    torch.testing.assert_close(weight_BT, 1.5 * expected)
    torch.testing.assert_close(loss_BT, -1.5 * expected)


def test_what_hardly_moves_the_entropy_is_hardly_weighted():
    """Ω = 0.01 is the largest and counts as a half of the floor 0.02."""
    x = one_row([(1.0, 1.0)])
    x = x.but(entropy_BT=torch.full_like(x.entropy_BT, 1 + 0.01 / (1 - math.exp(-1))))
    _, weight_BT, _ = evaluated("steer", x, least=0.25)
    torch.testing.assert_close(weight_BT, torch.tensor([[0.5]], dtype=torch.float64))


def test_it_is_a_weighted_ppo_clip():
    x = ragged()
    loss_BT, weight_BT, facts = evaluated("steer", x)
    clipped = evaluated("ppo_clip", x, eps_high=0.28)
    factor_BT = facts["entropy_weight"]
    torch.testing.assert_close(weight_BT, factor_BT * clipped[1])
    torch.testing.assert_close(loss_BT, factor_BT * clipped[0])
    inside = factor_BT[x.mask_BT.bool()]
    torch.testing.assert_close(inside.min(), torch.tensor(0.8, dtype=torch.float64))
    assert inside.max() <= 1


def test_with_a_least_weight_of_one_it_is_ppo_clip():
    x = ragged()
    assert_same(evaluated("steer", x, least=1.0), evaluated("ppo_clip", x, eps_high=0.28))
