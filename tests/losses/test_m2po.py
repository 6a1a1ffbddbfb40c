import math

import pytest
import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, importance_weighted, one_row, ragged


def test_by_hand():
    """(log r)² of 1, 4 and 9 where a clip could act: their mean is 14/3, of the first two 2.5, of
    the first 1. With τ = 3 the last is cut, with τ = 1 the last two, below 1 all three. The fourth
    token, furthest off but moved against its advantage, always trains."""
    cells = [(1.5, math.e), (-0.5, math.exp(-2)), (1.5, math.exp(3)), (-0.5, math.exp(4))]
    x = one_row(cells)
    for threshold, kept in ((5.0, [0, 1, 2, 3]), (3.0, [0, 1, 3]), (1.0 + 1e-9, [0, 3]), (0.5, [3])):
        loss_BT, weight_BT, _ = evaluated("m2po", x, threshold=threshold)
        weights = torch.tensor([[a * r if i in kept else 0.0 for i, (a, r) in enumerate(cells)]], dtype=torch.float64)
        torch.testing.assert_close(weight_BT, weights)
        torch.testing.assert_close(loss_BT, -weights)


@pytest.mark.parametrize("threshold", [1e-4, 0.01, 0.04, 0.08])
def test_it_cuts_what_must_go_and_no_more(threshold):
    x = ragged()
    _, weight_BT, _ = evaluated("m2po", x, threshold=threshold)
    apt_BT = x.mask_BT.bool() & (x.log_ratio_BT.detach() * x.advantage_BT > 0)
    moment_BT, kept_BT = x.log_ratio_BT.detach().square(), apt_BT & (weight_BT != 0)
    cut = moment_BT[apt_BT & ~kept_BT].sort().values
    assert not kept_BT.any() or moment_BT[kept_BT].mean() <= threshold
    assert len(cut) and torch.cat([moment_BT[kept_BT], cut[:1]]).mean() > threshold
    assert torch.equal(weight_BT == 0, (apt_BT & ~kept_BT) | (x.advantage_BT == 0))


@pytest.mark.parametrize("threshold", [0.01, 0.04, 99.0])
def test_with_the_bounds_it_states_it_has_the_gradient_of_ppo_clip(threshold):
    x = ragged()
    _, weight_BT, facts = evaluated("m2po", x, threshold=threshold)
    low, high = facts["clip_low"][0, 0].item(), facts["clip_high"][0, 0].item()
    _, clipped_BT, _ = evaluated("ppo_clip", x, eps_low=1 - low, eps_high=high - 1)
    torch.testing.assert_close(weight_BT, clipped_BT, rtol=1e-12, atol=1e-12)


def test_with_a_large_threshold_it_cuts_nothing():
    x = ragged()
    assert_same(evaluated("m2po", x, threshold=99.0), importance_weighted(x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("m2po")
