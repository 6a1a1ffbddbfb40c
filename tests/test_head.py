"""The blockwise head against the plain way in float64: values, gradients, extreme logits,
repeated backward passes, memory."""

import pytest
import torch

from cegppo.model.head import GONE, PLAIN, Scaling, head_statistics, proxy_logprob, token_statistics

N, V, H = 37, 301, 24
BLOCK = 4 * 5 * V  # bytes: blocks of five tokens of the whole (small) vocabulary
FIELDS = ("logprob_N", "entropy_N", "sum_p2_N", "sum_p2_logp_N")


def inputs(dtype=torch.float64, scale=1.0, seed=0):
    """(hidden states, weight, bias, tokens); `scale` is the standard deviation of the logits."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g, dtype=torch.float64)
    weight = torch.randn(V, H, generator=g, dtype=torch.float64) * scale / H**0.5
    bias = torch.randn(V, generator=g, dtype=torch.float64)
    return *(v.to(dtype).requires_grad_() for v in (hidden, weight, bias)), torch.randint(V, (N,), generator=g)


def slopes():
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, N, generator=g, dtype=torch.float64)


def gradients(s, wanted):
    policy_N, entropy_N = (v.to(s.logprob_N.dtype) for v in slopes())
    return torch.autograd.grad([s.logprob_N, s.entropy_N], wanted, [policy_N, entropy_N], retain_graph=True)


@pytest.fixture(params=[64, 10**9], ids=["blocks of the vocabulary", "whole vocabulary"])
def width(request, monkeypatch):
    monkeypatch.setattr("cegppo.model.head.BLOCK_VOCABULARY", {"cpu": request.param, "cuda": request.param})


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_the_plain_way_in_float64(dtype, bound, scale, temperature, width):
    *made, token = inputs(dtype, scale)
    exact = [v.detach().double().requires_grad_() for v in made]  # the same numbers: what is tested is the arithmetic
    hidden, weight, bias = made
    s = head_statistics(hidden, weight, token, bias, temperature, entropy_grad=True, most_bytes=BLOCK)
    reference = token_statistics((exact[0] @ exact[1].T + exact[2]) / temperature, token, entropy_grad=True)
    for name in FIELDS:
        value, right = getattr(s, name), getattr(reference, name)
        assert value.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
        assert torch.allclose(value.double(), right, rtol=bound, atol=bound), name
    for value, right in zip(gradients(s, made), gradients(reference, exact)):
        assert value.dtype == dtype
        assert (value.double() - right).norm() <= bound * right.norm()


def test_by_hand():
    """Logits (log 1, log 2, log 5): π = (1/8, 1/4, 5/8)."""
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log()[:, None].requires_grad_()
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    s = head_statistics(hidden, weight, torch.tensor([1]), entropy_grad=True)
    p = torch.tensor([1 / 8, 1 / 4, 5 / 8], dtype=torch.float64)
    assert torch.allclose(s.logprob_N, p[1].log())
    assert torch.allclose(s.entropy_N, -(p * p.log()).sum())
    assert torch.allclose(s.sum_p2_N, torch.tensor(1 / 64 + 1 / 16 + 25 / 64, dtype=torch.float64))
    assert torch.allclose(s.sum_p2_logp_N, (p**2 * p.log()).sum())
    (by_logprob,) = torch.autograd.grad(s.logprob_N, weight, retain_graph=True)
    assert torch.allclose(by_logprob[:, 0], torch.tensor([-1 / 8, 3 / 4, -5 / 8], dtype=torch.float64))
    (by_entropy,) = torch.autograd.grad(s.entropy_N, weight)
    assert torch.allclose(by_entropy[:, 0], -p * (p.log() + s.entropy_N.detach()))


def test_extreme_logits(width):
    """A certain token, an impossible one, a forbidden one (bias −∞), logits of 10⁴ and rows that
    change their maximum in each block."""
    hidden, weight, bias, token = inputs(torch.float32, scale=3000.0)
    with torch.no_grad():
        bias[::7] = -1e6  # the plain way's entropy has no gradient (nan) at −∞ itself
        weight[:, 0] += torch.linspace(-2000, 2000, V)
        hidden[:, 0] = 1.0
        token[token % 7 == 0] += 1
    exact = [v.detach().double().requires_grad_() for v in (hidden, weight, bias)]
    s = head_statistics(hidden, weight, token, bias, entropy_grad=True, most_bytes=BLOCK)
    reference = token_statistics(exact[0] @ exact[1].T + exact[2], token, entropy_grad=True)
    for name in FIELDS:  # logits of 10⁴ are known to 10⁻³ in fp32
        assert torch.allclose(getattr(s, name).double(), getattr(reference, name), rtol=1e-5, atol=1e-2), name
    for value, right in zip(gradients(s, (hidden, weight)), gradients(reference, exact[:2])):
        assert value.isfinite().all()
        assert (value.double() - right).norm() <= 1e-3 * right.norm()


def test_a_forbidden_token_is_no_token(width):
    """A logit of −∞ leaves everything as if the token were not in the vocabulary."""
    hidden, weight, bias, token = inputs()
    kept = torch.arange(V) % 3 != 0
    token = kept.nonzero()[:, 0][token % int(kept.sum())]
    s = head_statistics(hidden, weight, token, torch.where(kept, bias, -torch.inf), entropy_grad=True, most_bytes=BLOCK)
    left = head_statistics(hidden, weight[kept], kept.cumsum(0)[token] - 1, bias[kept], entropy_grad=True)
    for name in FIELDS:
        assert torch.allclose(getattr(s, name), getattr(left, name), rtol=1e-12), name
    for value, right in zip(gradients(s, (hidden, weight, bias)), gradients(left, (hidden, weight, bias))):
        assert torch.allclose(value, right, rtol=1e-10, atol=1e-12)


def test_uniform_and_certain():
    """Entropy log V and 0; never below 0 by more than rounding."""
    token = torch.zeros(1, dtype=torch.int64)
    s = head_statistics(torch.zeros(1, H), torch.randn(V, H), token)
    assert torch.allclose(s.entropy_N, torch.tensor(float(V)).log()) and torch.allclose(s.sum_p2_N, torch.tensor(1 / V))
    weight = torch.zeros(V, H)
    weight[0] = 100.0
    s = head_statistics(torch.ones(1, H), weight, token)
    assert s.logprob_N == 0 and s.entropy_N.abs() < 1e-6 and s.sum_p2_N == 1 and s.sum_p2_logp_N.abs() < 1e-6


@pytest.mark.parametrize("asks", ["hidden", "weight", "neither"])
def test_only_what_asks_gets_a_gradient(asks):
    hidden, weight, bias, token = inputs(torch.float32)
    hidden, weight, bias = (
        v.detach().requires_grad_(name == asks) for name, v in dict(hidden=hidden, weight=weight, bias=bias).items()
    )
    s = head_statistics(hidden, weight, token, bias, most_bytes=BLOCK)
    assert not s.entropy_N.requires_grad and not s.sum_p2_N.requires_grad
    assert s.logprob_N.requires_grad == (asks != "neither")
    if asks != "neither":
        s.logprob_N.sum().backward()
    assert [v.grad is not None for v in (hidden, weight, bias)] == [asks == "hidden", asks == "weight", False]


def test_tied_embeddings_and_repeated_backward():
    """One weight used as embedding and as head; gradients taken cell by cell, as the ledger
    does, add up to the whole."""
    *_, token = inputs()
    weight = inputs()[1]
    parts, plain = [], None
    for blockwise in (True, False):
        hidden = torch.nn.functional.embedding(token.roll(1), weight).tanh()
        s = (
            head_statistics(hidden, weight, token, entropy_grad=True, most_bytes=BLOCK)
            if blockwise
            else token_statistics(hidden @ weight.T, token, entropy_grad=True)
        )
        whole = gradients(s, [weight])[0]
        if blockwise:
            slope_N, entropy_slope_N = slopes()
            for keep_N in (torch.arange(N) < 9, torch.arange(N) >= 9):
                parts += torch.autograd.grad([s.logprob_N], [weight], [slope_N * keep_N], retain_graph=True)
            parts += torch.autograd.grad([s.entropy_N], [weight], [entropy_slope_N], retain_graph=True)
            assert torch.allclose(sum(parts), whole, rtol=1e-12, atol=1e-12)
        else:
            plain = whole
    assert torch.allclose(sum(parts), plain, rtol=1e-10, atol=1e-12)


def test_autograd_agrees_with_finite_differences():
    hidden, weight, bias, token = (v[:5] if v.shape[0] == N else v for v in inputs())
    hidden, weight, bias = (v.detach()[:, :6] if v.dim() == 2 else v.detach() for v in (hidden, weight, bias))

    def both(hidden, weight, bias):
        s = head_statistics(hidden, weight[:11], token % 11, bias[:11], 0.7, entropy_grad=True, most_bytes=64)
        return s.logprob_N, s.entropy_N

    assert torch.autograd.gradcheck(both, [v.requires_grad_() for v in (hidden, weight, bias)])


def test_no_block_is_larger_than_asked(monkeypatch):
    """Tokens × vocabulary is never held: the largest product is a block's."""
    sizes = []
    from cegppo.model import head

    product = head._product
    monkeypatch.setattr(head, "_product", lambda *a: sizes.append(product(*a)) or sizes[-1])
    monkeypatch.setattr(head, "BLOCK_VOCABULARY", {"cpu": 64})
    hidden, weight, bias, token = inputs(torch.float32)
    head.head_statistics(hidden, weight, token, bias, most_bytes=4 * 64 * 8).logprob_N.sum().backward()
    logits = [v.numel() for v in sizes if v.shape[1] != H]
    assert max(logits) == 64 * 8 and sum(logits) == 2 * N * V


