"""One run. Everything that happens in a step happens here, in this order:
prompts, responses, scores, groups, advantages, mini-batches, optimizer steps, metrics.

One loop for every algorithm: what differs between methods is the weight that a token loss puts on a
token.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

from . import metrics, ranks
from .batch import collated, make_batch, sample_groups, split_evenly
from .config import Config
from .gradient import update_critic, weighted_gradient
from .instrument.entropy import ClassRule
from .instrument.ledger import Ledger
from .instrument.tally import Tally
from .instrument.tokens import TokenRecord
from .log import Log, RunLog
from .metrics import Timer
from .model import memory
from .model.memory import OutOfMemory, in_a_line
from .model.optimizer import clip_factor, clip_grad_norm, set_lr
from .record.files import append_line, read_lines
from .record.run import newest
from .schedules import objective_of
from .state import TrainState, build
from .stop import StopSignal
from .types import BadInput, Diverged, Group, TokenBatch

MEMORY = "memory.jsonl"  # of a run of several ranks: which of them ran out, and what to try next


def train(config: Config, state: TrainState, log: Log, stop: StopSignal) -> str:
    """Steps until the end (`finished`) or a request to stop (`stopped`). Raises Diverged."""
    policy, optimizer, diagnostics = state.policy, state.optimizer, config.diagnostics
    classes = ClassRule(diagnostics.classes, diagnostics.threshold)
    for step in range(state.step, config.steps):
        timer = Timer()
        values = state.schedules.at(step)  # learning rates, parameters of the loss, coefficients
        objective = objective_of(config, values)
        set_lr(optimizer, values["update.lr"])

        # 1. Rollout: sample and grade, until there are enough groups to train on.
        with state.older.oldest() as age:  # inside, the policy has the weights that `rollout.staleness` asks for
            if age:
                state.sampler.load(policy)
            sampled, groups = sample_groups(config, state, step)
            stale = collated(policy, groups, objective) if age and groups else None
        timer.lap("rollout")

        # 2. One batch of tokens, with old and reference log-probabilities, values, advantages.
        batch, batch_metrics = make_batch(config, state, groups, objective, values, stale) if groups else (None, {})
        minis = split_evenly(config, batch, objective, step) if batch is not None else []

        # 3. Updates: an optimizer step on each mini-batch. Diagnostics look on and change nothing.
        stats, norms, skipped = Tally(classes), [], 0
        ledger: Ledger | None = None
        table: TokenRecord | None = None
        policy_minis = minis if step >= config.critic.warmup_steps or state.critic is None else []
        if policy_minis and due(step + 1, diagnostics.every):
            ledger, table = diagnose(config, state, groups, len(policy_minis))
        for number, mini in enumerate(policy_minis):
            gradient = weighted_gradient(policy, mini, objective)  # fills .grad; keeps each token's weight
            norm = clip_grad_norm(policy.model, config.update.grad_clip)
            if not torch.isfinite(norm):
                optimizer.zero_grad(set_to_none=True)
                log.nonfinite(step + 1, number, mini)
                if config.update.on_nonfinite == "stop":
                    raise Diverged(f"the gradient norm is {float(norm)}; nothing was updated")
                skipped, ledger, table = skipped + 1, None, None  # a step that lacks an update is not looked at
                continue
            if ledger is not None:
                ledger.before(gradient, clip_factor(float(norm), config.update.grad_clip))
            optimizer.step()
            if ledger is not None and table is not None:
                ledger.after()
                table.add_gradient(number, gradient)
            stats.add_gradient(gradient)
            norms.append(float(norm))
        critic_metrics, critic_skipped = train_critic(config, state, minis, values["critic.lr"], log)
        for each in (optimizer, state.critic_optimizer):  # gradients would lie beside the next rollout
            if each is not None:
                each.zero_grad(set_to_none=True)
        state.sampler.load(policy)
        timer.lap("update")

        # 4. Metrics: a line of metrics.jsonl. Controllers and rules of exploration read it.
        line = metrics.rollout_metrics(sampled, groups) | {"updates": float(len(norms))}
        line |= {"rollout/age": float(age)} if config.rollout.staleness else {}
        line |= state.schedules.metrics(values, trained=bool(norms))
        line |= batch_metrics | metrics.update_metrics(Tally.merged(ranks.gathered(stats.settled())), norms)
        line |= critic_metrics | {f"explore/{name}": value for name, value in state.explorer.facts().items()}
        line |= ledger.close() if ledger is not None else {}
        line |= {"update/skipped": float(skipped + critic_skipped)} if config.update.on_nonfinite == "skip" else {}
        line |= memory.metrics(policy, config.update.micro_batch_tokens)
        seen = {name: value for name, value in line.items() if not name.startswith("time/")}  # the same on every rank
        state.explorer.observe(seen)
        line |= state.schedules.observe(step, seen) | timer.metrics()
        state.step, state.elapsed = step + 1, state.elapsed + timer.total
        log.unsure(state.step, ledger.unsure if ledger is not None else [])
        log.step(state.step, line, state.elapsed, table.columns(ledger.seen) if table is not None and ledger else None)

        # 5. Evaluate and save.
        best = False
        if due(state.step, config.eval_every, config.steps):
            accuracy = log.evaluation(state.step, *state.evaluator.run(state.step))
            best, state.best = accuracy > state.best, max(accuracy, state.best)
        stopping = stop.requested() and state.step < config.steps
        if best or stopping or due(state.step, config.checkpoint_every, config.steps):
            log.checkpoint(state, best)
        if stopping:
            return "stopped"
    return "finished"


def due(step: int, every: int, last: int | None = None) -> bool:
    """After `step` steps: a multiple of `every` (0: never), or the end."""
    return step == last or (every > 0 and step % every == 0)


def diagnose(config: Config, state: TrainState, groups: list[Group], updates: int) -> tuple[Ledger, TokenRecord]:
    """The entropy ledger and the token record of a step of that many updates."""
    d, step = config.diagnostics, state.step
    rule = ClassRule(d.classes, d.threshold)
    state.draw_probe()
    table = TokenRecord(step + 1, groups, state.policy.tokenizer, rule, d.max_tokens, config.seed)

    def choose(mini: TokenBatch) -> torch.Tensor:
        """Whole rows of a mini-batch, at random, of at most `diagnostics.influence_tokens` tokens
        (one row at least). Rows that are recorded come first: they were chosen at random, too."""
        order = np.random.default_rng([config.seed, step]).permutation(len(mini))
        recorded = table.chosen[mini.row_B.cpu()].numpy()
        order = order[np.argsort(~recorded[order], kind="stable")]
        lengths = mini.length_B.cpu().numpy()[order].cumsum()
        count = max(1, int((lengths <= d.influence_tokens).sum()))
        return torch.from_numpy(np.sort(order[:count])).to(mini.mask_BT.device)

    ledger = Ledger(
        state.policy, state.optimizer, state.probe.batch(state.policy), rule, updates=updates, apart=d.parts,
        stride=d.stride, total=ranks.total, choose=choose if d.influence_tokens else None,
        within=partial(memory.within, state.policy),
    )  # fmt: skip
    return ledger, table


def train_critic(
    config: Config, state: TrainState, minis: list[TokenBatch], lr: float, log: Log
) -> tuple[dict[str, float], int]:
    """An optimizer step of the critic on each mini-batch: (its metrics, how many were left out)."""
    sums: list[dict[str, float]] = []
    if state.critic is None or state.critic_optimizer is None or not minis:
        return {}, 0
    set_lr(state.critic_optimizer, lr)
    for number, mini in enumerate(minis):
        try:
            sums.append(update_critic(config, state.critic, state.critic_optimizer, state.policy, mini))
        except Diverged:
            log.nonfinite(state.step + 1, number, mini)
            if config.update.on_nonfinite == "stop":
                raise
    total = metrics.total(metrics.total(part) for part in ranks.gathered(sums))
    return metrics.critic_metrics(total, minis), len(minis) - len(sums)


def run_training(config: Config, show: Any) -> str:
    """Run or resume the run of `config`; its status at the end, `finished` or `stopped`. `show` is
    what a person sees (`log.RunLog`)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with ranks.together():
        log: Log = RunLog(config, show) if ranks.rank() == 0 else Log()
    status = "failed"
    try:
        state = resumed(config)
        log.begin(state)
        with StopSignal() as stop, in_a_line(config, state.policy.device):
            if state.step == 0:
                state.draw_probe()
                log.evaluation(0, *state.evaluator.run(0))
            status = train(config, state, log, stop)
        log.end(state)
    except KeyboardInterrupt:
        status = "stopped"
        raise
    except OutOfMemory as error:
        if error.tokens:
            row = {"rank": ranks.rank(), "asked": config.update.micro_batch_tokens, "tokens": error.tokens}
            append_line(config.folder / MEMORY, row)
        raise
    finally:
        log.close(status)
    return status


def resumed(config: Config) -> TrainState:
    """The state that the run's last checkpoint holds, or in which it starts. Raises BadInput."""
    with ranks.together():
        state = build(config)
        if (saved := newest(config.folder)) is not None:
            state.restore(saved)
    if len(set(ranks.gathered(state.step))) > 1:
        raise BadInput(
            f"{config.folder}: not on every machine; a run of several machines needs a folder that all of them see"
        )
    # Where a rank ran out of memory before, all ranks begin with what it left to try: one that
    # leaves a pass cannot tell those that wait inside it.
    with ranks.together():
        said = [row for row in read_lines(config.folder / MEMORY) if isinstance(row.get("tokens"), int)]
        left = [row["tokens"] for row in said if row.get("asked") == config.update.micro_batch_tokens]
    state.policy.micro_batch_tokens = min(ranks.gathered(min([state.policy.micro_batch_tokens, *left])))
    return state
