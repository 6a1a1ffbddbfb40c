"""Batches that the tests of the losses share, in float64, and what a loss makes of them.

Besides the five fields that every loss may count on, those that a loss may ask for: the entropy
before the updates, log-probabilities of the old policy without its tail, and uniform draws.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cegppo import losses
from cegppo.types import TokenBatch

EPS = 0.25  # 1 ± 0.25 and their ratios are exact in binary
# (advantage, ratio): {A > 0, A < 0, A = 0} × {below, at the lower bound, inside, at the upper
# bound, above}
CELLS = [(a, r) for a in (1.5, -0.5, 0.0) for r in (0.5, 0.75, 1.0, 1.25, 2.0)]


def draws(mask_BT: Tensor) -> Tensor:
    """[B, T] uniform draws in [0, 1), the same for a place however wide the batch is."""
    generator = torch.Generator().manual_seed(11)
    return torch.rand(16, 512, generator=generator, dtype=torch.float64)[: mask_BT.shape[0], : mask_BT.shape[1]]


def one_row(cells: Sequence[tuple[float, float]], old: float = -1.0) -> TokenBatch:
    """One row whose tokens are the cells; log π = log π_old + log r."""
    advantage_BT = torch.tensor([[a for a, _ in cells]], dtype=torch.float64)
    ratio_BT = torch.tensor([[r for _, r in cells]], dtype=torch.float64)
    logprob_BT = (old + ratio_BT.log()).requires_grad_()
    return TokenBatch(
        logprob_BT=logprob_BT,
        old_logprob_BT=logprob_BT.detach() - ratio_BT.log(),  # so that the difference is log r up to one rounding
        advantage_BT=advantage_BT,
        mask_BT=torch.ones_like(advantage_BT),
        entropy_BT=torch.ones_like(advantage_BT),
        old_entropy_BT=torch.ones_like(advantage_BT),
        proxy_logprob_BT=torch.full_like(advantage_BT, old + 0.1),
        uniform_BT=draws(advantage_BT),
    )


def rows(advantage_B: list[float], ratio_BT: list[list[float]], mask_BT: list[list[float]] | None = None) -> TokenBatch:
    """Rows with one advantage each."""
    ratio = torch.tensor(ratio_BT, dtype=torch.float64)
    mask = torch.ones_like(ratio) if mask_BT is None else torch.tensor(mask_BT, dtype=torch.float64)
    logprob = (-1.0 + ratio.log()).requires_grad_()
    return TokenBatch(
        logprob_BT=logprob,
        old_logprob_BT=logprob.detach() - ratio.log(),
        advantage_BT=torch.tensor(advantage_B, dtype=torch.float64)[:, None] * mask,
        mask_BT=mask,
        entropy_BT=torch.ones_like(mask),
        old_entropy_BT=torch.ones_like(mask),
        proxy_logprob_BT=torch.full_like(mask, -0.9),
        uniform_BT=draws(mask),
    )


def ragged(seed: int = 0) -> TokenBatch:
    """Six rows of 1 to 7 tokens, each advantage sign twice, ratios that leave every clip interval
    in places; what is outside the mask is 0."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(6, 7, generator=generator, dtype=torch.float64)
    mask_BT = (torch.arange(7)[None] < torch.tensor([7, 1, 4, 6, 2, 5])[:, None]).double()
    old_BT = -draw().abs() * mask_BT
    advantage_B = torch.tensor([1.2, -0.7, 0.0, -1.5, 0.4, 0.0], dtype=torch.float64)
    logprob_BT, entropy_BT = old_BT + 0.5 * draw() * mask_BT, draw().abs() * mask_BT
    return TokenBatch(
        logprob_BT=logprob_BT.requires_grad_(),
        old_logprob_BT=old_BT,
        advantage_BT=advantage_B[:, None] * mask_BT,
        mask_BT=mask_BT,
        entropy_BT=entropy_BT,
        old_entropy_BT=entropy_BT * (1 + 0.05 * draw()),
        proxy_logprob_BT=(old_BT + 0.1) * mask_BT,
        uniform_BT=draws(mask_BT),
    )


def exact_eps(x: TokenBatch) -> dict[str, float]:
    """ε of each side so that the bound is bit for bit the ratio the loss will compute at the
    boundary cells of `one_row(CELLS)`."""
    ratio = x.ratio_BT.detach()[0]
    return dict(eps_low=float(1 - ratio[1]), eps_high=float(ratio[3] - 1))


def evaluated(name: str, x: TokenBatch, **knobs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(loss, weight, facts) of `x`, each [B, T] (the facts a dict of such). The weight is −∂ Σ loss
    over the mask / ∂ log π."""
    module = losses.load(name)
    loss_BT, facts = module.token_loss(x, module.Params(**knobs))
    (slope_BT,) = torch.autograd.grad(loss_BT[x.mask_BT.bool()].sum(), x.logprob_BT)
    return loss_BT.detach(), -slope_BT, facts


def importance_weighted(x: TokenBatch) -> tuple[Tensor, Tensor]:
    """(loss, weight) of −r · A, each [B, T]: the loss that neither clips nor masks."""
    weight_BT = (x.advantage_BT * x.ratio_BT).detach()
    return -weight_BT, weight_BT


def assert_same(
    ours: tuple[Tensor, Tensor, dict[str, Tensor]], theirs: tuple[Tensor, ...], where_BT: Tensor | None = None
) -> None:
    """Value and gradient of two losses agree; only where `where_BT` says so, if it is given."""
    for one_BT, other_BT in zip(ours[:2], theirs[:2], strict=True):
        inside_BT = torch.ones_like(one_BT, dtype=torch.bool) if where_BT is None else where_BT
        assert inside_BT.any()
        torch.testing.assert_close(one_BT[inside_BT], other_BT[inside_BT], rtol=1e-10, atol=1e-12)


def assert_reinforce_at_ratio_one(name: str, **knobs: Any) -> None:
    """A limit of most losses that have a ratio, on the policy that sampled: the weight is A."""
    x = one_row([(1.5, 1.0), (-0.5, 1.0), (0.0, 1.0)])
    _, weight_BT, _ = evaluated(name, x, **knobs)
    torch.testing.assert_close(weight_BT, x.advantage_BT, rtol=1e-12, atol=0)
