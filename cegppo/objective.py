"""What is minimised: the token loss and its companions; and the weight they put on each token.

No run configuration and nothing but torch: a verl or TRL trainer can call it as it stands.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import losses
from .config import Config
from .instrument.entropy import ClipRange
from .types import MAX_LOG_RATIO, TokenBatch


def aggregation(x: TokenBatch, kind: str, max_tokens: int) -> Tensor:
    """[B, T] factor of each token's loss in the loss of mini-batch `x`; 0 outside the mask.

    token: 1 / response tokens of the mini-batch (DAPO, and the paper's Eq. 8). sequence: 1 / (rows
    · tokens of the row) (the original GRPO). constant: 1 / (rows · max_tokens) (Dr. GRPO).
    """
    if kind == "token":
        return x.mask_BT / x.mask_BT.sum()
    if kind == "sequence":
        return x.mask_BT / (x.length_B.clamp(min=1)[:, None] * len(x))
    return x.mask_BT / (len(x) * max_tokens)


def kl_penalty(logprob_BT: Tensor, ref_logprob_BT: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(π_θ ‖ π_ref) from the sampled token (Schulman's note on
    approximating KL): k1, k2 or k3; [B, T]."""
    log_ratio_BT = ref_logprob_BT - logprob_BT
    if estimator == "k1":
        return -log_ratio_BT
    if estimator == "k2":
        return log_ratio_BT.square() / 2
    return log_ratio_BT.expm1() - log_ratio_BT


