"""The loop. One for every algorithm: what differs between methods is the weight that a token loss
puts on a token.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from . import ranks
from .config import Config, is_rule
from .model.memory import OutOfMemory, in_a_line
from .problems.counts import mean_accuracy
from .problems.reward import rule_digest
from .record.files import append_line, read_lines
from .record.run import Record, newest
from .trainer import Trainer
from .types import BadInput, TokenBatch
from .update import Diverged

MEMORY = "memory.jsonl"  # of a run of several ranks: which of them ran out, and what to try next


def train(config: Config, show: Any) -> str:
    """Run or resume the run of `config`; its status at the end, `finished` or `stopped`.

    `show` has `start(config, folder, step)`, `step(step, metrics, elapsed)`, `evaluated(step,
    rows)`, `say(text)`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with ranks.together():
        record: Any = Record(config) if ranks.rank() == 0 else ranks.Elsewhere()
    show = show if ranks.rank() == 0 else ranks.Elsewhere()
    status = "failed"
    try:
        with ranks.together():
            trainer = Trainer(config)
            if (saved := newest(config.folder)) is not None:
                trainer.restore(saved)
        if len(set(ranks.gathered(trainer.step))) > 1:
            raise BadInput(
                f"{config.folder}: not on every machine; a run of several machines needs a folder that all of them see"
            )
        with ranks.together():
            logged = read_lines(config.folder / "eval.jsonl")
            rows = [row for row in logged if trainer.step and row["step"] == trainer.step]
            record.begin(trainer.step, best=mean_accuracy(rows) == trainer.best)
        smaller_micro_batches(config, trainer)
        record.note(start_model=trainer.start, start_weights=trainer.start_weights)
        if is_rule(config.reward):  # a file of the user's, which git may not know
            record.note(reward_rule=rule_digest(config.reward))
        show.start(config, config.folder, trainer.step)
        if config.updates_per_step == 1:
            show.say("updates_per_step=1: all on-policy, so the ratio is 1 and clip facts are zero by construction.")
        with interruptible() as interrupted, in_a_line(config, trainer.policy.device):
            status = loop(config, trainer, record, show, interrupted)
        passed_over = trainer.stream.passed_over
        record.note(steps=trainer.step, seconds=round(trainer.elapsed, 1), passed_over=passed_over)
        if any(passed_over.values()):
            long = f"{passed_over['too_long']} longer than {config.data.max_prompt_tokens} tokens"
            show.say(f"prompts passed over: {passed_over['held_out']} asked by a benchmark, {long}")
    except KeyboardInterrupt:
        status = "stopped"
        raise
    except OutOfMemory as error:
        if error.tokens:
            row = {"rank": ranks.rank(), "asked": config.update.micro_batch_tokens, "tokens": error.tokens}
            append_line(config.folder / MEMORY, row)
        raise
    finally:
        record.close(status)
    return status


def loop(config: Config, trainer: Trainer, record: Any, show: Any, interrupted: Callable[[], bool]) -> str:
    """Steps, evaluations, checkpoints until the end (`finished`) or an interruption (`stopped`)."""
    if trainer.step == 0:
        trainer.begin()
        rows = trainer.evaluator.run(0, record.log_seen)
        record.log_eval(0, rows, mean_accuracy(rows))
        show.evaluated(0, rows)
    while trainer.step < config.steps:
        try:
            metrics = trainer.run_step()
        except Diverged as error:
            if error.batch is not None:
                record.log_broken(trainer.step + 1, error.number, tensors(error.batch))
            raise
        step = trainer.step
        for number, mini in trainer.broken:
            record.log_broken(step, number, tensors(mini))
        if trainer.tokens is not None:
            record.log_tokens(step, [part for parts in ranks.gathered(trainer.tokens.parts) for part in parts])
        record.log(step, metrics)
        show.step(step, metrics, trainer.elapsed)
        best = False
        if due(step, config.eval_every, config.steps):
            rows = trainer.evaluator.run(step, record.log_seen)
            mean = mean_accuracy(rows)
            record.log_eval(step, rows, mean)
            show.evaluated(step, rows)
            best, trainer.best = mean > trainer.best, max(trainer.best, mean)
        stopping = interrupted() and step < config.steps
        if best or stopping or due(step, config.checkpoint_every, config.steps):
            record.save_checkpoint(step, trainer.save, best)
        if stopping:
            return "stopped"
    return "finished"


def smaller_micro_batches(config: Config, trainer: Trainer) -> None:
    """Where a rank ran out of memory before, all ranks begin with what it left to try: one that
    leaves a pass cannot tell those that wait inside it."""
    with ranks.together():
        said = [row for row in read_lines(config.folder / MEMORY) if isinstance(row.get("tokens"), int)]
        left = [row["tokens"] for row in said if row.get("asked") == config.update.micro_batch_tokens]
    trainer.policy.micro_batch_tokens = min(ranks.gathered(min([trainer.policy.micro_batch_tokens, *left])))


def tensors(batch: TokenBatch) -> dict[str, torch.Tensor]:
    """The fields of a batch that it has."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def due(step: int, every: int, last: int) -> bool:
    """After `step` steps: a multiple of `every` (0: never), or the end."""
    return step == last or (every > 0 and step % every == 0)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
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
