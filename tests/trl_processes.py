"""What tests/test_trl.py starts with torchrun, with one process or two: one update in micro-batches
of unlike sizes, its gradient averaged over the processes as TRL's engine does. Rank 0 writes
gradient norm and metrics."""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from .trl_batch import inputs, loss_and_gradient, rows, trainer

CUTS = {1: [[0, 3, 4, 7, 8]], 2: [[0, 3, 4], [4, 7, 8]]}  # rows of each process's micro-batches


def main(model: str, out: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where:
        world = int(os.environ["WORLD_SIZE"])
        cut = CUTS[world]
        parts = len(cut[0]) - 1
        t = trainer(
            Path(model),
            Path(where),
            gradient_accumulation_steps=parts,
            steps_per_generation=parts,
            beta=0.1,
            loss="gmpo",
        )
        batch = inputs(t.model)
        mine = cut[t.accelerator.process_index]
        _, gradient = loss_and_gradient(t, [rows(batch, *edges) for edges in zip(mine, mine[1:])])
        flat = torch.cat([g.flatten() for g in gradient])
        if world > 1:
            dist.all_reduce(flat)
            flat /= world
        some = {f"gradient/{i}": value for i, value in enumerate(flat[:50].tolist())}
        made = {"gradient": flat.norm().item(), **some, **t._token_metrics()}
        if t.accelerator.is_main_process:
            Path(out).write_text(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
