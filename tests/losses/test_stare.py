import torch

from .batches import assert_same, evaluated, one_row, ragged


def test_by_hand():
    """A share of 0.4: two of three with A > 0 (⌈1.2⌉), two of four with A < 0 (⌈1.6⌉), those of
    lowest probability; A = 0 is neither."""
    x = one_row([(1.5, 1.0)] * 3 + [(-0.5, 1.0)] * 4 + [(0.0, 1.0)])
    logprob_BT = torch.tensor([[-1.0, -3.0, -2.0, -1.0, -4.0, -5.0, -2.0, -9.0]], dtype=torch.float64)
    x = x.but(logprob_BT=logprob_BT.clone().requires_grad_(), old_logprob_BT=logprob_BT)
    loss_BT, weight_BT, facts = evaluated("stare", x, share=0.4, positive=2.0, negative=0.5)
    factor_BT = torch.tensor([[1.0, 2.0, 2.0, 1.0, 0.5, 0.5, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, factor_BT * x.advantage_BT)
    torch.testing.assert_close(loss_BT, -factor_BT * x.advantage_BT)
    assert facts["surprising"].tolist() == (factor_BT != 1).tolist()


def test_without_weights_it_is_ppo_clip():
    x = ragged()
    ours = evaluated("stare", x, positive=1.0, negative=1.0, share=0.5)
    assert_same(ours, evaluated("ppo_clip", x, eps_high=0.28))
    assert ours[2]["surprising"].any()


def test_with_a_share_of_one_it_is_ppo_clip_by_sign():
    x = ragged()
    ours = evaluated("stare", x, positive=1.3, negative=0.7, share=1.0)
    assert_same(ours, evaluated("sign_weighted", x, positive=1.3, negative=0.7, eps_high=0.28))
