import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, importance_weighted, ragged, rows


def test_by_hand():
    """Of four tokens the two of largest (log π − mean)(A − mean) are held: here the first and the
    last, whose log-ratios are log 2 and −log 2. Their weight is r·A ∓ β, their value −r·A + β
    log 2."""
    x = rows([1.5, 0.5, -0.5, -1.5], [[2.0], [1.0], [1.0], [0.5]])
    logprob_BT = torch.tensor([[-1.0], [-2.0], [-1.0], [-3.0]], dtype=torch.float64)
    shift_BT = x.log_ratio_BT.detach()
    x = x.but(logprob_BT=logprob_BT.clone().requires_grad_(), old_logprob_BT=logprob_BT - shift_BT)
    loss_BT, weight_BT, facts = evaluated("kl_cov", x, share=0.5, beta=0.25)
    assert facts["covariance_kl"][:, 0].tolist() == [True, False, False, True]
    expected = torch.tensor([2 * 1.5 - 0.25, 0.5, -0.5, 0.5 * -1.5 + 0.25], dtype=torch.float64)
    torch.testing.assert_close(weight_BT[:, 0], expected)
    log2 = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(loss_BT[[0, 3], 0], torch.stack([-3 + 0.25 * log2, 0.75 + 0.25 * log2]))


def test_one_token_at_least_is_held():
    _, _, facts = evaluated("kl_cov", ragged())
    assert facts["covariance_kl"].sum() == 1


def test_with_beta_zero_nothing_is_held():
    x = ragged()
    assert_same(evaluated("kl_cov", x, beta=0.0, share=1.0), importance_weighted(x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("kl_cov", share=1.0, beta=3.0)
