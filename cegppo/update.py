"""One optimizer step on a mini-batch."""

import torch

from . import ranks
from .config import Config
from .instrument.ledger import Ledger
from .instrument.tally import Tally
from .instrument.tokens import TokenRecord
from .model.critic import Critic, value_loss
from .model.optimizer import clip_grad_norm
from .model.policy import Policy, scatter
from .objective import Objective, Weights, weigh
from .types import TokenBatch


class Diverged(Exception):
    """A gradient that is not finite, or a sampler that is not the policy; nothing was updated.
    Printed as one line; exit code 1."""


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    mini: TokenBatch,
    objective: Objective,
    tally: Tally,
    ledger: Ledger | None = None,
    tokens: TokenRecord | None = None,
) -> float:
    """One optimizer step on `mini`; the gradient norm before clipping. Micro-batching never changes
    the gradient.

    `ledger` and `tokens` look on and change nothing. Raises Diverged, before stepping, when the
    gradient is not finite.
    """
    config = objective.config.update
    scales = objective.scales(mini)
    micro_batches = list(policy.micro_batches(mini))
    whole = None
    # Such a loss sees everything before any gradient is taken.
    if objective.whole_batch and (len(micro_batches) > 1 or ranks.world() > 1):
        whole = weigh(objective, mini.but(**policy.evaluate(mini)), scales)
    optimizer.zero_grad(set_to_none=True)
    for index, micro in micro_batches:
        cut = lambda value_BT: value_BT[index][:, : micro.mask_BT.shape[1]] * micro.mask_BT
        s = policy.statistics(micro, entropy_grad="entropy" in scales)
        now = dict(logprob_BT=s.logprob_N, entropy_BT=s.entropy_N, sum_p2_BT=s.sum_p2_N, sum_p2_logp_BT=s.sum_p2_logp_N)
        x = micro.but(**{name: scatter(value_N.detach(), micro.mask_BT) for name, value_N in now.items()})
        inside = micro.mask_BT.bool()
        if whole is None:
            w = weigh(objective, x, {name: cut(value) for name, value in scales.items()})
        else:
            entropy_part = None if whole.entropy_coefficient_BT is None else cut(whole.entropy_coefficient_BT)
            w = Weights(cut(whole.policy_BT), cut(whole.policy_slope_BT), cut(whole.coefficient_BT), entropy_part, {})
        roots, slopes = [s.logprob_N], [w.coefficient_BT[inside]]
        if w.entropy_coefficient_BT is not None:
            roots, slopes = [*roots, s.entropy_N], [*slopes, w.entropy_coefficient_BT[inside]]
        if ledger is not None:
            entropy_slope_N = slopes[1] if len(slopes) > 1 else None
            ledger.watch(s, x, w.policy_slope_BT[inside], slopes[0], entropy_slope_N)
        torch.autograd.backward(roots, slopes)
        if not inside.any():  # a pass that only keeps step with another rank
            continue
        d = objective.config.diagnostics
        tally.add_tokens(x, w.policy_BT, cut(scales["policy"]), objective.clip, d.classes, d.threshold)
        if tokens is not None:
            tokens.add(x, w.policy_BT, cut(scales["policy"]))
        for name, value in w.sums.items():
            tally.add(name, value)
    for name, value in (whole.sums if whole else {}).items():
        tally.add(name, value / ranks.world())  # every rank has computed all of it
    norm = clip_grad_norm(policy.model, config.grad_clip)
    if not torch.isfinite(norm):
        raise Diverged(f"the gradient norm is {float(norm)}; nothing was updated")
    if ledger is not None:  # clip_grad_norm_ scales by min(1, max_norm / (norm + 1e-6))
        ledger.before(min(1.0, config.grad_clip / (float(norm) + 1e-6)) if config.grad_clip else 1.0)
    optimizer.step()
    return float(norm)


def update_critic(
    critic: Critic, optimizer: torch.optim.Optimizer, policy: Policy, mini: TokenBatch, config: Config, tally: Tally
) -> None:
    """One optimizer step of the critic on `mini`, token mean."""
    tokens = mini.mask_BT.sum()
    optimizer.zero_grad(set_to_none=True)
    for _, micro in policy.micro_batches(mini):
        loss_BT, clipped_BT = value_loss(critic(micro), micro, config.critic.clip)
        (loss_BT * micro.mask_BT).sum().div(tokens).backward()
        tally.add("critic/loss", (loss_BT.detach() * micro.mask_BT).sum())
        tally.add("critic/clip", (clipped_BT * micro.mask_BT).sum())
        tally.add("critic/tokens", micro.mask_BT.sum())
    norm = clip_grad_norm(critic, config.critic.grad_clip)
    if not torch.isfinite(norm):
        raise Diverged(f"the critic's gradient norm is {float(norm)}; nothing was updated")
    optimizer.step()
    tally.add("critic/norm", float(norm))
    tally.add("critic/updates", 1)
