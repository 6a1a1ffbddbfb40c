"""The loop. One for every algorithm: what differs between methods is the weight a token loss puts
on a token.

prompt → rollout → reward → advantage → token loss → update → metrics
"""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import advantage, losses, memory, parallel, testbed
from .config import SAMPLING, Config
from .counts import mean_accuracy
from .data import PromptStream, benchmarks
from .entropy import ClipRange, Tally
from .evaluate import Benchmark, Evaluator
from .ledger import Ledger
from .memory import OffloadedAdamW
from .policy import Critic, Policy, scatter
from .record import Record, TokenRecord, checkpoint
from .reward import grade
from .rollout import vllm
from .rollout.hf import HFSampler
from .types import MAX_LOG_RATIO, BadInput, Prompt, Rollout, Score, TokenBatch, Verdict


class Diverged(Exception):
    """A gradient that is not finite, or a sampler that is not the policy; nothing was updated.
    Printed as one line; exit code 1."""


# --------------------------------------------------------------------------------------------------


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
        """The bounds for clip facts: the loss's own; 0.2 on both sides for a loss that has none."""
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
    if objective.whole_batch and (len(micro_batches) > 1 or parallel.world() > 1):
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
        tally.add(name, value / parallel.world())  # every rank has computed all of it
    norm = clip_grad_norm(policy.model, config.grad_clip)
    if not torch.isfinite(norm):
        raise Diverged(f"the gradient norm is {float(norm)}; nothing was updated")
    if ledger is not None:  # clip_grad_norm_ scales by min(1, max_norm / (norm + 1e-6))
        ledger.before(min(1.0, config.grad_clip / (float(norm) + 1e-6)) if config.grad_clip else 1.0)
    optimizer.step()
    return float(norm)


def clip_grad_norm(model: torch.nn.Module, most: float) -> Tensor:
    """Scale the gradient down to norm `most` (0: leave it); the norm before, over all ranks'
    shards."""
    return parallel.whole(torch.nn.utils.clip_grad_norm_(model.parameters(), most or float("inf")))


