import torch

from .batches import CELLS, EPS, assert_reinforce_at_ratio_one, evaluated, exact_eps, one_row


def test_weight_and_value_in_every_cell():
    x = one_row(CELLS)
    loss_BT, weight_BT, _ = evaluated("cispo", x, **exact_eps(x))
    weights = torch.tensor([[a * min(max(r, 1 - EPS), 1 + EPS) for a, r in CELLS]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_BT, -weights * x.logprob_BT.detach(), rtol=1e-10, atol=1e-12)


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("cispo")


def test_one_sided_it_is_scalerl_s():
    """−sg(min(r, ε_max)) · A · log π: no lower bound."""
    x = one_row(CELLS)
    loss_BT, weight_BT, facts = evaluated("cispo", x, eps_low=1.0, eps_high=0.5)
    weights = torch.tensor([[a * min(r, 1.5) for a, r in CELLS]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_BT, -weights * x.logprob_BT.detach(), rtol=1e-10, atol=1e-12)
    assert (facts["clip_low"] == 0).all()  # no ratio is below it