SCALINGS = [Scaling(0.125), Scaling(cap=5.0), Scaling(0.5, 3.0)]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scaled_and_bounded_logits(scaling, temperature, width):
    """Values and gradients as through autograd of the whole logits; tanh' is 0 where they are at
    their bound."""
    *made, token = inputs(scale=8.0)
    hidden, weight, bias = made
    s = head_statistics(hidden, weight, token, bias, temperature, entropy_grad=True, most_bytes=BLOCK, scaling=scaling)
    logits = (hidden @ weight.T + bias) * scaling.scale
    logits = scaling.cap * torch.tanh(logits / scaling.cap) if scaling.cap else logits
    reference = token_statistics(logits / temperature, token, entropy_grad=True)
    for name in FIELDS:
        assert torch.allclose(getattr(s, name), getattr(reference, name), rtol=1e-12, atol=1e-12), name
    for value, right in zip(gradients(s, made), gradients(reference, made)):
        assert (value - right).norm() <= 1e-12 * right.norm() and right.norm() > 0
    plain = head_statistics(hidden, weight, token, bias, temperature, most_bytes=BLOCK)
    assert (plain.entropy_N - s.entropy_N).abs().max() > 0.1  # which is what was sampled and trained without it
    least = proxy_logprob(hidden, weight, token, 0.02, bias, temperature, BLOCK, scaling)
    p_NV = (logits / temperature).softmax(-1)
    kept_NV = p_NV * (p_NV >= 0.02 * p_NV.amax(-1, keepdim=True))
    right_NV = (kept_NV / kept_NV.sum(-1, keepdim=True)).log().clamp(min=GONE)
    assert torch.allclose(least, right_NV.gather(-1, token[:, None])[:, 0], rtol=1e-12, atol=1e-12)


