import torch

from .batches import (
    assert_reinforce_at_ratio_one,
    assert_same,
    evaluated,
    importance_weighted,
    ragged,
    rows,
)


def test_by_hand():
    """A probability of 0.4 that moves by 0.2 is left out in either direction and for either sign;
    one of 0.04 that moves by 0.02 trains. Everybody is pulled back by 2 τ log r."""
    x = rows([2.0, 2.0, -1.0, 2.0], [[1.5], [1.5], [1.5], [0.5]])
    old_BT = torch.tensor([[0.4], [0.04], [0.4], [0.4]], dtype=torch.float64).log()
    x = x.but(old_logprob_BT=old_BT, logprob_BT=(old_BT + x.log_ratio_BT.detach()).requires_grad_())
    loss_BT, weight_BT, facts = evaluated("ipo", x, tau=0.01)
    log_ratio_B = torch.tensor([1.5, 1.5, 1.5, 0.5], dtype=torch.float64).log()
    policy_B = torch.tensor([0.0, 3.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weight_BT[:, 0], policy_B - 0.02 * log_ratio_B)
    torch.testing.assert_close(loss_BT[:, 0], -policy_B + 0.01 * log_ratio_B**2)
    assert facts["other_clip"][:, 0].tolist() == [False, False, True, True]
    torch.testing.assert_close(facts["clip_high"][:2, 0], torch.tensor([1.25, 3.5], dtype=torch.float64))


def test_without_the_pull_it_is_dppo_where_the_token_moved_with_its_advantage():
    x = ragged()
    ours = evaluated("ipo", x, delta=0.02, tau=0.0)
    with_it_BT = (x.logprob_BT.detach() - x.old_logprob_BT) * x.advantage_BT >= 0
    assert_same(ours, evaluated("dppo", x, delta_low=0.02, delta_high=0.02), with_it_BT & x.mask_BT.bool())
    assert not ours[1][~with_it_BT & ((x.logprob_BT.exp() - x.old_logprob_BT.exp()).abs() > 0.02)].any()


def test_with_a_delta_of_one_it_masks_nothing():
    x = ragged()
    assert_same(evaluated("ipo", x, delta=1.0, tau=0.0), importance_weighted(x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("ipo")
