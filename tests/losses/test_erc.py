import torch

from .batches import CELLS, assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged


def test_by_hand():
    """Of entropies that moved by −10, −4, 0, +4 and +10 % the middle three train."""
    x = one_row([(1.5, 1.0)] * 5)
    now_BT = torch.tensor([[0.90, 0.96, 1.0, 1.04, 1.10]], dtype=torch.float64)
    loss_BT, weight_BT, facts = evaluated("erc", x.but(entropy_BT=now_BT))
    torch.testing.assert_close(weight_BT, 1.5 * torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(loss_BT, torch.full_like(loss_BT, -1.5))  # the value stays
    assert facts["entropy_ratio_clip"].tolist() == [[True, False, False, False, True]]


def test_an_unchanged_entropy_leaves_ppo_clip():
    x = one_row(CELLS)
    assert_same(evaluated("erc", x), evaluated("ppo_clip", x, eps_high=0.28))


def test_its_value_is_that_of_ppo_clip_and_its_weight_that_or_nothing():
    x = ragged()
    x = x.but(old_entropy_BT=x.old_entropy_BT * 1.03)
    loss_BT, weight_BT, facts = evaluated("erc", x)
    clipped = evaluated("ppo_clip", x, eps_high=0.28)
    held_BT = facts["entropy_ratio_clip"]
    torch.testing.assert_close(loss_BT, clipped[0])
    torch.testing.assert_close(weight_BT, torch.where(held_BT, 0.0, clipped[1]))
    assert held_BT[x.mask_BT.bool()].any() and not held_BT[x.mask_BT.bool()].all()


def test_a_vanished_entropy_is_no_division_by_zero():
    x = one_row([(1.5, 1.0)])
    gone = torch.zeros_like(x.entropy_BT)
    _, weight_BT, _ = evaluated("erc", x.but(entropy_BT=gone, old_entropy_BT=gone))
    assert weight_BT.item() == 1.5


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("erc")
