"""The loop. One for every algorithm: what differs between methods is the weight a token loss puts
on a token.

prompt → rollout → reward → advantage → token loss → update → metrics
"""

import json
import signal
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import advantage, ranks
from .checkpoint import load_optimizer, optimizer_tensors, save_tensors, stored
from .config import Config
from .evaluate import evaluator
from .instrument.ledger import Ledger
from .instrument.tally import Tally
from .instrument.tokens import TokenRecord
from .metrics import mismatch, summarize
from .model import memory, parallel
from .model.critic import Critic
from .model.optimizer import adamw, set_lr
from .model.policy import load_policy
from .objective import Objective
from .problems import testbed
from .problems.counts import mean_accuracy
from .problems.data import PromptStream, benchmarks
from .problems.reward import grade, is_rule, rule
from .record.run import Record, checkpoint
from .rollout import vllm
from .rollout.collect import Collected
from .rollout.divided import sampler
from .types import BadInput, Prompt, Rollout, Score, TokenBatch, Verdict
from .update import Diverged, update, update_critic

# --------------------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------------------


class Trainer:
    """Everything a run holds in memory, and how it is saved and restored."""

    def __init__(self, config: Config):
        self.config = config
        path = testbed.base_model(config.testbed) if config.model.path == "testbed" else config.model.path
        self.start_weights = testbed.weights_digest(path) if config.model.path == "testbed" else None
        self.start = f"testbed-{self.start_weights}" if self.start_weights else str(path)  # what the run starts from
        if is_rule(config.reward):
            rule(config.reward)  # what cannot be imported is said before anything is loaded
        with ranks.together():  # before any weights are exchanged, for which every rank must be there
            memory.check(config, path, shards=ranks.world())
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
                source=config.reward, signal=config.reward_signal, seed=config.seed, step=step,
                values=tuple(config.reward_values),
                max_tokens=config.rollout.max_tokens,
                overlong_buffer=round(config.overlong_buffer * config.rollout.max_tokens),
                limits=config.grader,
            )  # fmt: skip
            fresh_scores = ranks.divided(lambda part: grade(part, **rules), fresh)
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
        value_BT = ranks.total(value_BT)
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
        yield lambda: ranks.anywhere([bool(received)])[0]
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
    with ranks.together():
        record = Record(config) if ranks.rank() == 0 else ranks.Elsewhere()
    show = show if ranks.rank() == 0 else ranks.Elsewhere()
    status = "failed"
    try:
        with ranks.together():
            trainer = Trainer(config)
            if (config.folder / "checkpoints" / "latest").exists():
                trainer.restore(checkpoint(config.folder))
        if len(set(ranks.gathered(trainer.step))) > 1:
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
