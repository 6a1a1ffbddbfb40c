import math

import torch

from .batches import CELLS, assert_reinforce_at_ratio_one, evaluated, importance_weighted, one_row


def test_weight_and_value_in_every_cell():
    """The gate's slope times r: 4 σ(1 − σ) r A."""
    x = one_row(CELLS)
    loss_BT, weight_BT, facts = evaluated("sapo", x, tau_pos=1.0, tau_neg=3.0)
    values, weights = [], []
    for a, r in CELLS:
        tau = 1.0 if a > 0 else 3.0
        s = 1 / (1 + math.exp(-tau * (r - 1)))
        values.append(-4 / tau * s * a)
        weights.append(4 * s * (1 - s) * r * a)
    torch.testing.assert_close(loss_BT[0], torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(weight_BT[0], torch.tensor(weights, dtype=torch.float64))
    assert not facts


def test_by_hand():
    """At r = 1 + ln 3 with τ = 1 the sigmoid is 3/4: value −4 · 3/4 · A, slope 4 · 3/16 = 3/4."""
    r = 1 + math.log(3)
    loss_BT, weight_BT, _ = evaluated("sapo", one_row([(2.0, r)]), tau_pos=1.0)
    torch.testing.assert_close(loss_BT, torch.tensor([[-6.0]], dtype=torch.float64))
    torch.testing.assert_close(weight_BT, torch.tensor([[0.75 * r * 2.0]], dtype=torch.float64))


def test_a_flat_gate_is_importance_weighting():
    """τ → 0: the gradient of −r·A, and its value but for the constant (2/τ − 1) A."""
    x, tau = one_row(CELLS), 1e-4
    loss_BT, weight_BT, _ = evaluated("sapo", x, tau_pos=tau, tau_neg=tau)
    plain_BT, plain_weight_BT = importance_weighted(x)
    torch.testing.assert_close(weight_BT, plain_weight_BT, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss_BT + (2 / tau - 1) * x.advantage_BT, plain_BT, rtol=0, atol=1e-6)


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("sapo")
