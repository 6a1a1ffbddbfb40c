"""One optimizer step on a mini-batch: forward, weigh every token, back-propagate, step."""

import torch
from torch import Tensor

from . import ranks
from .instrument.ledger import Ledger
from .instrument.tally import Tally
from .instrument.tokens import TokenRecord
from .model.critic import Critic, value_loss
from .model.memory import within
from .model.optimizer import clip_grad_norm
from .model.policy import Policy, scatter
from .objective import Objective, Weights, weigh
from .types import TokenBatch


class Diverged(Exception):
    """A gradient that is not finite, or a sampler that is not the policy; nothing was updated.
    Printed as one line; exit code 1."""

    batch: TokenBatch | None = None  # what the gradient was of
    number = 0  # of the update in its step


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    mini: TokenBatch,
    objective: Objective,
    tally: Tally,
    *,
    grad_clip: float = 0.0,
    ledger: Ledger | None = None,
    tokens: TokenRecord | None = None,
) -> float:
    """One optimizer step on `mini`; the gradient norm before clipping to `grad_clip` (0: off).

    Micro-batching never changes the gradient; where memory runs out it is taken again from smaller
    ones. `ledger` and `tokens` look on and change nothing. Raises, before stepping, Diverged when
    the gradient is not finite, and OutOfMemory when no smaller micro-batch helps.
    """
    scales = objective.scales(mini)
    seen, sums, norm = within(
        policy, lambda: _gradient(policy, optimizer, mini, objective, scales, grad_clip=grad_clip, ledger=ledger)
    )
    tally.add_all(sums, share=1 / ranks.world())  # every rank has computed all of it
    # Only now, when no pass can fail any more: what is counted is counted once.
    for x, w, scale_BT, own in seen:
        tally.add_tokens(x, w, scale_BT)
        tally.add_all(own)
        if tokens is not None:
            tokens.add(x, w, scale_BT)
    optimizer.step()
    if ledger is not None:
        ledger.after()
    return norm


# A micro-batch with its statistics, its weights, its aggregation factor, and sums for the metrics.
Counted = tuple[TokenBatch, Weights, Tensor, dict[str, float]]


def _gradient(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    mini: TokenBatch,
    objective: Objective,
    scales: dict[str, Tensor],
    *,
    grad_clip: float,
    ledger: Ledger | None,
) -> tuple[list[Counted], dict[str, float], float]:
    """The clipped gradient of `mini`, in .grad and nowhere else, so that it may be called again
    when memory runs out: (what is to be counted of each micro-batch, sums over the whole
    mini-batch where the rule needed all of it, the norm before clipping)."""
    optimizer.zero_grad(set_to_none=True)
    whole, sums = None, dict[str, float]()
    # A rule over the whole mini-batch sees everything before any gradient is taken.
    if objective.whole_batch and (ranks.world() > 1 or len(list(policy.micro_batches(mini))) > 1):
        whole, sums = weigh(objective, mini.but(**policy.evaluate(mini)), scales)
    if ledger is not None:
        ledger.begin(mini)
    seen: list[Counted] = []
    for index, micro in policy.micro_batches(mini):
        cut = lambda value_BT: value_BT[index][:, : micro.mask_BT.shape[1]] * micro.mask_BT
        s = policy.statistics(micro, entropy_grad="entropy" in scales)
        now = dict(logprob_BT=s.logprob_N, entropy_BT=s.entropy_N, sum_p2_BT=s.sum_p2_N, sum_p2_logp_BT=s.sum_p2_logp_N)
        x = micro.but(**{name: scatter(value_N.detach(), micro.mask_BT) for name, value_N in now.items()})
        inside = micro.mask_BT.bool()
        if whole is None:
            w, own = weigh(objective, x, {name: cut(value) for name, value in scales.items()})
        else:
            w, own = whole.each(cut), {}
        roots, slopes = [s.logprob_N], [w.total_slope_BT[inside]]
        if w.entropy_slope_BT is not None:
            roots, slopes = [*roots, s.entropy_N], [*slopes, w.entropy_slope_BT[inside]]
        if ledger is not None:
            ledger.watch(s, index, x, w, cut(scales["policy"]))
        torch.autograd.backward(roots, slopes)
        if inside.any():  # not a pass that only keeps step with another rank
            seen.append((x, w, cut(scales["policy"]), own))
    norm = clip_grad_norm(policy.model, grad_clip)
    if not torch.isfinite(norm):
        raise _not_finite(f"the gradient norm is {float(norm)}", optimizer, mini)
    if ledger is not None:  # clip_grad_norm_ scales by min(1, max_norm / (norm + 1e-6))
        ledger.before(min(1.0, grad_clip / (float(norm) + 1e-6)) if grad_clip else 1.0)
    return seen, sums, float(norm)


def update_critic(
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    policy: Policy,
    mini: TokenBatch,
    sums: dict[str, float],
    *,
    clip: float,
    grad_clip: float,
) -> None:
    """One optimizer step of the critic on `mini`, token mean. Adds to `sums`."""
    tokens = mini.mask_BT.sum()
    add = lambda name, value: sums.__setitem__(name, sums.get(name, 0.0) + float(value))

    def gradient() -> list[dict[str, Tensor]]:
        optimizer.zero_grad(set_to_none=True)
        seen = []
        for _, micro in policy.micro_batches(mini):
            loss_BT, clipped_BT = value_loss(critic(micro), micro, clip)
            (loss_BT * micro.mask_BT).sum().div(tokens).backward()
            kept = {"loss": loss_BT.detach(), "clip": clipped_BT, "tokens": torch.ones_like(loss_BT)}
            seen.append({name: (value_BT * micro.mask_BT).sum() for name, value_BT in kept.items()})
        return seen

    for name, value in [pair for micro_sums in within(policy, gradient) for pair in micro_sums.items()]:
        add(name, value)
    norm = clip_grad_norm(critic, grad_clip)
    if not torch.isfinite(norm):
        raise _not_finite(f"the critic's gradient norm is {float(norm)}", optimizer, mini)
    optimizer.step()
    add("norm", norm)
    add("updates", 1)


def _not_finite(what: str, optimizer: torch.optim.Optimizer, mini: TokenBatch) -> Diverged:
    """With nothing left behind: no gradient, and moments that never saw it."""
    optimizer.zero_grad(set_to_none=True)
    error = Diverged(f"{what}; nothing was updated")
    error.batch = mini
    return error
