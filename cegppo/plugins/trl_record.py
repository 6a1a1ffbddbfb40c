"""A training of TRL as a run's folder (docs/record.md), which reports and figures read.

    CEGPPOTrainer(…, callbacks=[RunFolder("results/mine/cegppo/seed0", every=10)])

In: TRL's log and the tokens that CEGPPOTrainer shows. Out: `config.yaml` (TRL's arguments),
`meta.json`, `metrics.jsonl` (a line of TRL's log, with our names beside TRL's; `step` counts
rollouts) and, every `every` rollouts, `tokens/` with the columns of docs/metrics.md. Left out of
those: `verdict`, since a reward says none, and what only the ledger knows. Needs the extra `run`.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerControl, TrainerState

from ..instrument.entropy import BY_PROBABILITY
from ..instrument.tokens import TokenRecord
from ..objective import Weights
from ..record.files import append_line, as_lines, as_page, read_lines, write_whole
from ..record.provenance import now, session, without_secrets
from ..record.run import write_tokens
from ..types import BadInput, Group, Prompt, Rollout, Score, TokenBatch, Verdict, present
from .trl import CEGPPOConfig, CEGPPOTrainer, Watcher

# Our names: TRL's of the same.
NAMES = {
    "reward/mean": "reward",
    "length/mean": "completions/mean_length",
    "grad/norm": "grad_norm",
    "lr": "learning_rate",
    "rollout/constant_groups": "frac_reward_zero_std",
}


class RunFolder(Watcher):
    """Writes `folder` while TRL trains."""

    def __init__(self, folder: str | Path, every: int = 10, max_tokens: int = 20000):
        """`every`: rollouts between token records; 0: none. `max_tokens`: rows of one record;
        above, whole responses are left out at random."""
        self.folder, self.every, self.max_tokens = Path(folder), every, max_tokens
        self.record: TokenRecord | None = None  # of the rollout under way, where it is recorded
        self.meta: dict[str, Any] = {}

    # -- the tokens

    def rollout(self, trainer: CEGPPOTrainer, rows: list[dict[str, Any]], output: dict[str, Any]) -> None:
        step = trainer.state.global_step // trainer.args.updates_per_rollout + 1
        if not trainer.model.training or not self.every or step % self.every:
            return
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        processes = trainer.accelerator.num_processes
        self.record = TokenRecord(
            step, _groups(trainer, rows, output, step), tokenizer, BY_PROBABILITY, self.max_tokens // processes,
            trainer.args.seed,
        )  # fmt: skip

    def update(self, number: int, row_B: Tensor, x: TokenBatch, w: Weights, scale_BT: Tensor) -> None:
        if self.record is not None:
            self.record.add(number, x.but(row_B=row_B), w, scale_BT)

    def on_step_end(self, args: CEGPPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.record is None or state.global_step % args.updates_per_rollout:
            return
        parts = gather_object(self.record.parts)
        if state.is_world_process_zero:
            for part in parts:
                del part["verdict"]
            write_tokens(self.folder, self.record.step, parts)
        self.record = None

    # -- the lines

    def on_train_begin(self, args: CEGPPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.logging_steps % args.updates_per_rollout:
            raise BadInput(
                f"RunFolder: logging_steps must be a multiple of {args.updates_per_rollout}, the updates of a rollout,"
                f" not {state.logging_steps}"
            )
        if not state.is_world_process_zero:
            return
        done, lines = state.global_step // args.updates_per_rollout, read_lines(self.folder / "metrics.jsonl")
        if lines and not done:
            raise BadInput(f"{self.folder}: holds another run; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "metrics.jsonl", as_lines([line for line in lines if line["step"] <= done]))
        config = {"trainer": f"trl {version('trl')}", **args.to_sanitized_dict()}
        write_whole(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        here = session() | {"command": without_secrets(" ".join(sys.argv))}
        self.meta = {"status": "running", "start": now(), "sessions": [here]}
        write_whole(self.folder / "meta.json", as_page(self.meta))

    def on_log(
        self, args: CEGPPOConfig, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if not state.is_world_process_zero or "entropy/mean" not in logs:
            return
        ours = {name: logs[theirs] for name, theirs in NAMES.items() if theirs in logs}
        ours["time/step"] = logs["step_time"] * args.updates_per_rollout
        step = state.global_step // args.updates_per_rollout
        append_line(self.folder / "metrics.jsonl", {"step": step, **logs, **ours})

    def on_train_end(self, args: CEGPPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            steps = state.global_step // args.updates_per_rollout
            self.meta |= {"status": "finished", "steps": steps, "end": now()}
            write_whole(self.folder / "meta.json", as_page(self.meta))


def _groups(trainer: CEGPPOTrainer, rows: list[dict[str, Any]], output: dict[str, Any], step: int) -> list[Group]:
    """This process's responses, in order. TRL deals them to processes in the order of the whole
    rollout, so that a group may begin in one and end in the next."""
    first, size = trainer.accelerator.process_index * len(rows), trainer.num_generations
    rewards = present(trainer.rewards)
    reward_B = (rewards * trainer.reward_weights.to(rewards.device)).nansum(dim=1)[first : first + len(rows)].tolist()
    tokens = lambda kind, b: tuple(output[f"{kind}_ids"][b][output[f"{kind}_mask"][b].bool()].tolist())
    made = []
    for b, (row, reward) in enumerate(zip(rows, reward_B)):
        group, index = divmod(first + b, size)
        text = trainer.processing_class.decode(tokens("prompt", b), skip_special_tokens=True)
        prompt = Prompt(f"{step}/{group}", "trl", text, tokens("prompt", b), str(row.get("answer", "")))
        rollout = Rollout(prompt, index, tokens("completion", b), (), "", "")
        # A verdict has to stand there, and is taken out again.
        made.append(Group(prompt, (rollout,), (Score(reward, Verdict.GRADER_ERROR, reward),)))
    return made
