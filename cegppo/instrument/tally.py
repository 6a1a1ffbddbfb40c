"""Sums over the tokens of a step's updates, and the metrics that are their quotients.

Sums go into a Tally, so nothing depends on how a step is cut into micro-batches. docs/metrics.md
defines every key.
"""

import numpy as np
import torch
from torch import Tensor

from ..objective import Gradient, Weights
from ..types import TokenBatch
from .entropy import (
    BY_PROBABILITY,
    CLASSES,
    SIDES,
    ClassRule,
    clip_side,
    covariance_form,
    entropy_change,
    gradient_contribution,
    own_term,
    returned_weight,
)

QUANTILES = (0.1, 0.5, 0.9)
WAITING = 1 << 20  # tokens that wait to be counted, of 40 bytes each


class Tally:
    """Sums over the tokens of a step's updates; the metrics are their quotients. Adding is all
    that ever happens to it.

    Micro-batches wait until there are WAITING tokens of them: a few large operations a step instead
    of many small ones an update.
    """

    def __init__(self, rule: ClassRule = BY_PROBABILITY):
        self.rule = rule
        self.least: dict[str, float] = {}
        self.greatest: dict[str, float] = {}
        self.outside_prob: dict[str, list[np.ndarray]] = {"low": [], "high": []}
        self._sums: dict[str, np.ndarray] = {}
        self._waiting: list[Tensor] = []  # [fields, N] each

    @property
    def sums(self) -> dict[str, np.ndarray]:
        self._count()
        return self._sums

    def add(self, name: str, value: Tensor | np.ndarray | float) -> None:
        value = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_all(self, sums: dict[str, float]) -> None:
        for name, value in sums.items():
            self.add(name, value)

    def add_range(self, name: str, low: Tensor | float, high: Tensor | float) -> None:
        self.least[name] = min(self.least.get(name, float("inf")), float(low))
        self.greatest[name] = max(self.greatest.get(name, -float("inf")), float(high))

    def add_tokens(self, x: TokenBatch, w: Weights, scale_BT: Tensor) -> None:
        """Count a micro-batch. `scale_BT` is a weight's factor in the aggregated loss (1 / tokens
        for a token mean)."""
        fields = (
            x.logprob_BT, x.entropy_BT, x.advantage_BT, x.sum_p2_BT, x.sum_p2_logp_BT,
            x.old_logprob_BT, w.weight_BT, scale_BT, w.clip_low_BT, w.clip_high_BT, w.factor_BT,
        )  # fmt: skip
        self._waiting.append(torch.stack([value_BT.detach() for value_BT in fields])[:, x.mask_BT.bool()])
        if sum(waiting.shape[1] for waiting in self._waiting) >= WAITING:
            self._count()

    def add_gradient(self, gradient: Gradient) -> None:
        """Count an update: its tokens, the values of its terms, the facts of its loss."""
        self.add_all(gradient.sums)
        for part in gradient.parts:
            if part.x.mask_BT.any():  # not a pass that only keeps step with another rank
                self.add_tokens(part.x, part.weights, part.scale_BT)
                self.add_all(part.sums)

    def _count(self) -> None:
        """Add up what waits."""
        if not self._waiting:
            return
        stacked = torch.cat(self._waiting, dim=1).double()
        self._waiting = []
        if not stacked.shape[1]:  # every response was masked: there is nothing to take a mean over
            return
        logprob, entropy, advantage, sum_p2, sum_p2_logp, old_logprob, weight, scale, *rest = stacked
        clip_low, clip_high, factor = rest
        weight, log_ratio = weight * scale, logprob - old_logprob
        prob, ratio = logprob.exp(), log_ratio.exp()
        side = clip_side(ratio, advantage, clip_low, clip_high)
        cell = self.rule.codes(logprob, entropy, advantage) * len(SIDES) + side
        returned = returned_weight(side, advantage, clip_low, clip_high) * factor * scale
        columns = {
            "tokens": torch.ones_like(prob),
            "entropy": entropy,
            "prob": prob,
            "gradient": gradient_contribution(weight, prob, sum_p2),
            "dentropy": entropy_change(weight, logprob, entropy, sum_p2, sum_p2_logp),
            "lever": entropy_change(returned, logprob, entropy, sum_p2, sum_p2_logp),
            "q": own_term(logprob, entropy),
            "idle_entropy": torch.where(weight == 0, entropy, 0.0),
            "covariance": scale * covariance_form(advantage, logprob, entropy),
            "kl_k1": -log_ratio,
            "kl_k3": log_ratio.expm1() - log_ratio,
        }
        cells = prob.new_zeros(len(columns), len(CLASSES) * len(SIDES)).index_add_(
            1, cell, torch.stack(list(columns.values()))
        )
        for name, value in zip(columns, cells.view(-1, len(CLASSES), len(SIDES)).cpu().numpy()):
            self.add(name, value)
        if len(ratio):
            self.add_range("ratio", *torch.aminmax(ratio))
        for name, which in (("low", 1), ("high", 2)):
            self.outside_prob[name].append(prob[side == which].float().cpu().numpy())

    def settled(self) -> "Tally":
        """Itself, with nothing waiting: small enough to be told to other ranks."""
        self._count()
        return self

    @classmethod
    def merged(cls, tallies: "list[Tally]") -> "Tally":
        """The sum of several, such as those of all ranks; itself when there is one."""
        if len(tallies) == 1:
            return tallies[0]
        whole = cls(tallies[0].rule)
        for tally in tallies:
            for name, value in tally.sums.items():
                whole.add(name, value)
            for name in tally.least:
                whole.add_range(name, tally.least[name], tally.greatest[name])
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
        for s, name in enumerate(SIDES[1:], 1):  # sums over the step's updates
            made[f"lever/{name}"] = self.sums["lever"][:, s].sum()
            if tokens_CS[:, s].sum():
                made[f"entropy/q_{name}"] = self.sums["q"][:, s].sum() / tokens_CS[:, s].sum()
        made["entropy/q_mean"] = self.sums["q"].sum() / total
        entropy = self.sums["entropy"].sum()
        made["entropy/share_no_gradient"] = self.sums["idle_entropy"].sum() / entropy if entropy else 0.0
        made["dentropy/predicted"] = dentropy_CS.sum()
        made["dentropy/covariance"] = self.sums["covariance"].sum() / updates
        made["kl/old_k1"], made["kl/old_k3"] = self.sums["kl_k1"].sum() / total, self.sums["kl_k3"].sum() / total
        made["ratio/min"], made["ratio/max"] = self.least["ratio"], self.greatest["ratio"]
        return {k: float(v) for k, v in made.items()}
