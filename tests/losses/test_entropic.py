import torch

from .batches import CELLS, assert_same, evaluated, one_row, ragged


def test_without_alpha_it_is_ppo():
    for x in (one_row(CELLS), ragged()):
        assert_same(evaluated("entropic", x, alpha=0.0), evaluated("ppo_clip", x))


def test_the_pull_by_hand():
    """Two of four tokens are nearly certain, so the term of each counts twice in the mean; its sign
    is not the advantage's, and it has no clip."""
    x = one_row([(1.5, 1.0), (-0.5, 0.5), (-0.5, 2.0), (1.5, 2.0)])
    x = x.but(logprob_BT=torch.tensor([[0.99, 0.98, 0.5, 0.9]], dtype=torch.float64).log().requires_grad_())
    ratio_BT = torch.tensor([[1.0, 0.5, 2.0, 2.0]], dtype=torch.float64)
    x = x.but(old_logprob_BT=x.logprob_BT.detach() - ratio_BT.log())
    base_BT, plain_BT, _ = evaluated("entropic", x)
    loss_BT, weight_BT, facts = evaluated("entropic", x, alpha=-0.25)
    pull_BT = torch.tensor([[2 * 1.0 * 1.5, 2 * 0.5 * 0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, plain_BT - 0.25 * pull_BT, rtol=1e-10, atol=1e-12)
    assert facts["certain"].tolist() == [[True, True, False, False]]
    assert plain_BT[0, 1] == plain_BT[0, 3] == 0  # PPO cuts both
    torch.testing.assert_close(loss_BT - base_BT, 0.25 * pull_BT, rtol=1e-10, atol=1e-12)
