"""verl: every loss of this package as a `loss_mode`, and the instrument as `actor/…` metrics.

    actor_rollout_ref.actor.policy_loss.loss_mode=cegppo.NAME           of `cegppo.losses.names()`
    actor_rollout_ref.actor.policy_loss._target_=cegppo.plugins.verl.PolicyLossConfig
    +actor_rollout_ref.actor.policy_loss.knobs={beta1:0.5,beta2:1.0}    what verl has no key for

Importing this file registers the losses. An entry point does that in every process that imports
verl (verl_entry.py), `VERL_USE_EXTERNAL_MODULES=cegppo.plugins.verl` does it without one.

verl's registry gives a loss neither entropy nor anything else of the distribution, and averages
what a loss returns over micro-batches of any size. So `ppo_loss`, which calls it, is wrapped: it
hands on what the model's output says of each token (verl_statistics.py adds to that), and marks
what we measure as sums. With verl's own losses it does nothing.

Written for verl 0.9.1; a loss has had this signature since 0.7. docs/verl.md has the metric map.
"""

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import verl.workers.config as verl_config
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils import losses as verl_losses
from verl.workers.utils.padding import no_padding_2_padding

from .. import losses
from ..instrument.tally import Tally
from ..objective import Objective
from ..types import BadInput
from .batch import STATISTICS, load, parts, refuse, serve, token_batch
from .verl_names import DUAL_CLIP, PREFIX, SLOTS, slots

SUMMED = ("tokens", "clip", "part", "entropy", "dentropy", "lever", "kl", "fact")  # sections of what is measured

log = logging.getLogger(__name__)
_objectives: dict[str, Objective] = {}  # by what was asked for
# What ppo_loss knows and verl's registry does not pass on, for the call under way.
_given: ContextVar[dict[str, Tensor] | None] = ContextVar("given", default=None)


@dataclass
class PolicyLossConfig(verl_config.PolicyLossConfig):
    """verl's own, with a place for the knobs that it has no key for."""

    knobs: dict[str, Any] = field(default_factory=dict)


def objective_of(name: str, config: Any) -> Objective:
    """Loss `name` with what verl's actor `config` says. Raises BadInput."""
    loss_config, knobs = config.policy_loss, dict(config.policy_loss.get("knobs", None) or {})
    for knob, slot in slots(name).items():
        if knob in knobs:
            raise BadInput(f"verl: policy_loss.knobs.{knob}: verl's own key for it is actor.{slot}")
        section, _, key = slot.rpartition(".")
        value = (loss_config if section else config).get(key)
        knobs[knob] = config.clip_ratio if value is None and knob in SLOTS else value
    dual_clip = config.get(DUAL_CLIP)
    if not dual_clip > 1:
        raise BadInput(f"verl: actor.{DUAL_CLIP} must be above 1 (inf is off), not {dual_clip}")
    asked = repr((name, sorted(knobs.items()), dual_clip))
    if asked not in _objectives:
        called = {knob: f"actor.{slot}" for knob, slot in slots(name).items()}
        made = _objectives[asked] = load("verl", name, knobs, float(dual_clip), called)
        log.warning("cegppo: loss '%s' with %s, dual clip at %s", name, made.params, dual_clip)
    return _objectives[asked]


def policy_loss(
    name: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Loss `name` with the signature of verl's registry: all tensors [B, T]; the scalar loss that
    `agg_loss` makes of it, and the `parts` of this micro-batch as `actor/<part>`.

    Called by `ppo_loss` they add up to the mini-batch's; by anything else they are what verl's own
    losses return, means over this micro-batch. Raises BadInput for what cannot be served.
    """
    if config is None:
        raise BadInput(f"verl: loss '{PREFIX}{name}' needs the actor's config")
    objective, given = objective_of(name, config), _given.get()
    info = config.global_batch_info
    x = token_batch(log_prob, old_log_prob, advantages, response_mask, **(given or {}))
    tokens = info.get("batch_num_tokens")
    whole = objective.whole_batch and tokens is not None and float(x.mask_BT.sum()) == float(tokens)
    refuse("verl", objective, x, whole=whole)
    aggregate = lambda loss_BT: agg_loss(loss_BT, response_mask, loss_agg_mode, **info)
    served = serve(objective, x, aggregate, rollout_is_weights)
    tally = Tally()
    tally.add_tokens(x, served.weights, served.scale_BT)
    # verl means over ranks what it sums over micro-batches.
    over = float(x.mask_BT.sum()) if given is None or tokens is None else tokens / info.get("dp_size", 1)
    made = parts(tally, over, given or ()) | {name: value / over for name, value in served.facts.items()}
    made |= {f"ratio/{end}": of.get("ratio", 1.0) for end, of in (("min", tally.least), ("max", tally.greatest))}
    return served.loss, {f"actor/{name}": value for name, value in made.items()}


def ours(config: Any) -> bool:
    """Whether the actor of `config` trains with a loss of this package."""
    return config is not None and config.policy_loss.get("loss_mode", "").startswith(PREFIX)


def _with_sums(ppo_loss: Callable[..., tuple[Tensor, dict]]) -> Callable[..., tuple[Tensor, dict]]:
    """verl's `ppo_loss`; with a loss of ours it is told what the model's output says of each token,
    and what it returns adds up over micro-batches and ranks."""

    @functools.wraps(ppo_loss)
    def wrapped(config: Any, model_output: dict, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        if not ours(config):
            return ppo_loss(config, model_output, data, dp_group)
        given = {key: no_padding_2_padding(model_output[key], data) for key in STATISTICS if key in model_output}
        if "entropy" in model_output and not given:  # actor.calculate_entropy
            given["entropy_BT"] = no_padding_2_padding(model_output["entropy"], data).detach()
        if "entropy" in data:  # of the pass that made old_log_probs
            given["old_entropy_BT"] = data.select("entropy").to_padded_tensor()["entropy"]
        token = _given.set(given)
        try:
            loss, metrics = ppo_loss(config, model_output, data, dp_group)
        finally:
            _given.reset(token)
        if config.global_batch_info.get("batch_num_tokens") is None:  # then each is of its micro-batch alone
            return loss, metrics
        for key, metric in metrics.items():
            if key.removeprefix("actor/").split("/")[0] in SUMMED:
                metrics[key] = Metric(AggregationType.SUM, metric.values[0])
        for end, kind in (("min", AggregationType.MIN), ("max", AggregationType.MAX)):
            metrics[f"actor/ratio/{end}"] = Metric(kind, metrics[f"actor/ratio/{end}"].values[0])
        return loss, metrics

    return wrapped


def _register() -> None:
    for name in losses.names():
        register_policy_loss(PREFIX + name)(functools.partial(policy_loss, name))
    verl_losses.ppo_loss = _with_sums(verl_losses.ppo_loss)


_register()
