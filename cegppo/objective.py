"""What is minimised: the token loss and its companions; and the weight they put on each token.

No run configuration and nothing but torch: a verl or TRL trainer can call it as it stands.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .types import MAX_LOG_RATIO, NO_K1, BadInput, TokenBatch

# Where a loss has no bounds of its own, clip facts say what a clip at these would have cut.
REFERENCE_CLIP = (0.8, 1.2)


@dataclass(frozen=True)
class Terms:
    """How token losses are aggregated, and what stands beside the policy's (`update.*` in YAML)."""

    aggregate: str = "token"  # token | sequence | constant
    max_tokens: int = 1  # a response's limit: the denominator of `constant`
    dual_clip: float = 0.0  # 0: off
    kl_coef: float = 0.0
    kl_estimator: str = "k3"  # k2 | k3
    entropy_coef: float = 0.0
    nll_coef: float = 0.0
    correction: str = "none"  # none | truncate | mask
    correction_level: str = "token"  # token | sequence
    correction_low: float = 0.0
    correction_high: float = 2.0

    def __post_init__(self) -> None:
        if self.kl_coef and self.kl_estimator == "k1":
            raise BadInput(f"update.kl_estimator=k1: {NO_K1}")


def aggregation(x: TokenBatch, kind: str, max_tokens: int) -> Tensor:
    """[B, T] factor of each token's loss in the loss of mini-batch `x`; 0 outside the mask.

    token: 1 / response tokens of the mini-batch (DAPO, and the paper's Eq. 8).
    sequence: 1 / (rows · tokens of the row) (the original GRPO).
    constant: 1 / (rows · max_tokens) (Dr. GRPO).
    """
    if kind == "token":
        return x.mask_BT / x.mask_BT.sum().clamp(min=1)
    if kind == "sequence":
        return x.mask_BT / (x.length_B.clamp(min=1)[:, None] * len(x))
    return x.mask_BT / (len(x) * max_tokens)