def correction(x: TokenBatch, kind: str, level: str, low: float, high: float) -> Tensor:
    """[B, T] factor that corrects for a sampler whose probabilities differ from the trainer's; no
    gradient.

        ρ = π_old(y_t) / π_sampler(y_t); with level=sequence its product over the response's tokens
        truncate: min(max(ρ, low), high)        mask: ρ where low ≤ ρ ≤ high, else 0

    truncate: truncated importance sampling (Ionides 2008; for samplers of language models Yao et
    al. 2025, "Your efficient RL framework secretly brings you off-policy RL training", with low =
    0). mask: IcePop by token (Ring-1T, arXiv 2510.18855; bounds 0.5 and 5), masked importance
    sampling by sequence (Liu, Li et al. 2025, "When speed kills stability", low = 0). A masked
    token still counts in the aggregation's denominator.
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
    """The loss of a mini-batch as a sum of named terms, each per token and already scaled by its
    aggregation."""

    config: Config
    loss: ModuleType
    params: Any

    @classmethod
    def at(cls, config: Config, step: int) -> "Objective":
        """The objective of step `step` (0 the first): a scheduled knob has its value of that
        step."""
        loss = losses.load(config.loss["name"])
        return cls(config, loss, loss.Params(**config.loss_knobs(step)))

    @property
    def whole_batch(self) -> bool:
        return getattr(self.loss, "WHOLE_BATCH", False)

    @property
    def clip(self) -> ClipRange:
        """The bounds for clip facts: the loss's own; 0.2 on both sides for a loss that bounds no
        token's ratio."""
        if not getattr(self.loss, "TOKEN_CLIP", True):
            return ClipRange(0.2, 0.2)
        return ClipRange(getattr(self.params, "eps_low", 0.2), getattr(self.params, "eps_high", 0.2))

    def scales(self, mini: TokenBatch) -> dict[str, Tensor]:
        """The [B, T] aggregation factor of each term, from the whole mini-batch."""
        update = self.config.update
        made = {"policy": aggregation(mini, update.aggregate, self.config.rollout.max_tokens)}
        if update.kl_coef:
            made["kl"] = made["policy"] * update.kl_coef
        if update.nll_coef:
            right_BT = mini.mask_BT * mini.correct_B[:, None]
            made["nll"] = right_BT / right_BT.sum().clamp(min=1) * update.nll_coef
        if update.entropy_coef:
            made["entropy"] = made["policy"] * update.entropy_coef
        return made

    def terms(self, x: TokenBatch, scales: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every term's per-token loss, scaled (their sum over everything is what is minimised),
        and the loss's own facts."""
        token_loss_BT, facts = self.loss.token_loss(x, self.params)
        dual = self.config.update.dual_clip
        if dual:  # arXiv 1912.09729: with A < 0 the loss is at most −c A, which has no gradient
            beyond_BT = (x.advantage_BT < 0) & (x.ratio_BT > dual)
            token_loss_BT = torch.where(beyond_BT, -dual * x.advantage_BT, token_loss_BT)
            facts = {**facts, "dual_clip": beyond_BT}
        u = self.config.update
        if u.correction != "none":
            factor_BT = correction(x, u.correction, u.correction_level, u.correction_low, u.correction_high)
            plain_BT = correction(x, "truncate", u.correction_level, 0.0, float("inf"))
            token_loss_BT = token_loss_BT * factor_BT
            facts = {**facts, "correction": factor_BT, "correction_cut": factor_BT != plain_BT}
        made = {"policy": token_loss_BT}
        if "kl" in scales:
            made["kl"] = kl_penalty(x.logprob_BT, x.ref_logprob_BT, self.config.update.kl_estimator)
        if "nll" in scales:
            made["nll"] = -x.logprob_BT
        if "entropy" in scales:
            made["entropy"] = -x.entropy_BT
        # `where`, not a product: a padded position may hold anything, and 0 · ∞ is not 0.
        return {name: torch.where(scales[name] != 0, value * scales[name], 0.0) for name, value in made.items()}, facts


@dataclass(frozen=True)
class Weights:
    """What the objective puts on each token of a batch, all [B, T]."""

    policy_BT: Tensor  # w of the policy loss: −∂ Σ loss / ∂ log π, without the aggregation factor
    policy_slope_BT: Tensor  # ∂ (policy term, scaled) / ∂ log π = −w · scale
    coefficient_BT: Tensor  # ∂ (all terms, scaled) / ∂ log π: what is back-propagated
    entropy_coefficient_BT: Tensor | None  # ∂ (all terms, scaled) / ∂ H, when an entropy term is on
    sums: dict[str, float]  # loss/<term>: its value; fact/<name>: a fact of the loss, summed over tokens


def weigh(objective: Objective, x: TokenBatch, scales: dict[str, Tensor]) -> Weights:
    """Evaluate the objective with log-probability and entropy as leaves: exact weights for any
    loss file."""
    logprob_BT = x.logprob_BT.detach().requires_grad_()
    entropy_BT = x.entropy_BT.detach().requires_grad_("entropy" in scales)
    terms, facts = objective.terms(x.but(logprob_BT=logprob_BT, entropy_BT=entropy_BT), scales)
    (policy_BT,) = torch.autograd.grad(
        terms["policy"].sum(), logprob_BT, retain_graph=True
    )  # kept for the entropy's slope
    coefficient_BT, entropy_coefficient_BT = policy_BT, None
    others = [value.sum() for name, value in terms.items() if name not in ("policy", "entropy")]
    if others:
        coefficient_BT = policy_BT + torch.autograd.grad(sum(others), logprob_BT)[0]
    if "entropy" in scales:  # of every term: a token loss may read the entropy too
        (entropy_coefficient_BT,) = torch.autograd.grad(sum(value.sum() for value in terms.values()), entropy_BT)
    weight_BT = torch.where(scales["policy"] != 0, -policy_BT / scales["policy"], 0.0)
    sums = {f"loss/{name}": float(value.detach().sum()) for name, value in terms.items()}
    sums |= {f"fact/{name}": float((value.detach() * x.mask_BT).sum()) for name, value in facts.items()}
    return Weights(weight_BT, policy_BT, coefficient_BT, entropy_coefficient_BT, sums)