def value_loss(value_BT: Tensor, x: TokenBatch, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped value loss per token and where the clip holds, [B, T] each: ½ max((V − R)²,
    (V_clipped − R)²)."""
    near_BT = x.old_value_BT + (value_BT - x.old_value_BT).clamp(-clip, clip)
    plain_BT, clipped_BT = (value_BT - x.return_BT).square(), (near_BT - x.return_BT).square()
    return torch.maximum(plain_BT, clipped_BT) / 2, clipped_BT > plain_BT


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


# --------------------------------------------------------------------------------------------------


@dataclass
class Collected:
    """What one step sampled, and the part of it that trains."""

    rollouts: list[Rollout]  # everything sampled
    scores: list[Score]
    trained: list[int]  # places of what trains, whole groups
    groups: int  # sampled
    constant_groups: int


class Trainer:
    """Everything a run holds in memory, and how it is saved and restored."""

    def __init__(self, config: Config):
        self.config = config
        path = testbed.base_model() if config.model.path == "testbed" else config.model.path
        self.start = Path(path).name if config.model.path == "testbed" else str(path)  # what the run starts from
        self.start_weights = testbed.weights_digest(path) if config.model.path == "testbed" else None
        with parallel.together():  # before any weights are exchanged, for which every rank must be there
            memory.check(config, path, shards=parallel.world())
            self.policy = load_policy(config, path)
        self.reference = self.policy.frozen_copy().shard() if config.update.kl_coef else None
        self.critic = Critic(self.policy).shard() if config.advantage.kind == "gae" else None
        self.policy.shard()
        self.optimizer = adamw(self.policy.model.parameters(), config.update.lr, config)
        self.critic_optimizer = adamw(self.critic.parameters(), config.critic.lr, config) if self.critic else None
        made = benchmarks(config, self.policy.tokenizer)
        held_out = {prompt.text for prompts in made.values() for prompt in prompts}
        self.stream = PromptStream(config, self.policy.tokenizer, held_out)
        self.sampler = sampler(self.policy, config)
        self.evaluator = evaluator(self.sampler, config, made)
        self.step, self.best, self.elapsed = 0, float("-inf"), 0.0
        self.tokens: TokenRecord | None = None  # of the last step, when it was recorded
        self._probe: list[list[list[int]]] | None = None  # [prompt tokens, response tokens] of each row

    @property
    def objective(self) -> Objective:
        """Of the step under way."""
        return Objective.at(self.config, self.step)

    @cached_property
    def probe(self) -> TokenBatch:
        """The ledger's fixed probe: a response of the starting policy to each of the first
        training prompts."""
        if self._probe is None:
            prompts = PromptStream(self.config, self.policy.tokenizer, self.stream.held_out).take(
                self.config.diagnostics.probe
            )
            # Index group_size is no training response's, so the probe is not part of what is
            # trained on.
            rollouts = self.sampler.sample_index(prompts, self.config.group_size, 0)
            self._probe = [[list(r.prompt.token_ids), list(r.token_ids)] for r in rollouts]
        rows = [
            Rollout(Prompt(f"probe/{i}", "probe", "", tuple(p), ""), 0, tuple(a), (0.0,) * len(a), "stop", "")
            for i, (p, a) in enumerate(self._probe)
        ]
        zeros = np.zeros(len(rows))
        return self.policy.collate(rows, zeros, zeros, zeros)

    # -- the six stations of a step

    def collect(self, step: int) -> Collected:
        """Prompts, rollouts and scores; groups dropped and refilled as
        `rollout.drop_constant_groups` says."""
        config, n = self.config, self.config.group_size
        rollouts: list[Rollout] = []
        scores: list[Score] = []
        kept: list[int] = []
        constant_groups = 0
        rounds = 1 + (config.rollout.max_refills if config.rollout.drop_constant_groups == "refill" else 0)
        for _ in range(rounds):
            prompts = self.stream.take(config.rollout.prompts_per_round or config.prompts_per_step)
            fresh = self.sampler.sample(prompts, n, step)
            rules = dict(
                source=config.reward, seed=config.seed, step=step, values=tuple(config.reward_values),
                max_tokens=config.rollout.max_tokens,
                overlong_buffer=round(config.overlong_buffer * config.rollout.max_tokens),
                limits=config.grader,
            )  # fmt: skip
            fresh_scores = parallel.divided(lambda part: grade(part, **rules), fresh)
            # DAPO drops groups that are all right or all wrong; a penalty for length does not make
            # such a group teach anything.
            constant_P = advantage.constant_groups(np.array([s.graded for s in fresh_scores]).reshape(-1, n))
            drops = config.rollout.drop_constant_groups != "no"
            for p in range(len(prompts)):
                if not (drops and constant_P[p]) and len(kept) < config.prompts_per_step * n:
                    kept += range(len(rollouts) + p * n, len(rollouts) + (p + 1) * n)
            constant_groups += int(constant_P.sum())
            rollouts += fresh
            scores += fresh_scores
            if len(kept) == config.prompts_per_step * n:
                break
        return Collected(rollouts, scores, kept, len(rollouts) // n, constant_groups)

    def batch(self, collected: Collected) -> TokenBatch:
        """The TokenBatch of what trains, advantages included."""
        config = self.config
        rollouts = [collected.rollouts[i] for i in collected.trained]
        reward_B = np.array([collected.scores[i].reward for i in collected.trained])
        correct_B = np.array([collected.scores[i].verdict is Verdict.CORRECT for i in collected.trained], dtype=float)
        reward_PG = reward_B.reshape(-1, config.group_size)
        kind = config.advantage.kind
        adv_B = {"group": advantage.group, "centred": advantage.centred, "gae": np.zeros_like}[kind](reward_PG).ravel()
        x = self.policy.collate(rollouts, adv_B, reward_B, correct_B)
        if self.reference is not None:
            x = x.but(ref_logprob_BT=self.reference.evaluate(x)["logprob_BT"])
        if self.critic is not None:
            x = self._with_values(x)
        return x

    @torch.no_grad()
    def _with_values(self, x: TokenBatch) -> TokenBatch:
        value_BT = torch.zeros_like(x.mask_BT)
        for index, micro in self.policy.micro_batches(x):
            value_BT[index, : micro.mask_BT.shape[1]] += self.critic(micro)
        value_BT = parallel.total(value_BT)
        reward_BT = torch.zeros_like(x.mask_BT)
        reward_BT[torch.arange(len(x)), x.length_B.long() - 1] = (
            x.reward_B
        )  # the whole reward comes with the last token
        a = self.config.advantage
        advantage_BT, return_BT = advantage.gae(reward_BT, value_BT, x.mask_BT, a.gamma, a.lam)
        if a.whiten:
            advantage_BT = advantage.whiten(advantage_BT, x.mask_BT)
        return x.but(advantage_BT=advantage_BT, old_value_BT=value_BT, return_BT=return_BT)

    def run_step(self) -> dict[str, float]:
        """One step: the metrics of it."""
        config, step = self.config, self.step
        start = time.perf_counter()
        collected = self.collect(step)
        sampled = time.perf_counter()
        tally, norms = Tally(), []
        x = self.batch(collected) if collected.trained else None
        if x is not None:
            self._verify(x)
        factor = min(1.0, (step + 1) / max(1, config.update.warmup_steps))
        set_lr(self.optimizer, config.update.lr * factor)
        minis = (
            self.mini_batches(x)
            if x is not None and (self.critic is None or step >= config.critic.warmup_steps)
            else []
        )
        looks = bool(minis) and config.diagnostics.every > 0 and (step + 1) % config.diagnostics.every == 0
        tokens = self._token_record(collected) if looks else None
        ledger = None
        for number, mini in enumerate(minis):
            if looks and number == len(minis) - 1:  # the last update is the furthest off-policy
                ledger = Ledger(
                    self.policy,
                    self.optimizer,
                    self.probe,
                    self.objective.clip,
                    config.diagnostics.classes,
                    config.diagnostics.threshold,
                )
            if tokens is not None:
                tokens.update = number
            norms.append(update(self.policy, self.optimizer, mini, self.objective, tally, ledger, tokens))
        entries = ledger.after() if ledger is not None else {}
        for mini in self.mini_batches(x) if x is not None and self.critic is not None else []:
            update_critic(self.critic, self.critic_optimizer, self.policy, mini, config, tally)
        self.sampler.load(self.policy)
        end = time.perf_counter()
        self.step += 1
        self.elapsed += end - start
        self.tokens = tokens
        metrics = summarize(collected, x, tally.gathered(), norms) | entries
        knobs = config.loss_knobs(step)
        metrics |= {f"knob/{name}": knobs[name] for name, value in config.loss.items() if isinstance(value, list)}
        metrics |= {
            "lr": config.update.lr * factor,
            "time/rollout": sampled - start,
            "time/update": end - sampled,
            "time/step": end - start,
        }
        return metrics

    def _verify(self, x: TokenBatch) -> None:
        """Raise Diverged when the sampler was handed other weights than the trainer has."""
        v = self.config.rollout.vllm
        if self.config.rollout.engine == "hf":  # samples with the trainer's own weights
            return
        bound = vllm.default_max_mismatch(self.policy, v) if v.max_mismatch is None else v.max_mismatch
        largest, mean = mismatch(x)
        if not mean <= bound:
            raise Diverged(
                f"the hand-over of weights to vllm failed: its log-probabilities of its own tokens are {mean:.2g} nats"
                f" off the trainer's on average and {largest:.2g} at most, above rollout.vllm.max_mismatch={bound:g};"
                " nothing was updated"
            )

    def mini_batches(self, x: TokenBatch) -> list[TokenBatch]:
        """The mini-batches of a step's updates, in order. Where dropped groups left less than a
        full step, there are fewer updates, of about the size that `updates_per_step` gives a full
        one."""
        full = self.config.prompts_per_step * self.config.group_size // self.config.updates_per_step
        return x.split(-(-len(x) // full))

    def _token_record(self, collected: Collected) -> TokenRecord:
        rollouts = [collected.rollouts[i] for i in collected.trained]
        rewards = [collected.scores[i].reward for i in collected.trained]
        return TokenRecord(self.step + 1, rollouts, rewards, self.policy.tokenizer, self.config, self.objective.clip)

    # -- saving and restoring

    def save(self, folder: Path | None) -> None:
        """Model (for `from_pretrained`), optimizer and critic (safetensors), and the counters
        (state.json).

        Whole tensors, whatever the number of ranks. Ranks without a folder give their shards.
        """
        self.policy.save(folder)
        save_tensors(optimizer_tensors(self.optimizer), folder, "optimizer.safetensors")
        if self.critic is not None:
            save_tensors(self.critic.state_dict(), folder, "critic.safetensors")
            save_tensors(optimizer_tensors(self.critic_optimizer), folder, "critic_optimizer.safetensors")
        if folder is None:
            return
        state = {
            "step": self.step,
            "best": self.best if np.isfinite(self.best) else None,
            "elapsed": self.elapsed,
            "stream": self.stream.state(),
            "probe": self._probe,
            "start": self.start,
        }
        (folder / "state.json").write_text(json.dumps(state))

    def restore(self, folder: Path) -> None:
        """Continue from `folder`, bit for bit. Raises BadInput when it cannot be read."""
        try:
            state = json.loads((folder / "state.json").read_text())
            if state["start"] != self.start:
                raise BadInput(
                    f"{folder}: the run started from {state['start']}, which is now {self.start}; choose another"
                    " run_dir"
                )
            left = parallel.load(self.policy.model, stored(folder / "model.safetensors"), strict=False)
            if left.unexpected_keys or set(left.missing_keys) - set(self.policy.model.all_tied_weights_keys):
                raise BadInput(f"{folder}: holds another model than {self.config.model.path}")
            load_optimizer(self.optimizer, folder / "optimizer.safetensors")
            if self.critic is not None:
                parallel.load(self.critic, stored(folder / "critic.safetensors"))
                load_optimizer(self.critic_optimizer, folder / "critic_optimizer.safetensors")
            self.stream.restore(state["stream"])
            self.step, self.elapsed, self._probe = state["step"], state["elapsed"], state["probe"]
            self.best = float("-inf") if state["best"] is None else state["best"]
        except BadInput:
            raise
        except Exception as error:  # a broken file surfaces as one of many exceptions
            raise BadInput(
                f"{folder}: unreadable checkpoint ({type(error).__name__}: {str(error).splitlines()[0][:150]})"
            ) from None
        self.sampler.load(self.policy)


def load_policy(config: Config, path: str | Path) -> Policy:
    """The policy of weights `path`, computing as `config` says."""
    m = config.model
    return Policy.load(
        path, m.device, dtype=m.dtype, packing=m.packing, checkpointing=m.gradient_checkpointing,
        head_chunk=m.head_chunk,
        temperature=config.rollout.temperature, micro_batch_tokens=config.update.micro_batch_tokens,
    )  # fmt: skip


def sampler(policy: Policy, config: Config) -> parallel.DividedSampler:
    """The sampler of training rollouts."""
    r = config.rollout
    rules = dict(seed=config.seed, temperature=r.temperature, top_p=r.top_p, top_k=r.top_k, max_tokens=r.max_tokens)
    if r.engine == "hf":
        return parallel.DividedSampler(HFSampler(policy, **rules))
    limits = [r.max_tokens, config.eval.max_tokens or 0, *(source.max_tokens or 0 for source in config.eval.benchmarks)]
    longest = config.data.max_prompt_tokens + max(limits)
    return parallel.DividedSampler(vllm.VLLMSampler(policy, **rules, stop=r.stop, longest=longest, settings=r.vllm))


def evaluator(base: parallel.DividedSampler, config: Config, made: dict[str, list[Prompt]]) -> Evaluator:
    """The evaluator of the configured benchmarks: the sampler `base` with each one's own rules
    or else the evaluation's."""
    e = config.eval
    max_tokens = config.rollout.max_tokens if e.max_tokens is None else e.max_tokens
    listed = []
    for source in e.benchmarks:
        own = {key: getattr(source, key) for key in SAMPLING if getattr(source, key) is not None}
        rules = dict(k=e.k, temperature=e.temperature, top_p=e.top_p, top_k=e.top_k, max_tokens=max_tokens) | own
        listed.append(Benchmark(source.name, made[source.name], rules.pop("k"), rules))
    return Evaluator(base.but(seed=e.seed), listed, config.grader)


def adamw(parameters: Any, lr: float, config: Config) -> torch.optim.AdamW:
    u = config.update
    kind = OffloadedAdamW if u.offload_optimizer else torch.optim.AdamW
    return kind(parameters, lr=lr, betas=(u.beta1, u.beta2), weight_decay=u.weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def save_tensors(tensors: dict[str, Tensor], folder: Path | None, name: str) -> None:
    """Whole tensors in a safetensors file; without a folder this rank only gives its shards."""
    made = {}
    for key, value in tensors.items():
        value = parallel.whole(value)
        if folder is not None:
            made[key] = value.cpu().contiguous()
    if folder is not None:
        save_file(made, folder / name)


def stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, one in memory at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            yield name, file.get_tensor(name)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter number>.<exp_avg|exp_avg_sq|step>`."""
    return {f"{i}.{k}": v for i, entry in optimizer.state_dict()["state"].items() for k, v in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in stored(path):
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = parallel.like(value, parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def mismatch(x: TokenBatch) -> tuple[float, float]:
    """Largest and mean absolute difference, in nats, of the sampler's log-probabilities of its
    own tokens to the trainer's."""
    difference_BT = ((x.sampler_logprob_BT - x.old_logprob_BT) * x.mask_BT).abs()
    return float(difference_BT.max()), float(difference_BT.sum() / x.mask_BT.sum())


def summarize(collected: Collected, x: TokenBatch | None, tally: Tally, norms: list[float]) -> dict[str, float]:
    """A step's metrics, by the names of docs/metrics.md."""
    scores = collected.scores
    found = Counter(score.verdict for score in scores)
    lengths = [len(r.token_ids) for r in collected.rollouts]
    made = {
        "reward/mean": float(np.mean([s.reward for s in scores])),
        "accuracy/mean": found[Verdict.CORRECT] / len(scores),
        "length/mean": float(np.mean(lengths)),
        **{f"verdict/{v.value}": found[v] / len(scores) for v in Verdict},
        "tokens/total": float(sum(lengths)),
        "rollout/groups": float(collected.groups),
        "rollout/constant_groups": collected.constant_groups / collected.groups,
        "rollout/trained": len(collected.trained) / len(scores),
        "updates": float(len(norms)),
    }
    if x is None:
        return made
    tokens = x.mask_BT.sum()
    made["entropy/mean"] = float((x.old_entropy_BT * x.mask_BT).sum() / tokens)
    made["mismatch/max"], made["mismatch/mean"] = mismatch(x)
    if norms:
        made["grad/norm"] = float(np.mean(norms))
        made |= tally.metrics(updates=len(norms))
        made |= {k: float(v) / len(norms) for k, v in tally.sums.items() if k.startswith("loss/")}
        made |= {k: float(v / tally.sums["tokens"].sum()) for k, v in tally.sums.items() if k.startswith("fact/")}
    if "critic/tokens" in tally.sums:
        counted = tally.sums["critic/tokens"]
        inside = x.mask_BT.bool()
        spread, error = x.return_BT[inside].var(), (x.return_BT - x.old_value_BT)[inside].var()
        made["loss/value"] = float(tally.sums["critic/loss"] / counted)
        made["critic/clip"] = float(tally.sums["critic/clip"] / counted)
        made["critic/grad_norm"] = float(tally.sums["critic/norm"] / tally.sums["critic/updates"])
        made["critic/value_mean"] = float(x.old_value_BT[inside].mean())
        made["critic/explained_variance"] = float(1 - error / spread) if spread > 0 else float("nan")
    return made


# --------------------------------------------------------------------------------------------------


@contextmanager
def interruptible():
    """Yields a function that says whether any rank received Ctrl-C (or SIGTERM); a second one
    interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: parallel.anywhere([bool(received)])[0]
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def due(step: int, every: int, last: int) -> bool:
    """After `step` steps: a multiple of `every` (0: never), or the end."""
    return step == last or (every > 0 and step % every == 0)


def train(config: Config, show: Any) -> str:
    """Run or resume the run of `config`; its status at the end, `finished` or `stopped`.

    `show` has `start(config, folder, step)`, `step(step, metrics, elapsed)`, `evaluated(step,
    rows)`, `say(text)`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with parallel.together():
        record = Record(config) if parallel.rank() == 0 else parallel.Elsewhere()
    show = show if parallel.rank() == 0 else parallel.Elsewhere()
    status = "failed"
    try:
        with parallel.together():
            trainer = Trainer(config)
            if (config.folder / "checkpoints" / "latest").exists():
                trainer.restore(checkpoint(config.folder))
        if len(set(parallel.gathered(trainer.step))) > 1:
            raise BadInput(
                f"{config.folder}: not on every machine; a run of several machines needs a folder that all of them see"
            )
        record.note(start_model=trainer.start, start_weights=trainer.start_weights)
        record.rewind(trainer.step or -1)  # nothing is kept of a run that never saved a checkpoint
        show.start(config, config.folder, trainer.step)
        if config.updates_per_step == 1:
            show.say(
                "updates_per_step=1: every update is on-policy, the ratio is 1, and clip facts are zero by"
                " construction."
            )
        with interruptible() as interrupted:
            status = _loop(config, trainer, record, show, interrupted)
        passed_over = trainer.stream.passed_over
        record.note(steps=trainer.step, seconds=round(trainer.elapsed, 1), passed_over=passed_over)
        if any(passed_over.values()):
            long = f"{passed_over['too_long']} longer than {config.data.max_prompt_tokens} tokens"
            show.say(f"prompts passed over: {passed_over['held_out']} asked by a benchmark, {long}")
    except KeyboardInterrupt:
        status = "stopped"
        raise
    finally:
        record.close(status)
    return status


def _loop(config: Config, trainer: Trainer, record: Record, show: Any, interrupted: Any) -> str:
    if trainer.step == 0:
        _ = trainer.probe  # sampled before anything has changed, and kept even while diagnostics are off
        rows = trainer.evaluator.run(0)
        record.log_eval(0, rows)
        show.evaluated(0, rows)
    while trainer.step < config.steps:
        metrics = trainer.run_step()
        step = trainer.step
        if trainer.tokens is not None:
            trainer.tokens.write(config.folder)
        record.log(step, metrics)
        show.step(step, metrics, trainer.elapsed)
        best = False
        if due(step, config.eval_every, config.steps):
            rows = trainer.evaluator.run(step)
            record.log_eval(step, rows)
            show.evaluated(step, rows)
            best = mean_accuracy(rows) > trainer.best
            trainer.best = max(trainer.best, mean_accuracy(rows))
        stopping = interrupted() and step < config.steps
        if best or stopping or due(step, config.checkpoint_every, config.steps):
            record.save_checkpoint(step, trainer.save, best)
        if stopping:
            return "stopped"
    return "finished"
