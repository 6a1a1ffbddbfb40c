"""AdamW, with moments that may wait in the CPU's memory."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import Update
from . import parallel


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose moments wait in the CPU's memory and visit the device one parameter at a time.
    The same steps, bit for bit."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups  # one is all that is ever made
        parameters = group["params"]
        try:
            for p in parameters:
                group["params"] = [p]
                self._move(p, p.device)
                super().step()
                self._move(p, torch.device("cpu"))
        finally:
            group["params"] = parameters
        if any(p.is_cuda for p in parameters):
            torch.cuda.synchronize()  # what is still on its way may be read next: by a checkpoint, say

    def load_state_dict(self, state_dict: dict) -> None:
        # Not the usual way, which would put all moments on the device first and need the room that
        # they are kept out of.
        parameters = self.param_groups[0]["params"]
        for number, entry in state_dict["state"].items():
            self.state[parameters[number]] = {name: value.to("cpu", copy=True) for name, value in entry.items()}

    def _move(self, p: nn.Parameter, device: torch.device) -> None:
        if p in self.state:
            self.state[p] |= {name: _moved(value, device) for name, value in self.state[p].items() if name != "step"}


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`. Between a GPU and the CPU through page-locked memory, which is several
    times as fast as pageable memory and lets the GPU go on; a shard goes its own way."""
    if not value.is_cuda or device.type != "cpu" or isinstance(value, DTensor):
        return value.to(device, non_blocking=True)
    waiting = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return waiting.copy_(value, non_blocking=True)


def clip_grad_norm(model: torch.nn.Module, most: float) -> Tensor:
    """Scale the gradient down to norm `most` (0: leave it); the norm before, over all ranks'
    shards."""
    return parallel.whole(torch.nn.utils.clip_grad_norm_(model.parameters(), most or float("inf")))


def clip_factor(norm: float, most: float) -> float:
    """What `clip_grad_norm` multiplied a gradient of that norm by."""
    return min(1.0, most / (norm + 1e-6)) if most else 1.0  # as clip_grad_norm_ does


def adamw(parameters: Iterable[nn.Parameter], lr: float, u: Update) -> torch.optim.AdamW:
    """AdamW at rate `lr`, everything else as `update.*` says."""
    kind = OffloadedAdamW if u.offload_optimizer else torch.optim.AdamW
    return kind(parameters, lr=lr, betas=(u.beta1, u.beta2), weight_decay=u.weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