def kl_penalty(logprob_BT: Tensor, ref_logprob_BT: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(π_θ ‖ π_ref) from the sampled token, [B, T]: k1, k2 or k3 of
    Schulman's note on approximating KL. The log-ratio that k3 exponentiates is capped as the
    policy's is. As a loss term k1 is not meant: `NO_K1`."""
    log_ratio_BT = ref_logprob_BT - logprob_BT
    if estimator == "k1":
        return -log_ratio_BT
    if estimator == "k2":
        return log_ratio_BT.square() / 2
    capped_BT = log_ratio_BT.clamp(max=MAX_LOG_RATIO)
    return capped_BT.expm1() - capped_BT


def correction(x: TokenBatch, kind: str, level: str, low: float, high: float) -> Tensor:
    """[B, T] factor that corrects for a sampler whose probabilities differ from the trainer's; no
    gradient.

        ρ = π_old(y_t) / π_sampler(y_t); with level=sequence its product over the response's tokens
        truncate: min(max(ρ, low), high)        mask: ρ where low ≤ ρ ≤ high, else 0

    truncate: truncated importance sampling (Ionides 2008; for samplers of language models Yao et
    al. 2025, "Your efficient RL framework secretly brings you off-policy RL training", low = 0).
    mask: IcePop by token (Ring-1T, arXiv 2510.18855; bounds 0.5 and 5), masked importance sampling
    by sequence (Liu, Li et al. 2025, "When speed kills stability", low = 0). A masked token still
    counts in the aggregation's denominator.
    """
    log_ratio_BT = (x.old_logprob_BT - x.sampler_logprob_BT).detach() * x.mask_BT
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(-1, keepdim=True).expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if kind == "truncate":
        return ratio_BT.clamp(low, high)
    return torch.where((ratio_BT >= low) & (ratio_BT <= high), ratio_BT, 0.0)


@dataclass(frozen=True)
class Objective:
    """The loss of a mini-batch as a sum of named terms, each per token and scaled by its
    aggregation."""

    loss: ModuleType
    params: Any  # the loss's Params
    terms: Terms = Terms()

    @property
    def whole_batch(self) -> bool:
        return getattr(self.loss, "WHOLE_BATCH", False)

    @property
    def draws(self) -> bool:
        return getattr(self.loss, "DRAWS", False)

    @property
    def needs(self) -> set[str]:
        """Fields of the batch that the loss reads besides log-probabilities, advantages and the
        mask."""
        asked = set(getattr(self.loss, "NEEDS", ()))
        asked |= {"uniform_BT"} if self.draws else set()
        return asked | ({"proxy_logprob_BT"} if self.proxy is not None else set())

    @property
    def proxy(self) -> float | None:
        """How probable a token of the old policy has to be, as a share of its most probable one,
        not to be tail; None for a loss that does not ask."""
        name = getattr(self.loss, "PROXY", None)
        return None if name is None else float(getattr(self.params, name))

    def scales(self, mini: TokenBatch) -> dict[str, Tensor]:
        """The [B, T] aggregation factor of each term, from the whole mini-batch."""
        t = self.terms
        made = {"policy": aggregation(mini, t.aggregate, t.max_tokens)}
        if t.kl_coef:
            made["kl"] = made["policy"] * t.kl_coef
        if t.nll_coef:
            right_BT = mini.mask_BT * mini.correct_B[:, None]
            made["nll"] = right_BT / right_BT.sum().clamp(min=1) * t.nll_coef
        if t.entropy_coef:
            made["entropy"] = made["policy"] * t.entropy_coef
        return made

    def losses(self, x: TokenBatch, scales: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every term's loss per token, scaled (their sum over everything is what is minimised), and
        the loss's own facts; all [B, T]."""
        t = self.terms
        token_loss_BT, facts = self.loss.token_loss(x, self.params)
        if t.dual_clip:  # arXiv 1912.09729: with A < 0 the loss is at most −c A, which has no gradient
            beyond_BT = (x.advantage_BT < 0) & (x.ratio_BT > t.dual_clip)
            token_loss_BT = torch.where(beyond_BT, -t.dual_clip * x.advantage_BT, token_loss_BT)
            facts = {**facts, "dual_clip": beyond_BT}
        if t.correction != "none":
            factor_BT = correction(x, t.correction, t.correction_level, t.correction_low, t.correction_high)
            plain_BT = correction(x, "truncate", t.correction_level, 0.0, float("inf"))
            token_loss_BT = token_loss_BT * factor_BT
            facts = {**facts, "correction": factor_BT, "correction_cut": factor_BT != plain_BT}
        made = {"policy": token_loss_BT}
        if "kl" in scales:
            made["kl"] = kl_penalty(x.logprob_BT, x.ref_logprob_BT, t.kl_estimator)
        if "nll" in scales:
            made["nll"] = -x.logprob_BT
        if "entropy" in scales:
            made["entropy"] = -x.entropy_BT
        # `where` before the product: a padded position may hold anything, and neither 0 · ∞ nor its
        # gradient is 0.
        return {name: torch.where(scales[name] != 0, value, 0.0) * scales[name] for name, value in made.items()}, facts


@dataclass(frozen=True)
class Weights:
    """What the objective puts on each token of a batch, and where its clip lies; all [B, T]."""

    weight_BT: Tensor  # w of the policy loss: −∂ Σ loss / ∂ log π, without the aggregation factor
    slope_BT: Tensor  # ∂ (policy term, scaled) / ∂ log π = −w · scale
    total_slope_BT: Tensor  # ∂ (all terms, scaled) / ∂ log π: what is back-propagated
    entropy_slope_BT: Tensor | None  # ∂ (all terms, scaled) / ∂ H, when an entropy term is on
    clip_low_BT: Tensor  # with A < 0, a ratio below it is outside the clip
    clip_high_BT: Tensor  # with A > 0, a ratio above it is
    factor_BT: Tensor  # what every weight of the policy loss was multiplied by: the correction, else 1

    def each(self, change: Callable[[Tensor], Tensor]) -> "Weights":
        """`change` applied to every tensor."""
        made: dict[str, Any] = {k: None if v is None else change(v) for k, v in vars(self).items()}
        return Weights(**made)


@dataclass(frozen=True)
class WeightedTokens:
    """A micro-batch with the weights that were back-propagated."""

    index: Tensor  # [n] int64, its rows of the mini-batch
    x: TokenBatch  # with the policy's statistics as the pass found them; no graph
    weights: Weights
    scale_BT: Tensor  # a weight's factor in the aggregated loss: 1 / tokens for a token mean
    sums: dict[str, float]  # loss/<term> and fact/<name>, over its tokens


@dataclass(frozen=True)
class Gradient:
    """The weights that the gradient of a mini-batch puts on the tokens this rank worked on."""

    mini: TokenBatch
    parts: list[WeightedTokens]  # in the order of the passes; some may be without tokens
    sums: dict[str, float]  # of a loss over the whole mini-batch, this rank's share of them


def weigh(objective: Objective, x: TokenBatch, scales: dict[str, Tensor]) -> tuple[Weights, dict[str, float]]:
    """Evaluate the objective with log-probability and entropy as leaves: exact weights for any
    loss.

    Also the sums that metrics are made of: loss/<term>, its value; fact/<name>, a fact of the loss,
    summed over tokens.
    """
    logprob_BT = x.logprob_BT.detach().requires_grad_()
    entropy_BT = x.entropy_BT.detach().requires_grad_("entropy" in scales)
    terms, facts = objective.losses(x.but(logprob_BT=logprob_BT, entropy_BT=entropy_BT), scales)
    # The graph is kept for the entropy's slope.
    (slope_BT,) = torch.autograd.grad(terms["policy"].sum(), logprob_BT, retain_graph=True)
    total_slope_BT, entropy_slope_BT = slope_BT, None
    others = [value.sum() for name, value in terms.items() if name not in ("policy", "entropy")]
    if others:
        total_slope_BT = slope_BT + torch.autograd.grad(others, logprob_BT)[0]
    if "entropy" in scales:  # of every term: a token loss may read the entropy too
        (entropy_slope_BT,) = torch.autograd.grad([value.sum() for value in terms.values()], entropy_BT)
    low, high = REFERENCE_CLIP
    weights = Weights(
        weight_BT=torch.where(scales["policy"] != 0, -slope_BT / scales["policy"], 0.0),
        slope_BT=slope_BT,
        total_slope_BT=total_slope_BT,
        entropy_slope_BT=entropy_slope_BT,
        clip_low_BT=facts.get("clip_low", torch.full_like(slope_BT, low)),
        clip_high_BT=facts.get("clip_high", torch.full_like(slope_BT, high)),
        factor_BT=facts.get("correction", torch.ones_like(slope_BT)),
    )
    sums = {f"loss/{name}": float(value.detach().sum()) for name, value in terms.items()}
    own = {name: value for name, value in facts.items() if name not in ("clip_low", "clip_high")}
    return weights, sums | {f"fact/{name}": float((value.detach() * x.mask_BT).sum()) for name, value in own.items()}
