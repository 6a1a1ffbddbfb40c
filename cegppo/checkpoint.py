"""Saving and restoring what a run holds in memory."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .model import parallel


def save_tensors(tensors: dict[str, Tensor], folder: Path | None, name: str) -> None:
    """Whole tensors in a safetensors file; without a folder this rank only gives its shards."""
    made = {}
    for key, value in tensors.items():
        value = parallel.whole(value)
        if folder is not None:
            made[key] = value.cpu().contiguous()
    if folder is not None:
        save_file(made, folder / name)


def stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, one in memory at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            yield name, file.get_tensor(name)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter number>.<exp_avg|exp_avg_sq|step>`."""
    return {f"{i}.{k}": v for i, entry in optimizer.state_dict()["state"].items() for k, v in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in stored(path):
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = parallel.like(value, parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
