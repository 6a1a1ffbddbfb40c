"""Every loss file, on value and gradient, in float64: six cells, both boundaries, and a ratio
that underflows."""

import dataclasses

import pytest
import torch

from cegppo import losses
from cegppo.types import TokenBatch

EPS = 0.25  # 1 ± 0.25 and their ratios are exact in binary
# (advantage, ratio): {A > 0, A < 0, A = 0} × {below, at the lower bound, inside, at the upper
# bound, above}
CELLS = [(a, r) for a in (1.5, -0.5, 0.0) for r in (0.5, 0.75, 1.0, 1.25, 2.0)]


def batch(cells, dtype=torch.float64, old=-1.0):
    """One row whose tokens are the cells; log π = log π_old + log r."""
    advantage = torch.tensor([[a for a, _ in cells]], dtype=dtype)
    ratio = torch.tensor([[r for _, r in cells]], dtype=dtype)
    logprob = (old + ratio.log()).requires_grad_()
    return TokenBatch(
        logprob_BT=logprob,
        old_logprob_BT=logprob.detach() - ratio.log(),  # so that the difference is log r up to one rounding
        advantage_BT=advantage,
        mask_BT=torch.ones_like(advantage),
        entropy_BT=torch.ones_like(advantage),
    )


def weights(name, x, **knobs):
    """(loss, −∂loss/∂logprob), flat."""
    module = losses.load(name)
    loss, facts = module.token_loss(x, module.Params(**knobs))
    assert loss.shape == x.mask_BT.shape
    assert all(f.shape == x.mask_BT.shape for f in facts.values())
    (slope,) = torch.autograd.grad(loss.sum(), x.logprob_BT)
    return loss.detach()[0], -slope[0]


def exact_eps(x):
    """ε of each side so that the bound is bit for bit the ratio the loss will compute at the
    boundary cells."""
    ratio = x.ratio_BT.detach()[0]
    return dict(eps_low=float(1 - ratio[1]), eps_high=float(ratio[3] - 1))


def expected_weight(name, a, r, beta1=None, beta2=None):
    low, high = a < 0 and r < 1 - EPS, a > 0 and r > 1 + EPS
    if name == "reinforce":
        return a
    if name == "ppo_clip":
        return 0.0 if low or high else a * r
    if name == "cispo":
        return a * min(max(r, 1 - EPS), 1 + EPS)
    return a * (beta1 * (1 - EPS) if low else beta2 * (1 + EPS) if high else r)


@pytest.mark.parametrize(
    "name, knobs",
    [
        ("reinforce", {}),
        ("ppo_clip", {}),
        ("cispo", {}),
        *(("cegppo", dict(beta1=b1, beta2=b2)) for b1, b2 in [(0.5, 1.0), (0, 0), (1, 1), (0.75, 0.25)]),
    ],
)
def test_weight_in_every_cell(name, knobs):
    x = batch(CELLS)
    clip = {} if name == "reinforce" else exact_eps(x)
    _, weight = weights(name, x, **clip, **knobs)
    expected = torch.tensor([expected_weight(name, a, r, **knobs) for a, r in CELLS], dtype=torch.float64)
    torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-12)


def test_values():
    x = batch(CELLS)
    a, r = (torch.tensor(v, dtype=torch.float64) for v in zip(*CELLS))
    value, _ = weights("ppo_clip", x, **exact_eps(x))
    torch.testing.assert_close(value, torch.maximum(-a * r, -a * r.clamp(1 - EPS, 1 + EPS)), rtol=1e-10, atol=1e-12)
    value, _ = weights("cegppo", x, beta1=0.5, beta2=1.0, **exact_eps(x))
    scale = torch.where((a < 0) & (r < 1 - EPS), 0.5 * (1 - EPS), torch.where((a > 0) & (r > 1 + EPS), 1 + EPS, r))
    torch.testing.assert_close(value, -a * scale, rtol=1e-10, atol=1e-12)
    value, _ = weights("cispo", x, **exact_eps(x))
    torch.testing.assert_close(value, -a * r.clamp(1 - EPS, 1 + EPS) * x.logprob_BT.detach()[0], rtol=1e-10, atol=1e-12)
    value, _ = weights("reinforce", x)
    torch.testing.assert_close(value, -a * x.logprob_BT.detach()[0], rtol=1e-10, atol=1e-12)


def test_cegppo_with_betas_zero_has_the_gradient_of_ppo_clip():
    x = batch([(float(a), float(r)) for a, r in zip(torch.randn(400), torch.rand(400) * 2.5)])
    _, ours = weights("cegppo", x, beta1=0, beta2=0)
    _, clip = weights("ppo_clip", x)
    assert torch.equal(ours, clip)


def test_cegppo_with_betas_one_differs_from_cispo_where_ppo_does_not_clip():
    x = batch(CELLS)
    _, ours = weights("cegppo", x, beta1=1, beta2=1, **exact_eps(x))
    _, cispo = weights("cispo", x, **exact_eps(x))
    differs = [(a, r) for (a, r), u, v in zip(CELLS, ours, cispo) if abs(u - v) > 1e-9]
    assert differs == [(1.5, 0.5), (-0.5, 2.0)]


