"""The gradient of a mini-batch: forward, weigh every token, back-propagate; and the critic's."""

from functools import partial

import torch
from torch import Tensor

from . import ranks
from .config import Config
from .model.critic import Critic, value_loss
from .model.memory import within
from .model.optimizer import clip_grad_norm
from .model.policy import Policy, scatter
from .objective import Gradient, Objective, WeightedTokens, Weights, weigh
from .types import Diverged, TokenBatch


def weighted_gradient(policy: Policy, mini: TokenBatch, objective: Objective) -> Gradient:
    """The gradient of `mini`, left in .grad and nowhere else, and the weight that it puts on each
    token.

    Micro-batching never changes it; where memory runs out it is taken again from smaller ones.
    Raises OutOfMemory when no smaller micro-batch helps.
    """
    return within(policy, partial(_gradient, policy, mini, objective))


def _gradient(policy: Policy, mini: TokenBatch, objective: Objective) -> Gradient:
    policy.model.zero_grad(set_to_none=True)
    scales = objective.scales(mini)
    whole: Weights | None = None
    sums: dict[str, float] = {}
    # A rule over the whole mini-batch sees everything before any gradient is taken.
    if objective.whole_batch and (ranks.world() > 1 or len(list(policy.micro_batches(mini))) > 1):
        whole, sums = weigh(objective, mini.but(**policy.evaluate(mini)), scales)
        sums = {name: value * (1 / ranks.world()) for name, value in sums.items()}  # every rank has computed all of it
    parts = []
    for index, micro in policy.micro_batches(mini):
        s = policy.statistics(micro, entropy_grad="entropy" in scales)
        now = dict(logprob_BT=s.logprob_N, entropy_BT=s.entropy_N, sum_p2_BT=s.sum_p2_N, sum_p2_logp_BT=s.sum_p2_logp_N)
        x = micro.but(**{name: scatter(value_N.detach(), micro.mask_BT) for name, value_N in now.items()})
        own_scales = {name: _cut(scale_BT, index, micro) for name, scale_BT in scales.items()}
        if whole is None:
            weights, own_sums = weigh(objective, x, own_scales)
        else:
            weights, own_sums = whole.each(partial(_cut, index=index, micro=micro)), {}
        inside = micro.mask_BT.bool()
        roots, slopes = [s.logprob_N], [weights.total_slope_BT[inside]]
        if weights.entropy_slope_BT is not None:
            roots, slopes = [*roots, s.entropy_N], [*slopes, weights.entropy_slope_BT[inside]]
        torch.autograd.backward(roots, slopes)
        parts.append(WeightedTokens(index, x, weights, own_scales["policy"], own_sums))
    return Gradient(mini, parts, sums)


def _cut(value_BT: Tensor, index: Tensor, micro: TokenBatch) -> Tensor:
    """The rows `index` of the mini-batch's `value_BT` as `micro` has them; 0 outside its mask."""
    return value_BT[index][:, : micro.mask_BT.shape[1]] * micro.mask_BT


def update_critic(
    config: Config, critic: Critic, optimizer: torch.optim.Optimizer, policy: Policy, mini: TokenBatch
) -> dict[str, float]:
    """One optimizer step of the critic on `mini`, token mean: sums for `metrics.critic_metrics`.
    Raises Diverged, before stepping, when its gradient is not finite."""
    sums = within(policy, partial(_critic_gradient, critic, policy, mini, config.critic.clip))
    norm = clip_grad_norm(critic, config.critic.grad_clip)
    if not torch.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise Diverged(f"the critic's gradient norm is {float(norm)}; nothing was updated")
    optimizer.step()
    return sums | {"norm": float(norm), "updates": 1.0}


def _critic_gradient(critic: Critic, policy: Policy, mini: TokenBatch, clip: float) -> dict[str, float]:
    critic.zero_grad(set_to_none=True)
    tokens, sums = mini.mask_BT.sum(), dict.fromkeys(("loss", "clip", "tokens"), 0.0)
    for _, micro in policy.micro_batches(mini):
        loss_BT, clipped_BT = value_loss(critic(micro), micro, clip)
        (loss_BT * micro.mask_BT).sum().div(tokens).backward()
        counted = {"loss": loss_BT.detach(), "clip": clipped_BT, "tokens": torch.ones_like(loss_BT)}
        for name, value_BT in counted.items():
            sums[name] += float((value_BT * micro.mask_BT).sum())
    return sums
