import math

import torch

from .batches import (
    CELLS,
    assert_reinforce_at_ratio_one,
    assert_same,
    evaluated,
    importance_weighted,
    one_row,
    ragged,
    rows,
)


def test_by_hand():
    """A ratio of 1.5 on a token of probability 0.4 moves it by 0.2, on one of 0.04 by 0.02: with δ
    = 0.15 the first is left out, the second trains. The same downwards, where A < 0; and neither
    where the token moved against its advantage."""
    x = rows([2.0, 2.0, -1.0, -1.0, -1.0, 2.0], [[1.5], [1.5], [0.5], [0.5], [1.5], [0.5]])
    old_BT = torch.tensor([[0.4], [0.04], [0.4], [0.04], [0.4], [0.4]], dtype=torch.float64).log()
    x = x.but(old_logprob_BT=old_BT, logprob_BT=(old_BT + x.log_ratio_BT.detach()).requires_grad_())
    loss_BT, weight_BT, facts = evaluated("dppo", x)
    expected = torch.tensor([0.0, 3.0, 0.0, -0.5, -1.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weight_BT[:, 0], expected)
    torch.testing.assert_close(loss_BT, -weight_BT)
    torch.testing.assert_close(facts["clip_high"][:2, 0], torch.tensor([1.375, 4.75], dtype=torch.float64))
    torch.testing.assert_close(facts["clip_low"][2:4, 0], torch.tensor([0.625, -2.75], dtype=torch.float64))


def test_its_bounds_are_where_it_masks():
    x = ragged()
    _, weight_BT, facts = evaluated("dppo", x, delta_low=0.02, delta_high=0.02)
    low_BT = (x.advantage_BT < 0) & (x.ratio_BT < facts["clip_low"])
    high_BT = (x.advantage_BT > 0) & (x.ratio_BT > facts["clip_high"])
    assert torch.equal(weight_BT == 0, low_BT | high_BT | (x.advantage_BT == 0)) and low_BT.any() and high_BT.any()


def test_of_one_old_probability_it_has_the_gradient_of_ppo_clip():
    x, old = one_row(CELLS), math.exp(-1.0)
    _, ours_BT, _ = evaluated("dppo", x, delta_low=0.3 * old, delta_high=0.3 * old)
    _, clipped_BT, _ = evaluated("ppo_clip", x, eps_low=0.3, eps_high=0.3)
    torch.testing.assert_close(ours_BT, clipped_BT, rtol=1e-12, atol=1e-12)


def test_with_a_delta_of_one_it_masks_nothing():
    x = ragged()
    assert_same(evaluated("dppo", x, delta_low=1.0, delta_high=1.0), importance_weighted(x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("dppo")
