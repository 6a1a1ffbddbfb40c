"""What a run holds in memory besides its configuration: built once, saved, restored bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import advantage, checkpoint, explore, ranks
from .config import Config, is_rule
from .evaluate import Evaluator, evaluator, longest_answer
from .knobs import knob_at
from .model import memory
from .model.critic import Critic
from .model.optimizer import adamw
from .model.policy import Policy, load_policy
from .problems import teachers, testbed
from .problems.data import PromptStream, benchmarks
from .problems.reward import grade, rule
from .rollout import Sampler
from .rollout.engines import fitted, start_sampler
from .rollout.probe import Probe
from .rollout.stale import OlderWeights
from .schedules import Schedules
from .types import BadInput, Rollout, Score


@dataclass
class TrainState:
    """Everything that a step reads and changes."""

    config: Config
    start: str  # what the run starts from: a model's path, or the embedded model's name
    start_weights: str | None  # digest of the embedded model's weights
    policy: Policy
    optimizer: torch.optim.Optimizer
    reference: Policy | None  # of the KL term
    critic: Critic | None
    critic_optimizer: torch.optim.Optimizer | None
    held_out: set[str]  # texts of the benchmarks, on which nothing trains
    stream: PromptStream
    sampler: Sampler
    older: OlderWeights  # of `rollout.staleness`
    score: Callable[[list[Rollout], int], list[Score]]  # of rollouts in a step
    explorer: explore.Explorer
    evaluator: Evaluator
    schedules: Schedules
    probe: Probe
    step: int = 0  # steps done
    elapsed: float = 0.0  # seconds in them
    best: float = float("-inf")  # highest mean accuracy of an evaluation so far

    def draw_probe(self) -> None:
        """Draw the probe, which is of the starting policy, even where diagnostics are off and may
        be switched on later; once."""
        if self.probe.rows is None:
            c = self.config
            stream = PromptStream(self.stream.data, c.seed, self.policy.tokenizer, self.held_out)
            first = stream.take(c.diagnostics.probe)
            # Index group_size is no training response's: the probe is not part of what is trained
            # on.
            self.probe.sample(self.sampler, first, index=c.group_size)

    def _large(self) -> dict[str, checkpoint.Large]:
        """What a checkpoint holds in files of its own besides the policy, by their names."""
        made: dict[str, checkpoint.Large] = {"optimizer": self.optimizer}
        if self.critic is not None and self.critic_optimizer is not None:
            made |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        return made | self.explorer.large() | self.older.parts()

    def _small(self) -> dict[str, checkpoint.Stateful]:
        """What it holds in state.json, by the names there."""
        made: dict[str, checkpoint.Stateful] = {"stream": self.stream, "probe": self.probe, "explore": self.explorer}
        if self.schedules.controller is not None:
            made["controller"] = self.schedules.controller
        return made

    def save(self, folder: Path | None) -> None:
        """Whole tensors, whatever the number of ranks. Ranks without a folder give their shards."""
        best = self.best if np.isfinite(self.best) else None
        own: dict[str, Any] = {"step": self.step, "best": best, "elapsed": self.elapsed, "start": self.start}
        asked, now = self.config.update.micro_batch_tokens, self.policy.micro_batch_tokens
        if now < asked:  # memory ran out: bit for bit needs the same micro-batches
            own |= {"micro_batch_tokens": {"asked": asked, "now": now}}
        own |= {"start_weights": self.start_weights}
        checkpoint.save(folder, self.policy, self._large(), self._small(), own)

    def restore(self, folder: Path) -> None:
        """Continue from `folder`, bit for bit. Raises BadInput when it cannot be read."""
        own = checkpoint.read_state(folder)
        # The embedded model is known by its weights, wherever it is cached and under what name.
        key = "start_weights" if self.start_weights else "start"
        before, now = own.get(key), getattr(self, key)
        if before is not None and before != now:
            raise BadInput(f"{folder}: the run started from {before}, which is now {now}; choose another run_dir")
        checkpoint.restore(folder, self.policy, self._large(), self._small())
        self.step, self.elapsed = own["step"], own["elapsed"]
        self.best = float("-inf") if own["best"] is None else own["best"]
        with checkpoint.readable(folder):
            smaller = own.get("micro_batch_tokens", {})
            if smaller.get("asked") == self.config.update.micro_batch_tokens:
                self.policy.micro_batch_tokens = int(smaller["now"])
        self.sampler.load(self.policy)


def build(c: Config) -> TrainState:
    """The state in which a run of `c` starts. Raises BadInput where something cannot be had."""
    embedded = c.model.path == "testbed"
    path = str(testbed.base_model(c.testbed)) if embedded else c.model.path
    start_weights = testbed.weights_digest(Path(path)) if embedded else None
    if is_rule(c.reward):
        rule(c.reward)  # what cannot be imported is said before anything is loaded
    with ranks.together():  # before any weights are exchanged, for which every rank must be there
        memory.check(c, path, shards=ranks.world())
        policy = load_policy(path, c.model, c.rollout.temperature, c.update.micro_batch_tokens)
    critic = Critic(policy).shard() if c.advantage.kind == "gae" else None
    policy.adapt(c.model.lora, c.seed)
    reference = policy.frozen_copy().shard() if c.update.kl_coef else None
    policy.shard()
    rate = lambda value: float(knob_at(value, 0, c.steps))
    problems = benchmarks(c.eval, c.data, policy.tokenizer)
    held_out = {prompt.text for prompts in problems.values() for prompt in prompts}
    answer = longest_answer(c.rollout.max_tokens, c.eval)
    fitting = fitted(policy, c.data, answer)
    stream = PromptStream(fitting, c.seed, policy.tokenizer, held_out)
    longest = fitting.max_prompt_tokens + answer
    sampler = start_sampler(policy, c, longest)
    score = scorer(c)
    run = explore.Run(
        seed=c.seed, group_size=c.group_size, rows=c.prompts_per_step * c.group_size,
        values=(c.reward_values[0], c.reward_values[1]), sampler=sampler, score=score,
        advantage=advantage.estimator(c.advantage.kind, c.advantage.quantile), teacher=teacher_of(c, policy),
    )  # fmt: skip
    return TrainState(
        config=c,
        start=f"testbed-{start_weights}" if embedded else path,
        start_weights=start_weights,
        policy=policy,
        optimizer=adamw(policy.trained(), rate(c.update.lr), c.update),
        reference=reference,
        critic=critic,
        critic_optimizer=None if critic is None else adamw(critic.parameters(), rate(c.critic.lr), c.update),
        held_out=held_out,
        stream=stream,
        sampler=sampler,
        older=OlderWeights(policy, c.rollout.staleness),
        score=score,
        explorer=explore.explorer(c.explore, run),
        evaluator=evaluator(sampler, c.eval, c.rollout.max_tokens, c.grader, problems),
        schedules=Schedules(c),
        probe=Probe(),
    )


def scorer(c: Config) -> Callable[[list[Rollout], int], list[Score]]:
    """A score for each of some rollouts in a step, as the run's reward says; ranks share the
    work."""
    limit = c.rollout.max_tokens
    settings: dict[str, Any] = dict(
        source=c.reward, signal=c.reward_signal, seed=c.seed, values=tuple(c.reward_values), max_tokens=limit,
        truncated_fails=c.truncated_fails, overlong_buffer=round(c.overlong_buffer * limit), limits=c.grader,
    )  # fmt: skip
    return lambda rollouts, step: ranks.divided(partial(grade, step=step, **settings), rollouts)


def teacher_of(c: Config, policy: Policy) -> teachers.Teacher | None:
    """The teacher that the rule of exploration names. Raises BadInput when its file cannot be
    used."""
    named = c.explore.get("teacher")
    if named is None:
        return None
    tokenizer, most = policy.tokenizer, c.rollout.max_tokens
    if named == teachers.WORKED:
        return teachers.Worked(tokenizer, most, c.testbed, c.seed, c.explore["solutions"])
    return teachers.FromFile(tokenizer, most, Path(named), c.data, c.explore["ratio"] == "teacher")
