"""Another trainer's tensors in; the loss that goes back to it, and what the instrument says, out.

    objective = load("verl", "cegppo", {"beta1": 0.5})          checked as a configuration is
    x = token_batch(logprob_BT, old_logprob_BT, advantage, mask_BT, entropy_BT=…)
    refuse("verl", objective, x, whole=…)                       what cannot be served, said
    served = serve(objective, x, aggregate)                     served.loss carries the gradient
    tally.add_tokens(x, served.weights, served.scale_BT)        then tally.metrics(updates)

A trainer that can keep a `Tally` over its step, and add up those of its ranks, gets every metric of
docs/metrics.md from it (`known` drops what nobody could know). One that only averages scalars gives
it the `parts`, whose sums over micro-batches and ranks are exact and whose quotients are the rest.

What a trainer does not give is NaN here, and so is every metric made of it. A trainer with packed
tokens hands them over as one row.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import losses
from ..instrument.entropy import BY_PROBABILITY, CLASSES, SIDES, clip_side
from ..instrument.tally import Tally
from ..knobs import misfit, nearest
from ..objective import Objective, Terms, Weights, kl_penalty, weigh
from ..types import BadInput, TokenBatch


def load(
    trainer: str,
    name: str,
    knobs: Mapping[str, Any],
    dual_clip: float = 0.0,
    called: Mapping[str, str] | None = None,
) -> Objective:
    """Loss `name` with its `knobs` (the others have their defaults). Raises BadInput, which names
    the `trainer`, for an unknown loss or knob and for a value beyond its limits; `called` says what
    the trainer calls a knob."""
    if name not in losses.names():
        raise BadInput(f"{trainer}: unknown loss '{name}'{nearest(name, losses.names())}")
    module = losses.load(name)
    known = {f.name: f for f in fields(module.Params)}
    for key, value in knobs.items():
        if key not in known:
            hint = nearest(str(key), known) if known else "; it has no knobs"
            raise BadInput(f"{trainer}: loss '{name}' has no knob '{key}'{hint}")
        if isinstance(value, list):
            raise BadInput(f"{trainer}: {key} takes one value here, and no schedule: the trainer tells no step")
        if problem := misfit(value, known[key]):
            raise BadInput(f"{trainer}: {(called or {}).get(key, key)} {problem}")
    return Objective(module, module.Params(**knobs), Terms(dual_clip=dual_clip))


def token_batch(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage: Tensor,
    mask_BT: Tensor,
    *,
    entropy_BT: Tensor | None = None,
    sum_p2_BT: Tensor | None = None,
    sum_p2_logp_BT: Tensor | None = None,
    **others: Tensor | None,
) -> TokenBatch:
    """A TokenBatch of a trainer's tensors, in fp32 or wider; NaN for statistics that it does not
    have.

    `advantage` is [B, T] or one a row, [B]. Padded positions may hold anything, NaN and infinity
    included: nothing of them reaches a loss or a gradient. `others` are further fields of
    TokenBatch as they stand there. Only `logprob_BT` keeps its gradient.
    """
    inside_BT = mask_BT.detach().bool()
    wide = torch.promote_types(logprob_BT.dtype, torch.float32)
    absent = torch.full_like(logprob_BT, torch.nan, dtype=wide, requires_grad=False)
    if advantage.dim() == 1:
        advantage = advantage[:, None].expand_as(logprob_BT)
    # `where` before any arithmetic: the gradient of a product with 0 is still 0 · NaN.
    clean = lambda value: torch.where(inside_BT, value, 0)
    given = lambda value: absent if value is None else clean(value.detach().to(wide))
    return TokenBatch(
        logprob_BT=clean(logprob_BT.to(wide)),
        old_logprob_BT=given(old_logprob_BT),
        advantage_BT=given(advantage),
        mask_BT=mask_BT.detach().to(wide),
        entropy_BT=given(entropy_BT),
        sum_p2_BT=given(sum_p2_BT),
        sum_p2_logp_BT=given(sum_p2_logp_BT),
        **{
            name: clean(value) if name.endswith("_BT") else value for name, value in others.items() if value is not None
        },
    )


def refuse(trainer: str, objective: Objective, x: TokenBatch, *, whole: bool) -> None:
    """Raise BadInput where the loss cannot be served as it is meant: it reads what is not in `x`,
    or its rule is over the whole mini-batch and `x` is a part of one (`whole` is False)."""
    name = objective.loss.__name__.rpartition(".")[2]
    inside_BT = x.mask_BT.bool()
    for field in sorted(objective.needs):
        if bool(getattr(x, field)[inside_BT].isnan().any()):
            raise BadInput(
                f"{trainer}: loss '{name}' needs {field.rpartition('_')[0]}, which {trainer} does not give it"
            )
    if objective.whole_batch and not whole:
        raise BadInput(
            f"{trainer}: loss '{name}' is a rule over the whole mini-batch, and {trainer} gave it a part of one:"
            " it needs a mini-batch that is one micro-batch on one rank"
        )


@dataclass(frozen=True)
class Served:
    """What goes back to the trainer, and what the instrument reads."""

    loss: Tensor  # scalar, with the gradient of `logprob_BT`
    weights: Weights  # of the policy loss, without aggregation and factor
    scale_BT: Tensor  # what a token's loss counts in `loss`: ∂ loss / ∂ (loss of the token), 0 outside the mask
    facts: dict[str, float]  # fact/<name> of the loss, summed over tokens


def serve(
    objective: Objective, x: TokenBatch, aggregate: Callable[[Tensor], Tensor], factor_BT: Tensor | None = None
) -> Served:
    """The loss of `x` by the trainer's own `aggregate`, a linear function of the tokens' losses
    [B, T] (zero outside the mask).

    `factor_BT` multiplies every token's loss and gets no gradient: the trainer's correction for its
    sampler.
    """
    inside_BT = x.mask_BT.bool()
    factor_BT = None if factor_BT is None else torch.where(inside_BT, factor_BT.detach(), 0)
    factored = lambda loss_BT: loss_BT if factor_BT is None else loss_BT * factor_BT
    unit_BT = torch.zeros_like(x.mask_BT, requires_grad=True)
    with torch.enable_grad():
        (scale_BT,) = torch.autograd.grad(aggregate(factored(unit_BT)), unit_BT)
        scale_BT = torch.where(inside_BT, scale_BT, 0.0)
        weights, sums = weigh(objective, x, {"policy": scale_BT})
    terms, _ = objective.losses(x, {"policy": x.mask_BT})
    facts = {name: value for name, value in sums.items() if name.startswith("fact/")}
    return Served(aggregate(factored(terms["policy"])), weights, scale_BT, facts)


def token_facts(x: TokenBatch, w: Weights) -> dict[str, Tensor]:
    """[B, T] each, 0 or 1 or in nats: what has its mean over tokens as the metric of that name, for
    a trainer that takes means over tokens itself."""
    logprob_BT = x.logprob_BT.detach()
    code_BT = BY_PROBABILITY.codes(logprob_BT, x.entropy_BT, x.advantage_BT)
    side_BT = clip_side(x.ratio_BT.detach(), x.advantage_BT, w.clip_low_BT, w.clip_high_BT)
    made = {"tokens/zero_advantage": code_BT == 0}
    for c, name in enumerate(CLASSES[1:], 1):
        made |= {f"tokens/{name}": code_BT == c, f"clip/{name}": (code_BT == c) & (side_BT > 0)}
    made |= {f"clip/{name}": side_BT == s for s, name in enumerate(SIDES[1:], 1)}
    made |= {f"kl/old_{kind}": kl_penalty(x.old_logprob_BT, logprob_BT, kind) for kind in ("k1", "k3")}
    return {name: value_BT.to(logprob_BT.dtype) for name, value_BT in made.items()}


def known(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers: what the trainer's tensors could tell."""
    return {name: float(value) for name, value in metrics.items() if isfinite(value)}


