"""Sums over the tokens of a step's updates, and the metrics that are their quotients.

Sums go into a Tally, so nothing depends on how a step is cut into micro-batches. docs/metrics.md
defines every key.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..types import TokenBatch
from .entropy import (
    CLASSES,
    SIDES,
    ClipRange,
    clip_side,
    covariance_form,
    entropy_change,
    gradient_contribution,
    token_class,
)

QUANTILES = (0.1, 0.5, 0.9)


@dataclass
class Tally:
    """Sums over the tokens of a step's updates; the metrics are their quotients. Adding is all
    that ever happens to it."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    lows: dict[str, float] = field(default_factory=dict)
    outside_prob: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"low": [], "high": []})

    def add(self, name: str, value: Tensor | np.ndarray | float) -> None:
        value = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def least(self, name: str, value: Tensor | float) -> None:
        self.lows[name] = min(self.lows.get(name, float("inf")), float(value))

    def add_tokens(
        self,
        x: TokenBatch,
        weight_BT: Tensor,
        scale_BT: Tensor,
        clip: ClipRange,
        rule: str = "probability",
        threshold: float = 0.5,
    ) -> None:
        """Count a micro-batch. `weight_BT` is w; `scale_BT` its factor in the aggregated loss
        (1/tokens for a token mean)."""
        inside = x.mask_BT.bool()
        fields = (
            x.logprob_BT, x.entropy_BT, x.advantage_BT, x.sum_p2_BT, x.sum_p2_logp_BT, x.log_ratio_BT,
            weight_BT * scale_BT, scale_BT,
        )  # fmt: skip
        stacked = torch.stack([value_BT.detach() for value_BT in fields])[
            :, inside
        ].double()  # few large operations: this runs every update
        logprob, entropy, advantage, sum_p2, sum_p2_logp, log_ratio, weight, scale = stacked
        prob, ratio = logprob.exp(), log_ratio.exp()
        side = clip_side(ratio, advantage, clip)
        cell = token_class(logprob, entropy, advantage, rule, threshold) * len(SIDES) + side
        columns = {
            "tokens": torch.ones_like(prob),
            "entropy": entropy,
            "prob": prob,
            "gradient": gradient_contribution(weight, prob, sum_p2),
            "dentropy": entropy_change(weight, logprob, entropy, sum_p2, sum_p2_logp),
            "covariance": scale * covariance_form(advantage, logprob, entropy),
            "kl_k1": -log_ratio,
            "kl_k3": log_ratio.expm1() - log_ratio,
        }
        cells = prob.new_zeros(len(columns), len(CLASSES) * len(SIDES)).index_add_(
            1, cell, torch.stack(list(columns.values()))
        )
        for name, value in zip(columns, cells.view(-1, len(CLASSES), len(SIDES)).cpu().numpy()):
            self.add(name, value)
        low, high = torch.aminmax(ratio)
        self.least("ratio_min", low)
        self.least("-ratio_max", -high)
        outside = side > 0
        if outside.any():
            for name, which in (("low", 1), ("high", 2)):
                self.outside_prob[name].append(prob[side == which].float().cpu().numpy())

    def gathered(self) -> "Tally":
        """The sum over all ranks; itself when there is one."""
        tallies = ranks.gathered(self)
        if len(tallies) == 1:
            return self
        whole = Tally()
        for tally in tallies:
            for name, value in tally.sums.items():
                whole.add(name, value)
            for name, value in tally.lows.items():
                whole.least(name, value)
            for name, values in tally.outside_prob.items():
                whole.outside_prob[name] += values
        return whole

    def metrics(self, updates: int) -> dict[str, float]:
        """The glossary's token metrics. `updates` is how many updates the sums cover. A mean
        over no token is left out."""
        if "tokens" not in self.sums:
            return {}
        tokens_CS, total = self.sums["tokens"], self.sums["tokens"].sum()
        made = {"tokens/zero_advantage": tokens_CS[0].sum() / total}
        gradient_CS, dentropy_CS = self.sums["gradient"], self.sums["dentropy"] / updates
        norm = gradient_CS.sum()
        for c, name in enumerate(CLASSES[1:], 1):
            made[f"tokens/{name}"] = tokens_CS[c].sum() / total
            if tokens_CS[c].sum():
                made[f"entropy/{name}"] = self.sums["entropy"][c].sum() / tokens_CS[c].sum()
            made[f"clip/{name}"] = tokens_CS[c, 1:].sum() / total
            made[f"grad/share_{name}"] = gradient_CS[c].sum() / norm if norm else 0.0
            made[f"dentropy/predicted_{name}"] = dentropy_CS[c].sum()
        for s, name in enumerate(SIDES[1:], 1):
            count = tokens_CS[:, s].sum()
            made[f"clip/{name}"] = count / total
            made[f"grad/share_clip_{name}"] = gradient_CS[:, s].sum() / norm if norm else 0.0
            made[f"dentropy/predicted_clip_{name}"] = dentropy_CS[:, s].sum()
            if count:
                made[f"clip/prob_{name}"] = self.sums["prob"][:, s].sum() / count
                values = np.concatenate(self.outside_prob[name])
                made |= {f"clip/prob_{name}_q{int(100 * q)}": float(np.quantile(values, q)) for q in QUANTILES}
        made["dentropy/predicted"] = dentropy_CS.sum()
        made["dentropy/covariance"] = self.sums["covariance"].sum() / updates
        made["kl/old_k1"], made["kl/old_k3"] = self.sums["kl_k1"].sum() / total, self.sums["kl_k3"].sum() / total
        made["ratio/min"], made["ratio/max"] = self.lows["ratio_min"], -self.lows["-ratio_max"]
        return {k: float(v) for k, v in made.items()}
