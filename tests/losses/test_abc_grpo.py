import torch

from .batches import CELLS, EPS, assert_reinforce_at_ratio_one, assert_same, evaluated, exact_eps, one_row, ragged


def four(eps_low: float, eps_high: float) -> dict[str, float]:
    """The same bounds for both signs."""
    return dict(eps1=eps_high, eps2=eps_low, eps3=eps_high, eps4=eps_low)


def test_weight_and_value_in_every_cell():
    x = one_row(CELLS)
    loss_BT, weight_BT, facts = evaluated("abc_grpo", x, **four(**exact_eps(x)))
    weights = [a * r if 1 - EPS <= r <= 1 + EPS else 0.0 for a, r in CELLS]
    torch.testing.assert_close(weight_BT, torch.tensor([weights], dtype=torch.float64), rtol=1e-10, atol=1e-12)
    values = [-a * min(max(r, 1 - EPS), 1 + EPS) for a, r in CELLS]
    torch.testing.assert_close(loss_BT, torch.tensor([values], dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert [cell for cell, cut in zip(CELLS, facts["other_clip"][0]) if cut] == [(1.5, 0.5), (-0.5, 2.0)]


def test_each_epsilon_has_its_quadrant():
    """Ratios 2 and ½ for A > 0 and A < 0: one bound at a time is so wide that it does not clip."""
    cells = [(1.5, 2.0), (1.5, 0.5), (-0.5, 2.0), (-0.5, 0.5)]
    for place, name in enumerate(("eps1", "eps2", "eps3", "eps4")):
        wide = {"eps1": 9.0, "eps2": 1.0, "eps3": 9.0, "eps4": 0.99}[name]
        _, weight_BT, _ = evaluated("abc_grpo", one_row(cells), **{name: wide})
        assert weight_BT[0].nonzero()[:, 0].tolist() == [place]


def test_without_the_other_two_bounds_it_is_ppo_clip():
    x = ragged()
    ours = evaluated("abc_grpo", x, eps1=0.3, eps2=1.0, eps3=1e9, eps4=0.1)
    assert_same(ours, evaluated("ppo_clip", x, eps_low=0.1, eps_high=0.3))
    assert not ours[2]["other_clip"].any()


def test_it_is_ppo_clip_but_for_the_tokens_that_only_it_clips():
    x = ragged()
    ours = evaluated("abc_grpo", x)
    assert_same(ours, evaluated("ppo_clip", x), ~ours[2]["other_clip"])
    assert ours[2]["other_clip"].any()


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("abc_grpo")