def rows(advantage_B, ratio_BT, mask_BT=None):
    """A batch of rows with one advantage each."""
    ratio_BT = torch.tensor(ratio_BT, dtype=torch.float64)
    logprob_BT = (-1.0 + ratio_BT.log()).requires_grad_()
    mask_BT = torch.ones_like(ratio_BT) if mask_BT is None else torch.tensor(mask_BT, dtype=torch.float64)
    old_BT = logprob_BT.detach() - ratio_BT.log()
    return TokenBatch(
        logprob_BT,
        old_BT,
        torch.tensor(advantage_B, dtype=torch.float64)[:, None] * mask_BT,
        mask_BT,
        torch.ones_like(mask_BT),
    )


def test_gspo_by_hand():
    """Geometric means: √(2·2)=2 above, √(0.5·0.5)=0.5 below, √(2·0.5)=1 inside; each with both
    signs of A; a padded token apart."""
    above, below, inside = [2.0, 2.0, 9.0], [0.5, 0.5, 9.0], [2.0, 0.5, 9.0]
    x = rows([1.5, -0.5, 1.5, -0.5, 1.5, -0.5], [above, above, below, below, inside, inside], [[1.0, 1.0, 0.0]] * 6)
    module = losses.load("gspo")
    loss, facts = module.token_loss(x, module.Params(eps_low=0.25, eps_high=0.25))
    (slope,) = torch.autograd.grad((loss * x.mask_BT).sum(), x.logprob_BT)
    wanted = torch.tensor([0.0, -0.5 * 2, 1.5 * 0.5, 0.0, 1.5, -0.5], dtype=torch.float64)  # s·A, 0 where clipped
    torch.testing.assert_close(-slope[:, :2], wanted[:, None].expand(-1, 2), rtol=1e-12, atol=1e-12)
    value = torch.tensor([-1.5 * 1.25, 0.5 * 2, -1.5 * 0.5, 0.5 * 0.75, -1.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(loss[:, 0], value, rtol=1e-12, atol=1e-12)
    assert facts["sequence_clip"][:, 0].tolist() == [True, False, False, True, False, False]


def test_gspo_has_the_gradient_of_its_sequence_objective():
    """Mean over rows of min(s A, clip(s) A) with s = exp(mean log r), differentiated as written
    in the paper."""
    torch.manual_seed(0)
    x = rows(torch.randn(64).tolist(), (0.6 + torch.rand(64, 7)).tolist())
    module, p = losses.load("gspo"), losses.load("gspo").Params(eps_low=0.05, eps_high=0.08)
    (ours,) = torch.autograd.grad((module.token_loss(x, p)[0] / (7 * 64)).sum(), x.logprob_BT)
    s, a = x.log_ratio_BT.mean(-1).exp(), x.advantage_BT[:, 0]
    written = -torch.minimum(s * a, s.clamp(1 - p.eps_low, 1 + p.eps_high) * a).mean()
    (theirs,) = torch.autograd.grad(written, x.logprob_BT)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_bounds_of_a_response_are_not_said_to_be_bounds_of_a_token():
    facts = {}
    for name in ("gspo", "ppo_clip"):
        module = losses.load(name)
        facts[name] = module.token_loss(batch(CELLS), module.Params(eps_low=0.1, eps_high=0.3))[1]
    assert not {"clip_low", "clip_high"} & facts["gspo"].keys()
    assert facts["ppo_clip"]["clip_low"].unique().tolist() == [0.9] and facts["ppo_clip"]["clip_high"][0, 0] == 1.3


def test_gspo_of_one_token_is_ppo_clip():
    x = rows([a for a, _ in CELLS], [[r] for _, r in CELLS])
    slopes = []
    for name in ("gspo", "ppo_clip"):
        module = losses.load(name)
        p = module.Params(eps_low=0.25 - 1e-9, eps_high=0.25 + 1e-9)
        slopes += torch.autograd.grad(module.token_loss(x, p)[0].sum(), x.logprob_BT)
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", losses.names())
def test_at_ratio_one_every_loss_is_reinforce(name):
    x = batch([(1.5, 1.0), (-0.5, 1.0), (0.0, 1.0)])
    _, weight = weights(name, x)
    torch.testing.assert_close(weight, x.advantage_BT[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("log_ratio", [-2000.0, -800.0, 800.0])
def test_extreme_ratios_stay_finite(name, log_ratio):
    x = batch([(1.5, 1.0), (-0.5, 1.0)])
    x = x.but(logprob_BT=(x.old_logprob_BT + log_ratio).detach().requires_grad_())
    value, weight = weights(name, x)
    assert value.isfinite().all() and weight.isfinite().all()
    if name == "cegppo" and log_ratio < 0:  # r underflows to 0: the low side still gets its bounded weight
        torch.testing.assert_close(weight, torch.tensor([0.0, -0.5 * 0.5 * 0.8], dtype=torch.float64))


@pytest.mark.parametrize("name", losses.names())
def test_contract(name):
    """Params are frozen, have defaults; the loss mutates nothing and draws no random number."""
    module = losses.load(name)
    assert dataclasses.is_dataclass(module.Params) and module.Params.__dataclass_params__.frozen
    x = batch(CELLS)
    before = {f.name: getattr(x, f.name).clone() for f in dataclasses.fields(x) if getattr(x, f.name) is not None}
    state = torch.get_rng_state()
    module.token_loss(x, module.Params())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], getattr(x, k)) for k in before)
