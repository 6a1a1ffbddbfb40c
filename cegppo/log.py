"""What becomes of a run's results: its record, and what a person sees. Of several ranks the first
has them; the others take part in what needs every rank, and keep nothing."""

from dataclasses import fields
from typing import Any

import torch

from . import ranks
from .config import Config, is_rule
from .problems.counts import mean_accuracy
from .problems.reward import rule_digest
from .record.files import read_lines
from .record.run import Record
from .state import TrainState
from .types import TokenBatch

Rows = list[dict[str, Any]]


class Log:
    """All that there is to log. This one keeps nothing: it is the other ranks'."""

    def begin(self, state: TrainState) -> None:
        """A run starts from `state`, or goes on. Raises BadInput on all ranks where one has it."""
        with ranks.together():
            self._begin(state)

    def _begin(self, state: TrainState) -> None: ...

    def step(self, step: int, metrics: dict[str, float], elapsed: float, tokens: Rows | None) -> None:
        """The metrics of a step and, of a step that was looked at, this rank's part of the token
        record; seconds in all steps so far."""
        ranks.gathered(tokens)

    def unsure(self, step: int, names: list[str]) -> None:
        """What the ledger of a step left out, since its differences do not agree."""

    def nonfinite(self, step: int, number: int, mini: TokenBatch) -> None:
        """The gradient of update `number` of a step is not finite."""

    def evaluation(self, step: int, rows: Rows, completions: list[Rows]) -> float:
        """What `Evaluator.run` gave; the mean accuracy."""
        return mean_accuracy(rows)

    def checkpoint(self, state: TrainState, best: bool) -> None:
        """Save `state`; `best`: its evaluation was."""
        state.save(None)  # each rank gives its shards

    def end(self, state: TrainState) -> None:
        """The steps are over."""

    def close(self, status: str) -> None:
        """Nothing more comes: `finished`, `stopped` (resumable) or `failed`."""


class RunLog(Log):
    """A run's folder and its screen.

    `show` has `start(config, folder, step)`, `step(step, metrics, elapsed)`, `evaluated(step,
    rows)`, `say(text)`.
    """

    def __init__(self, config: Config, show: Any):
        self.config, self.show = config, show
        self.record = Record(config)
        self.said_unsure = False

    def _begin(self, state: TrainState) -> None:
        c = self.config
        rows = [row for row in read_lines(c.folder / "eval.jsonl") if state.step and row["step"] == state.step]
        self.record.begin(state.step, best=mean_accuracy(rows) == state.best)
        self.record.note(start_model=state.start, start_weights=state.start_weights)
        if is_rule(c.reward):  # a file of the user's, which git may not know
            self.record.note(reward_rule=rule_digest(c.reward))
        self.show.start(c, c.folder, state.step)
        if c.updates_per_step == 1 and (c.rollout.staleness == 0 or c.update.correction != "none"):
            on_policy = "all on-policy, so the ratio is 1 and clip facts are zero by construction"
            self.show.say(f"updates_per_step=1: {on_policy}.")

    def step(self, step: int, metrics: dict[str, float], elapsed: float, tokens: Rows | None) -> None:
        parts = [part for own in ranks.gathered(tokens) for part in own or []]
        if tokens is not None:
            self.record.log_tokens(step, parts)
        self.record.log(step, metrics)
        self.show.step(step, metrics, elapsed)

    def unsure(self, step: int, names: list[str]) -> None:
        if names and not self.said_unsure:
            self.said_unsure = True
            self.show.say(
                f"ledger: {', '.join(names)} left out of step {step} and wherever the differences of two"
                " strides disagree by more than 5 % (ledger/influence_disagreement)"
            )

    def nonfinite(self, step: int, number: int, mini: TokenBatch) -> None:
        values = {field.name: getattr(mini, field.name) for field in fields(mini)}
        given = {name: v for name, v in values.items() if isinstance(v, torch.Tensor) and not v.isnan().all()}
        self.record.log_broken(step, number, given)

    def evaluation(self, step: int, rows: Rows, completions: list[Rows]) -> float:
        for some in completions:
            self.record.log_seen(some)
        mean = mean_accuracy(rows)
        self.record.log_eval(step, rows, mean)
        self.show.evaluated(step, rows)
        return mean

    def checkpoint(self, state: TrainState, best: bool) -> None:
        self.record.save_checkpoint(state.step, state.save, best)

    def end(self, state: TrainState) -> None:
        passed_over = state.stream.passed_over
        self.record.note(steps=state.step, seconds=round(state.elapsed, 1), passed_over=passed_over)
        if any(passed_over.values()):
            long = f"{passed_over['too_long']} longer than {state.stream.max_tokens} tokens"
            self.show.say(f"prompts passed over: {passed_over['held_out']} asked by a benchmark, {long}")

    def close(self, status: str) -> None:
        self.record.close(status)
