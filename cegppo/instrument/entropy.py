"""The instrument: which tokens move the entropy, by how much, and through which side of the clip.

It asks a loss nothing. The weight that a loss puts on a token's score function is measured, w = −∂
Σ loss / ∂ log π_θ(y_t), and everything else follows from w and the token statistics of the same
forward pass:

* class: advantage sign × probability (PA&HP, PA&LP, NA&HP, NA&LP); tokens with A = 0 belong to
  none;
* clip side: low where A < 0 and the ratio is below the loss's lower bound, high where A > 0 and it
  is above its upper one: what a clip there would have cut, whatever the loss did with it;
* gradient contribution: |w| √(1 − 2p + Σπ²), the norm of w ∇_z log π(y_t) in logit space;
* first-order entropy change for dz = w ∇_z log π(y_t): −w [p (log p + H) − Σ π² (log π + H)] (arXiv
  2602.09782, 2602.03392).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CLASSES = ("none", "pa_hp", "pa_lp", "na_hp", "na_lp")  # index = class code; "none" is A = 0
SIDES = ("inside", "low", "high")


@dataclass(frozen=True)
class ClassRule:
    """What makes a token's probability high.

    `probability`: p ≥ threshold. `surprisal`: −log p ≤ H, the boundary at which the sampled token's
    own part of the first-order entropy change has sign 0.
    """

    kind: Literal["probability", "surprisal"] = "probability"
    threshold: float = 0.5

    def codes(self, logprob: Tensor, entropy: Tensor, advantage: Tensor) -> Tensor:
        """Class codes (index into CLASSES), any shape, int64."""
        high = logprob.exp() >= self.threshold if self.kind == "probability" else -logprob <= entropy
        code = torch.where(advantage > 0, 2, 4) - high.long()
        return torch.where(advantage == 0, 0, code)


BY_PROBABILITY = ClassRule()


def clip_side(ratio: Tensor, advantage: Tensor, clip_low: Tensor | float, clip_high: Tensor | float) -> Tensor:
    """Side codes (index into SIDES), any shape, int64: `low` where A < 0 and the ratio is below
    `clip_low`, `high` where A > 0 and it is above `clip_high`."""
    low = (advantage < 0) & (ratio < clip_low)
    high = (advantage > 0) & (ratio > clip_high)
    return low.long() + 2 * high.long()


def returned_weight(side: Tensor, advantage: Tensor, clip_low: Tensor, clip_high: Tensor) -> Tensor:
    """The weight of a token outside the clip if its side's β were 1: (1 − ε_low)·A or (1 +
    ε_high)·A; 0 inside. Any shape."""
    return torch.where(side == 1, clip_low, torch.where(side == 2, clip_high, 0.0)) * advantage


def gradient_contribution(weight: Tensor, prob: Tensor, sum_p2: Tensor) -> Tensor:
    """|w| · ‖e_a − π‖₂, any shape."""
    return weight.abs() * (1 - 2 * prob + sum_p2).clamp(min=0).sqrt()


def entropy_change(weight: Tensor, logprob: Tensor, entropy: Tensor, sum_p2: Tensor, sum_p2_logp: Tensor) -> Tensor:
    """First-order ΔH of one state's softmax for the logit step w (e_a − π), in nats per unit of
    step; any shape."""
    return -weight * (own_term(logprob, entropy) - (sum_p2_logp + entropy * sum_p2))


def own_term(logprob: Tensor, entropy: Tensor) -> Tensor:
    """Q = p (log p + H) of the sampled token, any shape, nats. A clip moves entropy by the mean of
    Q over the tokens it cuts (arXiv 2509.26114): positive for probable tokens, negative for rare
    ones."""
    return logprob.exp() * (logprob + entropy)


def covariance_form(advantage: Tensor, logprob: Tensor, entropy: Tensor) -> Tensor:
    """One sample's term of −Cov_{a∼π}(log π, π A) (arXiv 2509.20712, Eq. 7): −(log p + H) p A;
    any shape."""
    return -(logprob + entropy) * logprob.exp() * advantage
