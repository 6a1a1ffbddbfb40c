import torch

from cegppo import losses

from .batches import CELLS, assert_reinforce_at_ratio_one, evaluated, rows


def clip(low: float, high: float) -> dict[str, float]:
    """The knobs of the two sides."""
    return {"eps_low": low, "eps_high": high}


def test_by_hand():
    """Geometric means: √(2·2)=2 above, √(0.5·0.5)=0.5 below, √(2·0.5)=1 inside; each with both
    signs of A; a padded token apart."""
    above, below, inside = [2.0, 2.0, 9.0], [0.5, 0.5, 9.0], [2.0, 0.5, 9.0]
    x = rows([1.5, -0.5, 1.5, -0.5, 1.5, -0.5], [above, above, below, below, inside, inside], [[1.0, 1.0, 0.0]] * 6)
    loss_BT, weight_BT, facts = evaluated("gspo", x, **clip(0.25, 0.25))
    weight_B = torch.tensor([0.0, -0.5 * 2, 1.5 * 0.5, 0.0, 1.5, -0.5], dtype=torch.float64)  # s·A, 0 where clipped
    torch.testing.assert_close(weight_BT[:, :2], weight_B[:, None].expand(-1, 2), rtol=1e-12, atol=1e-12)
    value_B = torch.tensor([-1.5 * 1.25, 0.5 * 2, -1.5 * 0.5, 0.5 * 0.75, -1.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(loss_BT[:, 0], value_B, rtol=1e-12, atol=1e-12)
    assert facts["sequence_clip"][:, 0].tolist() == [True, False, False, True, False, False]


def test_it_has_the_gradient_of_its_sequence_objective():
    """Mean over rows of min(s A, clip(s) A) with s = exp(mean log r), differentiated as written
    in the paper."""
    generator = torch.Generator().manual_seed(0)
    x = rows(torch.randn(64, generator=generator).tolist(), (0.6 + torch.rand(64, 7, generator=generator)).tolist())
    _, weight_BT, _ = evaluated("gspo", x, **clip(0.05, 0.08))
    s, a = x.log_ratio_BT.mean(-1).exp(), x.advantage_BT[:, 0]
    written = -torch.minimum(s * a, s.clamp(1 - 0.05, 1 + 0.08) * a).mean()
    (slope_BT,) = torch.autograd.grad(written, x.logprob_BT)
    torch.testing.assert_close(-weight_BT / (7 * 64), slope_BT, rtol=1e-10, atol=1e-14)


def test_of_one_token_it_is_ppo_clip():
    x = rows([a for a, _ in CELLS], [[r] for _, r in CELLS])
    low, high = 0.25 - 1e-9, 0.25 + 1e-9
    _, ours_BT, _ = evaluated("gspo", x, **clip(low, high))
    _, clipped_BT, _ = evaluated("ppo_clip", x, eps_low=low, eps_high=high)
    torch.testing.assert_close(ours_BT, clipped_BT, rtol=1e-12, atol=1e-12)


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("gspo")


def test_its_own_bounds_are_those_of_the_paper():
    assert losses.load("gspo").Params() == losses.load("gspo").Params(**clip(3e-4, 4e-4))


def test_bounds_of_a_response_are_not_stated_as_bounds_of_a_token():
    _, _, facts = evaluated("gspo", rows([1.0], [[2.0, 0.5]]))
    assert "clip_low" not in facts and "clip_high" not in facts
