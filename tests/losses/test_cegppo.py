import pytest
import torch

from .batches import CELLS, EPS, assert_reinforce_at_ratio_one, assert_same, evaluated, exact_eps, one_row

EXACTLY = dict(rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta1, beta2", [(0.5, 1.0), (0, 0), (1, 1), (0.75, 0.25)])
def test_weight_and_value_in_every_cell(beta1, beta2):
    """The weight is A times the scale of Eq. 8, and so is the value, with a minus."""
    x = one_row(CELLS)
    loss_BT, weight_BT, _ = evaluated("cegppo", x, beta1=beta1, beta2=beta2, **exact_eps(x))

    def weight(a: float, r: float) -> float:
        low, high = a < 0 and r < 1 - EPS, a > 0 and r > 1 + EPS
        return a * (beta1 * (1 - EPS) if low else beta2 * (1 + EPS) if high else r)

    weights = torch.tensor([[weight(a, r) for a, r in CELLS]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, weights, **EXACTLY)
    torch.testing.assert_close(loss_BT, -weights, **EXACTLY)


def test_with_betas_zero_it_has_the_gradient_of_ppo_clip():
    generator = torch.Generator().manual_seed(0)
    advantage, ratio = torch.randn(400, generator=generator), torch.rand(400, generator=generator) * 2.5
    x = one_row(list(zip(advantage.tolist(), ratio.tolist())))
    _, ours_BT, _ = evaluated("cegppo", x, beta1=0, beta2=0)
    _, clip_BT, _ = evaluated("ppo_clip", x)
    assert torch.equal(ours_BT, clip_BT)


def test_with_betas_one_it_differs_from_cispo_where_ppo_does_not_clip():
    x = one_row(CELLS)
    _, ours_BT, _ = evaluated("cegppo", x, beta1=1, beta2=1, **exact_eps(x))
    _, cispo_BT, _ = evaluated("cispo", x, **exact_eps(x))
    differs = [cell for cell, u, v in zip(CELLS, ours_BT[0], cispo_BT[0]) if abs(u - v) > 1e-9]
    assert differs == [(1.5, 0.5), (-0.5, 2.0)]


@pytest.mark.parametrize("log_ratio", [-2000.0, -800.0])
def test_a_ratio_that_underflows_still_gets_its_bounded_weight(log_ratio):
    x = one_row([(1.5, 1.0), (-0.5, 1.0)])
    x = x.but(logprob_BT=(x.old_logprob_BT + log_ratio).requires_grad_())
    _, weight_BT, _ = evaluated("cegppo", x, beta1=0.5, eps_low=0.2)
    torch.testing.assert_close(weight_BT, torch.tensor([[0.0, -0.5 * 0.5 * 0.8]], dtype=torch.float64))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("cegppo")


def test_with_betas_one_it_is_gppo_as_klear_reasoner_writes_it():
    """min(δ A, clip(δ, (1 − ε_l) / sg(δ) · δ, (1 + ε_h) / sg(δ) · δ) A), arXiv 2508.07629, Eq. 11:
    value and gradient in every cell."""
    x = one_row(CELLS)
    eps = exact_eps(x)
    r_BT, a_BT = x.ratio_BT, x.advantage_BT
    unit_BT = r_BT / r_BT.detach()
    low_BT, high_BT = (1 - eps["eps_low"]) * unit_BT, (1 + eps["eps_high"]) * unit_BT
    clipped_BT = torch.where(r_BT < low_BT, low_BT, torch.where(r_BT > high_BT, high_BT, r_BT))
    written_BT = -torch.minimum(r_BT * a_BT, clipped_BT * a_BT)
    (slope_BT,) = torch.autograd.grad(written_BT.sum(), x.logprob_BT)
    assert_same(evaluated("cegppo", x, beta1=1, beta2=1, **eps), (written_BT.detach(), -slope_BT))
