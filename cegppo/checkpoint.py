"""Saving and restoring what a run holds in memory: a walk over its stateful parts.

A folder holds the model (for `from_pretrained`), the tensors of every other part (safetensors,
whole whatever the number of ranks) and state.json, in which each small part has its own key.
"""

import errno
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from .model import parallel
from .model.policy import Policy
from .types import BadInput, said


class Stateful(Protocol):
    """A part with little to remember."""

    def state(self) -> Any:
        """Whatever JSON can say."""

    def restore(self, state: Any) -> None: ...


class Stored(Protocol):
    """A part with much to remember that every rank has whole: named tensors."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> Any: ...


Large = nn.Module | torch.optim.Optimizer | Stored


def save(
    folder: Path | None, policy: Policy, large: dict[str, Large], small: dict[str, Stateful], own: dict[str, Any]
) -> None:
    """Write everything into `folder`, `own` being the keys of state.json that no part has. Ranks
    without a folder give their shards."""
    try:
        policy.save(folder)
        for name, part in large.items():
            tensors = optimizer_tensors(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()
            save_tensors(tensors, folder, f"{name}.safetensors")
    except Exception as error:  # how safetensors and tokenizers, which are Rust, say that a disk fails
        if not isinstance(error, SafetensorError) and "(os error " not in str(error):
            raise
        raise OSError(errno.EIO, said(error), str(folder)) from None
    if folder is not None:
        state = own | {"parts": sorted(large)} | {name: part.state() for name, part in small.items()}
        (folder / "state.json").write_text(json.dumps(state))


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of checkpoint `folder`. Raises BadInput when it cannot be read."""
    with readable(folder):
        state = json.loads((folder / "state.json").read_text())
        return {**state, "step": int(state["step"]), "elapsed": float(state["elapsed"]), "best": state["best"]}


def restore(folder: Path, policy: Policy, large: dict[str, Large], small: dict[str, Stateful]) -> None:
    """Continue from `folder`, bit for bit. Raises BadInput when it cannot be read."""
    state = read_state(folder)
    with readable(folder):
        policy.restore(folder)
        for name, part in large.items():
            if name not in state.get("parts", large) and not isinstance(part, (nn.Module, torch.optim.Optimizer)):
                continue  # a part that the run of the checkpoint did not have starts afresh
            if isinstance(part, nn.Module):
                parallel.load(part, parallel.stored(folder / f"{name}.safetensors"))
            elif isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, folder / f"{name}.safetensors")
            else:
                part.load_state_dict(dict(parallel.stored(folder / f"{name}.safetensors")))
        for name, small_part in small.items():
            if name in state:  # a part that is younger than the checkpoint starts afresh
                small_part.restore(state[name])


class readable:
    """A broken file surfaces as one of many exceptions: each becomes BadInput."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, BadInput):
            raise BadInput(
                f"{self.folder}: unreadable checkpoint ({type(error).__name__}: {said(error, 150)})"
            ) from None


def save_tensors(tensors: dict[str, Tensor], folder: Path | None, name: str) -> None:
    """Whole tensors in a safetensors file; without a folder this rank only gives its shards."""
    made = {}
    for key, value in tensors.items():
        value = parallel.whole(value)
        if folder is not None:
            made[key] = value.cpu().contiguous()
    if folder is not None:
        save_file(made, folder / name)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter number>.<exp_avg|exp_avg_sq|step>`."""
    return {f"{i}.{k}": v for i, entry in optimizer.state_dict()["state"].items() for k, v in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in parallel.stored(path):
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = parallel.like(value, parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