# The columns of a Tally, and the statistics that each is made of besides log-probabilities.
STATISTICS = ("entropy_BT", "sum_p2_BT", "sum_p2_logp_BT")
_COLUMNS = {
    "tokens": (), "prob": (), "kl_k1": (), "kl_k3": (),
    "entropy": STATISTICS[:1], "q": STATISTICS[:1], "idle_entropy": STATISTICS[:1], "covariance": STATISTICS[:1],
    "gradient": STATISTICS[1:2], "dentropy": STATISTICS, "lever": STATISTICS,
}  # fmt: skip
# Aggregated as the loss is; the others are counted, and divided by the tokens.
_WITH_SCALE = ("gradient", "dentropy", "lever", "covariance")
# Names of `parts`, and the column that each sums: over all tokens, those of a class, of a side.
_OF_ALL = {
    "part/entropy": "entropy", "entropy/q_mean": "q", "part/entropy_no_gradient": "idle_entropy",
    "part/grad": "gradient", "dentropy/predicted": "dentropy", "dentropy/covariance": "covariance",
    "kl/old_k1": "kl_k1", "kl/old_k3": "kl_k3",
}  # fmt: skip
_OF_CLASS = {
    "tokens/": "tokens", "part/entropy_": "entropy", "part/grad_": "gradient", "dentropy/predicted_": "dentropy",
}  # fmt: skip
_OF_SIDE = {
    "clip/": "tokens", "part/prob_": "prob", "part/q_": "q", "part/grad_clip_": "gradient",
    "dentropy/predicted_clip_": "dentropy", "lever/": "lever",
}  # fmt: skip


def parts(tally: Tally, tokens: float, given: Collection[str] = STATISTICS) -> dict[str, float]:
    """What adds up over micro-batches and ranks, for a trainer that can only add scalars: the same
    names whatever the tokens are.

    `tally` holds one micro-batch, `tokens` counts the response tokens of its whole mini-batch on
    all ranks, and `given` are the STATISTICS that the trainer has. A name of docs/metrics.md is
    that metric, of one update; `part/<name>` is what the others are quotients of:

        entropy/<class>           part/entropy_<class> / tokens/<class>
        clip/prob_<side>          part/prob_<side> / clip/<side>
        entropy/q_<side>          part/q_<side> / clip/<side>
        grad/share_<class>, …     part/grad_<class>, … / part/grad
        entropy/share_no_gradient part/entropy_no_gradient / part/entropy
    """
    none = np.zeros((len(CLASSES), len(SIDES)))
    cells = {
        name: tally.sums.get(name, none) / (1 if name in _WITH_SCALE else tokens)
        for name, needed in _COLUMNS.items()
        if set(needed) <= set(given)
    }
    outside = cells["tokens"][:, 1:].sum(1)
    made = {"tokens/zero_advantage": cells["tokens"][0].sum()}
    made |= {name: cells[column].sum() for name, column in _OF_ALL.items() if column in cells}
    for c, name in enumerate(CLASSES[1:], 1):
        made[f"clip/{name}"] = outside[c]
        made |= {begin + name: cells[column][c].sum() for begin, column in _OF_CLASS.items() if column in cells}
    for s, name in enumerate(SIDES[1:], 1):
        made |= {begin + name: cells[column][:, s].sum() for begin, column in _OF_SIDE.items() if column in cells}
    return {name: float(value) for name, value in made.items()}
