"""What the tests of cegppo/plugins/trl.py train on: a trainer of TRL, and a rollout's batch as TRL
makes one. Imports TRL."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from cegppo.config import Model, Update
from cegppo.instrument.tally import Tally
from cegppo.model.optimizer import adamw
from cegppo.model.policy import load_policy
from cegppo.objective import Objective
from cegppo.plugins.trl import CEGPPOConfig, CEGPPOTrainer, Watcher
from cegppo.types import Prompt, Rollout, TokenBatch

from . import steps

ROWS, PROMPT, RESPONSE = 8, 6, 9


def length_even(completions: list[str], **_: Any) -> list[float]:
    """A reward that says nothing: the coin of these tests."""
    return [float(len(text) % 2) for text in completions]


def trainer(
    model: Path, where: Path, kind: Any = CEGPPOTrainer, callbacks: list | None = None, **changes: Any
) -> GRPOTrainer:
    """A trainer of `kind` on a CPU; `changes` go over its configuration's values."""
    values = dict(
        output_dir=str(where), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, per_device_train_batch_size=4, steps_per_generation=4, num_generations=4,
        gradient_accumulation_steps=1, max_steps=8, logging_steps=4, max_completion_length=RESPONSE,
        learning_rate=1e-3, lr_scheduler_type="constant",
    )  # fmt: skip
    prompts = [{"prompt": f"{a} + {b} =\n", "answer": str(a + b)} for a in range(1, 5) for b in range(1, 5)]
    config = CEGPPOConfig if kind is CEGPPOTrainer else GRPOConfig
    return kind(
        str(model), length_even, args=config(**values | changes), train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(model), callbacks=callbacks,
    )  # fmt: skip


def inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    """A rollout of ROWS responses of different lengths, as `_compute_loss` is given it: old
    log-probabilities far enough off that every side of the clip has tokens."""
    made = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    prompt_mask, completion_mask = torch.ones(ROWS, PROMPT).long(), torch.ones(ROWS, RESPONSE).long()
    for row in range(ROWS):
        prompt_mask[row, : row % 3] = 0
        completion_mask[row, RESPONSE - row % 5 :] = 0
    prompt_ids = torch.randint(2, vocabulary, (ROWS, PROMPT), generator=made) * prompt_mask
    completion_ids = torch.randint(2, vocabulary, (ROWS, RESPONSE), generator=made) * completion_mask
    with torch.no_grad():
        logits = model(torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, completion_mask], 1)).logits
    logp = logits[:, PROMPT - 1 : -1].log_softmax(-1)
    now, entropy = logp.gather(2, completion_ids[..., None])[..., 0], -(logp.exp() * logp).sum(-1)
    noise = lambda size: size * torch.randn(ROWS, RESPONSE, generator=made)
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids,
        "completion_mask": completion_mask, "advantages": torch.randn(ROWS, generator=made),
        "num_items_in_batch": completion_mask.sum(), "old_per_token_logps": now + noise(0.3),
        "ref_per_token_logps": now + noise(0.1), "old_entropies": entropy * (1 + noise(0.1)),
        "row": torch.arange(ROWS),
    }  # fmt: skip


def loss_and_gradient(t: GRPOTrainer, parts: list[dict[str, Any]]) -> tuple[float, list[Tensor]]:
    """Of an update whose micro-batches are `parts`, as transformers' training loop makes it."""
    t.current_gradient_accumulation_steps = len(parts)
    t.model.train()
    t.model.zero_grad()
    total = 0.0
    for number, part in enumerate(parts):
        t.accelerator.gradient_state._set_sync_gradients(number + 1 == len(parts))
        loss = t._compute_loss(t.model, part)
        loss.backward()
        total += float(loss.detach())
    return total, [p.grad.clone() for p in t.model.parameters()]


def rows(batch: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {name: value[begin:end] if value.dim() else value for name, value in batch.items()}


def as_rollouts(batch: dict[str, Any], old: bool) -> list[Rollout]:
    """TRL's responses as ours, with their old log-probabilities or without."""
    picked = lambda kind, b, values: tuple(values[b][batch[f"{kind}_mask"][b].bool()].tolist())
    rollouts = []
    for b in range(len(batch["prompt_ids"])):
        prompt = Prompt(str(b), "", "", picked("prompt", b, batch["prompt_ids"]), "")
        token_ids = picked("completion", b, batch["completion_ids"])
        brought = picked("completion", b, batch["old_per_token_logps"]) if old else None
        rollouts.append(Rollout(prompt, 0, token_ids, (0.0,) * len(token_ids), "", "", old_logprobs=brought))
    return rollouts


class Seen(Watcher):
    """Remembers the last rollout, and which of its responses each update had."""

    def __init__(self) -> None:
        self.output: dict[str, Any] = {}
        self.dealt: list[Tensor] = []

    def rollout(self, trainer: CEGPPOTrainer, rows: list[dict[str, Any]], output: dict[str, Any]) -> None:
        self.output, self.dealt = dict(output), []

    def update(self, number: int, row_B: Tensor, *_: Any) -> None:
        assert number == len(self.dealt)
        self.dealt.append(row_B.clone())


def our_updates(model: Path, seen: Seen, objective: Objective, lr: float) -> tuple[list[Tensor], dict[str, float]]:
    """(weights, metrics) after our updates of the same responses in the same order, from
    `model`."""
    policy = load_policy(str(model), Model(path=str(model), device="cpu"), 1.0, 16384)
    none = np.zeros(len(seen.output["row"]))
    x = policy.collate(as_rollouts(seen.output, old=False), seen.output["advantages"].numpy(), none, none)
    optimizer, tally = adamw(policy.model.parameters(), lr, Update()), Tally()
    for row_B in seen.dealt:
        steps.update(policy, optimizer, x.rows(row_B), objective, tally, grad_clip=1.0)
    return [p.detach() for p in policy.model.parameters()], tally.metrics(len(seen.dealt))


def ours(model: Path, batch: dict[str, Any], objective: Objective) -> tuple[float, list[Tensor], dict[str, float]]:
    """(loss, gradient, metrics) of one update of ours of the same tokens."""
    policy = load_policy(str(model), Model(path=str(model), device="cpu"), 1.0, 16384)
    none = np.zeros(ROWS)
    x: TokenBatch = policy.collate(as_rollouts(batch, old=True), batch["advantages"].numpy(), none, none)
    x = x.but(old_entropy_BT=batch["old_entropies"][:, : x.mask_BT.shape[1]])
    tally = Tally()
    steps.update(policy, torch.optim.SGD(policy.model.parameters(), lr=0.0), x, objective, tally)
    gradient = [p.grad for p in policy.model.parameters()]
    return float(tally.sums["loss/policy"]), gradient, tally.metrics(1)
