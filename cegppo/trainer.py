"""What a run holds in memory, and the stations of one step.

prompt → rollout → reward → advantage → token loss → update → metrics
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import advantage, checkpoint, explore, metrics, ranks
from .config import Config, is_rule
from .configured import controller_of, knobs_of, objective_of
from .evaluate import evaluator, longest_answer
from .instrument.entropy import ClassRule
from .instrument.ledger import Ledger
from .instrument.tally import Tally
from .instrument.tokens import TokenRecord
from .knobs import knob_at
from .model import memory
from .model.critic import Critic, with_values
from .model.optimizer import adamw, set_lr
from .model.policy import Policy, load_policy
from .objective import Objective, aggregation
from .problems import teachers, testbed
from .problems.data import PromptStream, benchmarks
from .problems.reward import grade, rule
from .rollout import divided, vllm
from .rollout.behaviours import Behaviours
from .rollout.collect import Collected, Collector
from .rollout.probe import Probe
from .types import BadInput, Group, Job, Prompt, Rollout, Score, TokenBatch, Verdict, present
from .update import Diverged, update, update_critic

ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "group": advantage.group,
    "centred": advantage.centred,
    "gae": np.zeros_like,
}


class Trainer:
    """Everything a run holds in memory. `run_step` is one step of it."""

    def __init__(self, config: Config):
        self.config, c = config, config
        self.step, self.elapsed = 0, 0.0  # steps done, and the seconds in them
        embedded = c.model.path == "testbed"
        path = str(testbed.base_model(c.testbed)) if embedded else c.model.path
        self.start_weights = testbed.weights_digest(Path(path)) if embedded else None
        self.start = f"testbed-{self.start_weights}" if embedded else path  # what the run starts from
        if is_rule(c.reward):
            rule(c.reward)  # what cannot be imported is said before anything is loaded
        with ranks.together():  # before any weights are exchanged, for which every rank must be there
            memory.check(c, path, shards=ranks.world())
            self.policy = load_policy(path, c.model, c.rollout.temperature, c.update.micro_batch_tokens)
        self.critic = Critic(self.policy).shard() if c.advantage.kind == "gae" else None
        self.policy.adapt(c.model.lora, c.seed)
        self.reference = self.policy.frozen_copy().shard() if c.update.kl_coef else None
        self.policy.shard()
        self.optimizer = adamw(self.policy.trained(), self.rate(c.update.lr), c.update)
        made = benchmarks(c.eval, c.data, self.policy.tokenizer)
        self.held_out = {prompt.text for prompts in made.values() for prompt in prompts}
        self.stream = PromptStream(c.data, c.seed, self.policy.tokenizer, self.held_out)
        longest = c.data.max_prompt_tokens + longest_answer(c.rollout.max_tokens, c.eval)
        self.sampler = divided.start(self.policy, c.rollout, c.seed, longest)
        self.evaluator = evaluator(self.sampler, c.eval, c.rollout.max_tokens, c.grader, made)
        self.explorer = explore.explorer(c.explore, RunOf(self))
        self.collect = Collector(self.stream, self.explorer, self.score, c.rollout, c.prompts_per_step, c.group_size)
        self.knobs, self.controller = knobs_of(c), controller_of(c)
        self.rule = ClassRule(c.diagnostics.classes, c.diagnostics.threshold)
        self.probe = Probe()
        self.best = float("-inf")  # highest mean accuracy of an evaluation so far
        self.tokens: TokenRecord | None = None  # of the last step, when it was recorded
        self.polarity: dict[str, float] = {}  # of the last step, where advantages are weighted by it
        self.broken: list[tuple[int, TokenBatch]] = []  # updates that the step left out, by their number
        # What a checkpoint holds besides the policy, by the names of its files and keys.
        self.large: dict[str, checkpoint.Large] = {"optimizer": self.optimizer}
        if self.critic is not None:
            self.critic_optimizer = adamw(self.critic.parameters(), self.rate(c.critic.lr), c.update)
            self.large |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        self.large |= self.explorer.large()
        self.small: dict[str, checkpoint.Stateful] = {"stream": self.stream, "probe": self.probe, "knobs": self.knobs}
        self.small["explore"] = self.explorer
        if self.controller is not None:
            self.small["controller"] = self.controller

    @property
    def objective(self) -> Objective:
        """Of the step under way."""
        return objective_of(self.config, self.knobs, self.step, self.controller)

    def rate(self, value: Any) -> float:
        """A learning rate, which may be a schedule, in the step under way."""
        return float(knob_at(value, self.step, self.config.steps))

    # -- the stations of a step

    def score(self, rollouts: list[Rollout], step: int) -> list[Score]:
        """A score for each rollout."""
        c, limit = self.config, self.config.rollout.max_tokens
        rules: dict[str, Any] = dict(
            source=c.reward, signal=c.reward_signal, seed=c.seed, step=step, values=tuple(c.reward_values),
            max_tokens=limit, overlong_buffer=round(c.overlong_buffer * limit), limits=c.grader,
        )  # fmt: skip
        return ranks.divided(lambda part: grade(part, **rules), rollouts)

    def batch(self, collected: Collected) -> TokenBatch:
        """The TokenBatch of what trains, advantages included."""
        groups, a = collected.trained, self.config.advantage
        scores = [score for group in groups for score in group.scores]
        room = lambda passes: memory.within(self.policy, passes)
        collate = lambda: self.policy.collate(
            [rollout for group in groups for rollout in group.rollouts],
            advantage_B=np.zeros(len(scores)),
            reward_B=np.array([score.reward for score in scores]),
            correct_B=np.array([score.verdict is Verdict.CORRECT for score in scores], dtype=float),
            group_B=[n for n, group in enumerate(groups) for _ in group.rollouts],
        )
        x = room(collate)
        if (least := self.objective.proxy) is not None:
            x = x.but(proxy_logprob_BT=room(lambda: self.policy.proxy(x, least)))
        x = x.but(advantage_BT=self._advantage_BT(groups, x))
        self.explorer.learn(groups, x)
        if (reference := self.reference) is not None:
            x = x.but(ref_logprob_BT=room(lambda: reference.evaluate(x))["logprob_BT"])
        if (critic := self.critic) is not None:
            x = room(lambda: with_values(critic, x, a.gamma, a.lam, a.whiten, a.soft))
        elif a.soft:
            x = x.but(advantage_BT=advantage.soft(x, a.soft))
        if a.polarity > 1:
            set_by = self.controller.section("advantage") if self.controller is not None else {}
            scale_BT = aggregation(x, self.config.update.aggregate, self.config.rollout.max_tokens)
            advantage_BT, self.polarity = advantage.polarised(
                x, scale_BT, set_by.get("polarity_drift", a.polarity_drift), a.polarity
            )
            x = x.but(advantage_BT=advantage_BT)
        return x

    def _advantage_BT(self, groups: list[Group], x: TokenBatch) -> torch.Tensor:
        """What a response earned beside its group, on each of its tokens."""
        made_of = ADVANTAGES[self.config.advantage.kind]
        rewards = self.explorer.rewards(groups, x)
        found = [
            made_of(reward_G) if group.advantages is None else np.array(group.advantages)
            for group, reward_G in zip(groups, rewards)
        ]
        advantage_B = torch.tensor(np.concatenate(found), dtype=torch.float32, device=x.mask_BT.device)
        return advantage_B[:, None] * x.mask_BT

    def mini_batches(self, x: TokenBatch) -> list[TokenBatch]:
        """The mini-batches of a step's updates, in order. Where dropped groups left less than a
        full step, there are fewer updates, of about the size that `updates_per_step` gives a full
        one."""
        c = self.config
        full = c.prompts_per_step * c.group_size // c.updates_per_step
        return x.split(-(-len(x) // full))

    def run_step(self) -> dict[str, float]:
        """One step: the metrics of it."""
        c, step = self.config, self.step
        start = time.perf_counter()
        self.policy.room.retries = 0
        collected = self.collect(step)
        sampled = time.perf_counter()
        self.polarity = {}
        x = self.batch(collected) if collected.trained else None
        if x is not None:
            self._verify(x)
        rate = self.rate(c.update.lr) * min(1.0, (step + 1) / max(1, c.update.warmup_steps))
        set_lr(self.optimizer, rate)
        minis = self.mini_batches(x) if x is not None else []
        waits = self.critic is not None and step < c.critic.warmup_steps
        self.broken = []
        tally, norms, looked = self._updates(collected, minis if not waits else [])
        critic: dict[str, float] = {}
        if self.critic is not None:
            k = c.critic
            set_lr(self.critic_optimizer, self.rate(k.lr))
            for number, mini in enumerate(minis):
                with self._may_skip(number):
                    update_critic(
                        self.critic, self.critic_optimizer, self.policy, mini, critic, clip=k.clip,
                        grad_clip=k.grad_clip,
                    )  # fmt: skip
        self.sampler.load(self.policy)
        end = time.perf_counter()
        made = metrics.summarize(
            collected, x, Tally.merged(ranks.gathered(tally.settled())), norms, metrics.total(ranks.gathered(critic))
        )
        made |= looked | {f"knob/{name}": self.knobs.at(step)[name] for name in self.knobs.moving}
        made |= {f"explore/{name}": value for name, value in self.explorer.facts().items()}
        if x is not None and c.explore["name"] != explore.NONE:
            made |= metrics.by_origin(x)
        made |= {f"polarity/{name}": value for name, value in self.polarity.items()}
        if self.controller is not None:
            made |= self.controller.knobs()
            if norms and "update.entropy_coef" in self.controller.values:
                made.setdefault("loss/entropy", 0.0)  # a coefficient of 0 has no term
        if self.critic is not None and isinstance(c.critic.lr, list):
            made["critic/lr"] = self.rate(c.critic.lr)
        if c.update.on_nonfinite == "skip":
            made["update/skipped"] = float(len(self.broken))
        if self.policy.micro_batch_tokens < c.update.micro_batch_tokens:
            made["memory/micro_batch_tokens"] = float(self.policy.micro_batch_tokens)
            made["memory/retries"] = float(self.policy.room.retries)
        made |= {"lr": rate, "time/rollout": sampled - start, "time/update": end - sampled, "time/step": end - start}
        seen = {name: value for name, value in made.items() if not name.startswith("time/")}
        self.knobs.observe(seen)
        self.explorer.observe(seen)
        if self.controller is not None:
            made |= self.controller.observe(step, seen)
        self.step += 1
        self.elapsed += end - start
        return made

    def _updates(self, collected: Collected, minis: list[TokenBatch]) -> tuple[Tally, list[float], dict[str, float]]:
        """The policy's updates of a step: their tally, their gradient norms, and the ledger's
        entries in a step that is looked at."""
        c, d, objective = self.config, self.config.diagnostics, self.objective
        tally, norms, ledger = Tally(self.rule), [], None
        self.tokens = None
        if minis and d.every > 0 and (self.step + 1) % d.every == 0:
            self.begin()
            ledger = Ledger(
                self.policy, self.optimizer, self.probe.batch(self.policy), self.rule,
                updates=len(minis), apart=d.parts, total=ranks.total,
                choose=self._choose if d.influence_tokens else None,
            )  # fmt: skip
            self.tokens = TokenRecord(
                self.step + 1, collected.trained, self.policy.tokenizer, self.rule, d.max_tokens, c.seed
            )
        for number, mini in enumerate(minis):
            if objective.draws:
                mini = with_draws(mini, [c.seed, self.step, number])
            if self.tokens is not None:
                self.tokens.update = number
            skips = c.update.on_nonfinite == "skip"
            own = Tally(self.rule) if skips else tally  # what an update that is left out would have added
            with self._may_skip(number):
                norms.append(
                    update(
                        self.policy, self.optimizer, mini, objective, own,
                        grad_clip=c.update.grad_clip, ledger=ledger, tokens=self.tokens,
                    )
                )  # fmt: skip
                tally = Tally.merged([tally, own]) if skips else tally
            if self.broken:  # a step that lacks an update is not one to look at
                ledger = self.tokens = None
        if ledger is None or self.tokens is None:
            return tally, norms, {}
        entries = ledger.close()
        self.tokens.finish(ledger.seen)
        return tally, norms, entries

    @contextmanager
    def _may_skip(self, number: int) -> Iterator[None]:
        """An update whose gradient is not finite ends the run, or is left out and its batch kept,
        as `update.on_nonfinite` says."""
        try:
            yield
        except Diverged as error:
            error.number = number
            if self.config.update.on_nonfinite == "stop":
                raise
            self.broken.append((number, present(error.batch)))

    def _choose(self, mini: TokenBatch) -> torch.Tensor:
        """Whole rows of a mini-batch, at random, of at most `diagnostics.influence_tokens` tokens
        (one row at least). Rows that are recorded come first: they were chosen at random, too."""
        order = np.random.default_rng([self.config.seed, self.step]).permutation(len(mini))
        if self.tokens is not None:
            recorded = self.tokens.chosen[present(mini.row_B).cpu()].numpy()
            order = order[np.argsort(~recorded[order], kind="stable")]
        lengths = mini.length_B.cpu().numpy()[order].cumsum()
        count = max(1, int((lengths <= self.config.diagnostics.influence_tokens).sum()))
        return torch.from_numpy(np.sort(order[:count])).to(mini.mask_BT.device)

    def _verify(self, x: TokenBatch) -> None:
        """Raise Diverged when the sampler was handed other weights than the trainer has."""
        v = self.config.rollout.vllm
        if self.config.rollout.engine == "hf":  # samples with the trainer's own weights
            return
        bound = vllm.default_max_mismatch(self.policy, v) if v.max_mismatch is None else v.max_mismatch
        largest, mean = metrics.mismatch(x)
        if not mean <= bound:
            raise Diverged(
                f"the hand-over of weights to vllm failed: its log-probabilities of its own tokens are {mean:.2g} nats"
                f" off the trainer's on average and {largest:.2g} at most, above rollout.vllm.max_mismatch={bound:g};"
                " nothing was updated"
            )

    # -- the start, saving and restoring

    def begin(self) -> None:
        """Draw the probe, which is of the starting policy, even where diagnostics are off and may
        be switched on later."""
        if self.probe.rows is None:
            c = self.config
            first = PromptStream(c.data, c.seed, self.policy.tokenizer, self.held_out).take(c.diagnostics.probe)
            # Index group_size is no training response's: the probe is not part of what is trained
            # on.
            self.probe.sample(self.sampler, first, index=c.group_size)

    def save(self, folder: Path | None) -> None:
        """Whole tensors, whatever the number of ranks. Ranks without a folder give their shards."""
        best = self.best if np.isfinite(self.best) else None
        own: dict[str, Any] = {"step": self.step, "best": best, "elapsed": self.elapsed, "start": self.start}
        asked, now = self.config.update.micro_batch_tokens, self.policy.micro_batch_tokens
        if now < asked:  # memory ran out: bit for bit needs the same micro-batches
            own |= {"micro_batch_tokens": {"asked": asked, "now": now}}
        checkpoint.save(folder, self.policy, self.large, self.small, own | {"start_weights": self.start_weights})

    def restore(self, folder: Path) -> None:
        """Continue from `folder`, bit for bit. Raises BadInput when it cannot be read."""
        own = checkpoint.read_state(folder)
        # The embedded model is known by its weights, wherever it is cached and under what name.
        before, now = (
            (own.get("start_weights"), self.start_weights) if self.start_weights else (own.get("start"), self.start)
        )
        if before is not None and before != now:
            raise BadInput(f"{folder}: the run started from {before}, which is now {now}; choose another run_dir")
        checkpoint.restore(folder, self.policy, self.large, self.small)
        self.step, self.elapsed = own["step"], own["elapsed"]
        self.best = float("-inf") if own["best"] is None else own["best"]
        with checkpoint.readable(folder):
            smaller = own.get("micro_batch_tokens", {})
            if smaller.get("asked") == self.config.update.micro_batch_tokens:
                self.policy.micro_batch_tokens = int(smaller["now"])
        self.sampler.load(self.policy)


class RunOf:
    """What a rule of exploration may ask of a trainer (`explore.Run`)."""

    def __init__(self, trainer: Trainer):
        c = trainer.config
        self.seed, self.group_size, self.rows = c.seed, c.group_size, c.prompts_per_step * c.group_size
        self.values = (c.reward_values[0], c.reward_values[1])
        self.advantage = ADVANTAGES[c.advantage.kind]
        self.score = trainer.score
        self.behaviours = Behaviours(
            trainer.sampler, trainer.policy, lambda folder: other_policy(c, folder),
            statistics=c.rollout.old_logprobs == "auto",
        )  # fmt: skip
        self.teacher = teacher_of(c, trainer.policy)

    def ready(self, behaviour: explore.Behaviour) -> None:
        if behaviour.checkpoint:
            self.behaviours.other(behaviour.checkpoint)

    def draw(self, jobs: list[Job], step: int, behaviour: explore.Behaviour) -> list[Rollout]:
        return self.behaviours.draw(jobs, step, behaviour)

    def solutions(self, prompt: Prompt) -> list[explore.Solution]:
        return present(self.teacher).solutions(prompt)


def other_policy(c: Config, folder: str) -> Policy:
    """The weights in `folder`, computing as the run's do. Raises BadInput."""
    return load_policy(folder, c.model, c.rollout.temperature, c.update.micro_batch_tokens)


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


def with_draws(mini: TokenBatch, seed: list[int]) -> TokenBatch:
    """`mini` with uniform draws of `seed`, for a loss that draws; the same however it is cut up."""
    draws_BT = np.random.default_rng(seed).random(tuple(mini.mask_BT.shape), dtype=np.float32)
    return mini.but(uniform_BT=torch.from_numpy(draws_BT).to(mini.mask_BT.device))
