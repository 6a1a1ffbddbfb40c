import torch

from .batches import (
    CELLS,
    EPS,
    assert_reinforce_at_ratio_one,
    assert_same,
    evaluated,
    exact_eps,
    importance_weighted,
    one_row,
    ragged,
)


def test_weight_and_value_in_every_cell():
    x = one_row(CELLS)
    loss_BT, weight_BT, _ = evaluated("dgpo", x, n=2.0, m=3.0, **exact_eps(x))

    def weight(a: float, r: float) -> float:
        if a < 0 and r < 1 - EPS:
            return a * r * (r / (1 - EPS)) ** 2
        return a * r * ((1 + EPS) / r) ** (1 / 3) if a > 0 and r > 1 + EPS else a * r

    weights = torch.tensor([[weight(a, r) for a, r in CELLS]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_BT, -weights, rtol=1e-10, atol=1e-12)


def test_by_hand():
    """m = 2, ε = 0.21: at r = 4 the weight is √(1.21 · 4) = 2.2. n = 1, ε = 0.2: at r = 0.4 it is
    0.4 · 0.5."""
    _, weight_BT, _ = evaluated("dgpo", one_row([(1.0, 4.0), (-1.0, 0.4)]), eps_high=0.21)
    torch.testing.assert_close(weight_BT, torch.tensor([[2.2, -0.2]], dtype=torch.float64))


def test_it_is_continuous_at_its_bounds():
    below, above = 0.8 * (1 - 1e-9), 1.2 * (1 + 1e-9)
    _, weight_BT, _ = evaluated("dgpo", one_row([(-1.0, below), (1.0, above)]), n=3.0, m=1.0)
    torch.testing.assert_close(weight_BT, torch.tensor([[-0.8, 1.2]], dtype=torch.float64), rtol=1e-7, atol=0)


def test_with_m_one_and_n_infinite_it_is_cegppo_with_the_high_side_alone():
    x = ragged()
    assert_same(evaluated("dgpo", x, n=1e9, m=1.0), evaluated("cegppo", x, beta1=0.0, beta2=1.0))


def test_with_n_zero_and_m_infinite_it_is_importance_weighting():
    x = ragged()
    assert_same(evaluated("dgpo", x, n=0.0, m=1e15), importance_weighted(x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("dgpo")
