import math

import torch

from .batches import CELLS, assert_reinforce_at_ratio_one, assert_same, evaluated, ragged, rows


def knobs(low: float, high: float) -> dict[str, float]:
    """The bounds `low` and `high` on the ratio, as knobs."""
    return dict(eps_low=-math.log(low), eps_high=math.log(high))


def test_by_hand():
    """A > 0, ratios 4 and 1/4, clip at 2 above: √(2 · 1/4) = √½, and the first token has no
    gradient. A < 0, clip at ½ below: √(4 · ½) = √2, and the second has none."""
    x = rows([1.5, -0.5], [[4.0, 0.25, 9.0], [4.0, 0.25, 9.0]], [[1.0, 1.0, 0.0]] * 2)
    loss_BT, weight_BT, _ = evaluated("gmpo", x, **knobs(0.5, 2.0))
    root = math.sqrt(0.5)
    weights = torch.tensor([[0.0, 1.5 * root], [-0.5 / root, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT[:, :2], weights)
    values = torch.tensor([-1.5 * root, 0.5 / root], dtype=torch.float64)[:, None].expand(-1, 2)
    torch.testing.assert_close(loss_BT[:, :2], values)


def test_it_is_its_sequence_objective():
    """Mean over responses of A exp(mean of the one-sided clipped log-ratios), as written in the
    paper: value and gradient."""
    x = ragged()
    loss_BT, weight_BT, _ = evaluated("gmpo", x, eps_low=0.3, eps_high=0.2)
    a_B = x.advantage_BT[:, 0]
    sign_B1, l_BT = a_B.sign()[:, None], x.log_ratio_BT
    clipped_BT = sign_B1 * torch.minimum(sign_B1 * l_BT, sign_B1 * l_BT.clamp(-0.3, 0.2))
    written_B = -a_B * ((clipped_BT * x.mask_BT).sum(-1) / x.length_B).exp()
    (slope_BT,) = torch.autograd.grad(written_B.mean(), x.logprob_BT)
    scale_BT = x.mask_BT / (x.length_B[:, None] * len(x))
    torch.testing.assert_close(-weight_BT * scale_BT, slope_BT, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close((loss_BT * scale_BT).sum(), written_B.mean().detach(), rtol=1e-10, atol=0)


def test_without_a_clip_it_is_gspo_without_one():
    x = ragged()
    gspo = evaluated("gspo", x, eps_low=0.999, eps_high=99.0)
    assert_same(evaluated("gmpo", x, eps_low=99.0, eps_high=99.0), gspo, x.mask_BT.bool())


def test_of_one_token_it_is_ppo_clip():
    x = rows([a for a, _ in CELLS], [[r] for _, r in CELLS])
    low, high = 0.75 + 1e-9, 1.25 - 1e-9
    assert_same(evaluated("gmpo", x, **knobs(low, high)), evaluated("ppo_clip", x, eps_low=1 - low, eps_high=high - 1))


def test_it_states_its_bounds_as_ratios():
    _, _, facts = evaluated("gmpo", ragged(), **knobs(0.5, 2.0))
    torch.testing.assert_close(facts["clip_low"], torch.full_like(facts["clip_low"], 0.5))
    torch.testing.assert_close(facts["clip_high"], torch.full_like(facts["clip_high"], 2.0))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("gmpo")