def test_a_bounded_head_by_hand():
    """cap · tanh(x / cap): x = 5 atanh(0.4) with cap 5 is a logit of 2, with slope 1 − 0.16."""
    x = torch.tensor([5 * torch.atanh(torch.tensor(0.4, dtype=torch.float64))])
    assert Scaling(cap=5.0)(x).item() == pytest.approx(2.0) and Scaling(0.25)(x).item() == pytest.approx(x.item() / 4)
    assert float(Scaling(cap=5.0).slope(torch.tensor(2.0))) == pytest.approx(0.84)
    assert PLAIN(x) is x and PLAIN.slope(x) == 1.0


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("least", [0.02, 0.5])
def test_the_old_policy_without_its_tail(temperature, least, width):
    """In blocks as from whole logits; a token of the tail has no probability, the rest sum to 1."""
    hidden, weight, bias, token = inputs(scale=2.0)
    p_NV = ((hidden @ weight.T + bias) / temperature).softmax(-1).detach()
    kept_NV = p_NV * (p_NV >= least * p_NV.amax(-1, keepdim=True))
    right_NV = (kept_NV / kept_NV.sum(-1, keepdim=True)).log().clamp(min=GONE)
    top_N = p_NV.argmax(-1)
    found = [proxy_logprob(hidden, weight, t, least, bias, temperature, most_bytes=BLOCK) for t in (token, top_N)]
    right = [right_NV.gather(-1, t[:, None])[:, 0] for t in (token, top_N)]
    for value_N, right_N in zip(found, right, strict=True):
        assert torch.allclose(value_N, right_N, rtol=1e-12, atol=1e-12) and not value_N.requires_grad
    assert (found[0] == GONE).any() and (found[1] > p_NV.amax(-1).log()).all()
    narrow = proxy_logprob(hidden.float(), weight.float(), top_N, least, bias.float(), temperature)
    assert narrow.dtype == torch.float32 and torch.allclose(narrow.double(), right[1], atol=1e-5)
