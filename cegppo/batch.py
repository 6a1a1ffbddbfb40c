"""From prompts to mini-batches: what a step samples, and the batch of tokens that it trains on."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import advantage, metrics
from .config import Config
from .explore import NONE
from .model.critic import with_values
from .model.memory import within
from .model.policy import Policy
from .objective import Objective, aggregation
from .rollout import vllm
from .schedules import Values
from .state import TrainState
from .types import Diverged, Group, TokenBatch, Verdict


def sample_groups(config: Config, state: TrainState, step: int) -> tuple[list[Group], list[Group]]:
    """(everything sampled, but for what a rule of exploration asked for on top; what trains): a
    step's groups, dropped and refilled as `rollout.drop_constant_groups` says."""
    r, n = config.rollout, config.group_size
    sampled: list[Group] = []
    trained: list[Group] = []
    for _ in range(1 + (r.max_refills if r.drop_constant_groups == "refill" else 0)):
        prompts = state.stream.take(r.prompts_per_round or config.prompts_per_step)
        rollouts = state.explorer.sample(prompts, n, step)
        scores = state.score(rollouts, step)
        for p, prompt in enumerate(prompts):
            rows = slice(p * n, (p + 1) * n)
            group = Group(prompt, tuple(rollouts[rows]), tuple(scores[rows]))
            sampled.append(group)
            dropped = r.drop_constant_groups != "no" and group.constant
            if not dropped and len(trained) < config.prompts_per_step:
                trained.append(group)
        if len(trained) == config.prompts_per_step:
            break
    return sampled, state.explorer.chosen(trained, step)


def make_batch(
    config: Config,
    state: TrainState,
    groups: list[Group],
    objective: Objective,
    values: Values,
    stale: TokenBatch | None = None,
) -> tuple[TokenBatch, dict[str, float]]:
    """The tokens of `groups` with the old policy's statistics, the reference's and the critic's
    where there are any, and advantages; and the metrics of them. `stale`: the same tokens under the
    older weights that sampled them, where those did. Raises Diverged where the sampler had other
    weights than it was to have."""
    policy, critic, reference, a = state.policy, state.critic, state.reference, config.advantage
    x = collated(policy, groups, objective) if stale is None else started(config, policy, stale, objective)
    x = x.but(advantage_BT=_group_advantages(config, state, groups, x))
    state.explorer.learn(groups, x)
    if reference is not None:
        x = x.but(ref_logprob_BT=within(policy, partial(reference.evaluate, x))["logprob_BT"])
    if critic is not None:
        x = within(policy, partial(with_values, critic, x, a.gamma, a.lam, a.whiten, a.soft))
    elif a.soft:
        x = x.but(advantage_BT=advantage.soft(x, a.soft))
    made: dict[str, float] = {}
    if a.polarity > 1:
        scale_BT = aggregation(x, config.update.aggregate, config.rollout.max_tokens)
        drift = values["advantage.polarity_drift"]
        advantage_BT, facts = advantage.polarised(x, scale_BT, drift, a.polarity)
        x = x.but(advantage_BT=advantage_BT)
        made |= {f"polarity/{name}": value for name, value in facts.items()}
    check_hand_over(config, policy, x)
    if config.explore["name"] != NONE:
        made |= metrics.by_origin(x)
    sampled = [rollout for group in groups for rollout in group.rollouts]
    if stale is None and len(x) > 1 and x.checked_B.min() == 1 and all(r.statistics is not None for r in sampled):
        made["old_logprobs/recomputed"] = 1.0  # the sampler said them, and a check of some did not agree
    return x, made | metrics.batch_metrics(x)


def collated(policy: Policy, groups: list[Group], objective: Objective) -> TokenBatch:
    """The tokens of `groups` under the policy as it is now; no advantages yet."""
    scores = [score for group in groups for score in group.scores]
    collate = lambda: policy.collate(
        [rollout for group in groups for rollout in group.rollouts],
        advantage_B=np.zeros(len(scores)),
        reward_B=np.array([score.reward for score in scores]),
        correct_B=np.array([score.verdict is Verdict.CORRECT for score in scores], dtype=float),
        group_B=[n for n, group in enumerate(groups) for _ in group.rollouts],
    )
    return _with_proxy(policy, within(policy, collate), objective)


def started(config: Config, policy: Policy, x: TokenBatch, objective: Objective) -> TokenBatch:
    """`x`, sampled by older weights and computed under them, with the statistics of the policy that
    starts the step. The ratio stays against the older weights; with `update.correction` it is
    against that policy, and ρ = π_old / π_sampler corrects for the age as well."""
    now = within(policy, partial(policy.evaluate, x))
    x = x.but(**now, old_entropy_BT=now["entropy_BT"], behaviour_logprob_BT=x.old_logprob_BT)
    if config.update.correction == "none":
        return x
    return _with_proxy(policy, x.but(old_logprob_BT=now["logprob_BT"]), objective)


def _with_proxy(policy: Policy, x: TokenBatch, objective: Objective) -> TokenBatch:
    """`x` with what a loss asks of the old policy besides its log-probabilities."""
    if objective.proxy is None:
        return x
    return x.but(proxy_logprob_BT=within(policy, partial(policy.proxy, x, objective.proxy)))


def _group_advantages(config: Config, state: TrainState, groups: list[Group], x: TokenBatch) -> Tensor:
    """[B, T] What a response earned beside its group, on each of its tokens."""
    a, rewards = config.advantage, state.explorer.rewards(groups, x)
    if a.kind == "batch":  # no rule of exploration brings advantages of its own (config/checks.py)
        found = advantage.over_batch(rewards)
    else:
        estimate = advantage.estimator(a.kind, a.quantile)
        found = [
            estimate(reward_G) if group.advantages is None else np.array(group.advantages)
            for group, reward_G in zip(groups, rewards)
        ]
    advantage_B = torch.tensor(np.concatenate(found), dtype=torch.float32, device=x.mask_BT.device)
    return advantage_B[:, None] * x.mask_BT


def check_hand_over(config: Config, policy: Policy, x: TokenBatch) -> None:
    """Raises Diverged when the sampler was handed other weights than the policy has."""
    v = config.rollout.vllm
    if config.rollout.engine == "hf":  # samples with the policy's own weights
        return
    bound = vllm.default_max_mismatch(policy, v) if v.max_mismatch is None else v.max_mismatch
    largest, mean = metrics.mismatch(x)
    if not mean <= bound:
        raise Diverged(
            f"the hand-over of weights to vllm failed: its log-probabilities of its own tokens are {mean:.2g} nats"
            f" off the trainer's on average and {largest:.2g} at most, above rollout.vllm.max_mismatch={bound:g};"
            " nothing was updated"
        )


def split_evenly(config: Config, x: TokenBatch, objective: Objective, step: int) -> list[TokenBatch]:
    """The mini-batches of a step's updates, in order. Where dropped groups left less than a full
    step, there are fewer updates, of about the size that `updates_per_step` gives a full one."""
    full = config.prompts_per_step * config.group_size // config.updates_per_step
    minis = x.split(-(-len(x) // full))
    if objective.draws:
        minis = [with_draws(mini, [config.seed, step, number]) for number, mini in enumerate(minis)]
    return minis


def with_draws(mini: TokenBatch, seed: list[int]) -> TokenBatch:
    """`mini` with uniform draws of `seed`, for a loss that draws; the same however it is cut up."""
    draws_BT = np.random.default_rng(seed).random(tuple(mini.mask_BT.shape), dtype=np.float32)
    return mini.but(uniform_BT=torch.from_numpy(draws_BT).to(mini.mask_BT.device))
