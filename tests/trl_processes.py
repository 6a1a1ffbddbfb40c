"""What tests/test_trl.py also starts as two processes: one update in micro-batches of unlike sizes,
its gradient averaged over the processes as TRL's engine does. Rank 0 prints gradient and
metrics."""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from .trl_batch import inputs, loss_and_gradient, rows, trainer

CUTS = {1: [[0, 3, 4, 7, 8]], 2: [[0, 3, 4], [4, 7, 8]]}  # rows of each process's micro-batches


def measured(model: Path, where: Path, world: int) -> dict[str, float]:
    """Metrics of an update of `world` processes, and some of its gradient."""
    parts = len(CUTS[world][0]) - 1
    t = trainer(model, where, gradient_accumulation_steps=parts, steps_per_generation=parts, beta=0.1, loss="gmpo")
    batch, mine = inputs(t.model), CUTS[world][t.accelerator.process_index]
    _, gradient = loss_and_gradient(t, [rows(batch, *edges) for edges in zip(mine, mine[1:])])
    flat = torch.cat([g.flatten() for g in gradient])
    if world > 1:
        dist.all_reduce(flat)
        flat /= world
    some = {f"gradient/{i}": value for i, value in enumerate(flat[:: len(flat) // 50].tolist())}
    return {"gradient": flat.norm().item(), **some, **t._token_metrics()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = measured(Path(sys.argv[1]), Path(folder), int(os.environ["WORLD_SIZE"]))
    if os.environ["RANK"] == "0":
        print(json.dumps(made))
