"""Weights divided among the ranks: the only file that knows FSDP2.

The weights, their gradients and the optimizer's state are sharded with `fully_shard` (arXiv
2304.11277). In a process of its own every function here is the identity. Left out: tensor, sequence
and pipeline parallelism.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ..ranks import world

A = TypeVar("A")
INSIDE = "inside"  # the method of a sharded model that runs a function as a forward pass


@cache
def _mesh(device: str) -> DeviceMesh:
    return init_device_mesh(device, (world(),))


def shard(model: nn.Module, layers: list[nn.Module]) -> None:
    """Divide every parameter of `model` among the ranks; each of `layers`, and the rest, is
    gathered when it is needed.

    Gradients are summed over the ranks, not averaged: a loss is already divided by the counts of
    the whole mini-batch. A sharded model runs in step on all ranks: each makes as many forward and
    backward passes as the others, `inside` it.
    """
    if world() == 1:
        return
    mesh = _mesh(next(model.parameters()).device.type)
    for part in (*layers, model):
        # The root too: its parameters are shards whenever it does not run.
        module = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    # FSDP's hooks do not stay on views.
    forward = lambda function: tuple(value.clone() for value in function())
    setattr(model, INSIDE, forward)
    register_fsdp_forward_method(model, INSIDE)


def inside(model: nn.Module, function: Callable[[], A]) -> A:
    """`function()`, which calls parts of `model` and returns a tuple of tensors, as a forward
    pass of it."""
    return getattr(model, INSIDE)(function) if isinstance(model, FSDPModule) else function()


def whole(value: Tensor) -> Tensor:
    """The whole tensor of which `value` may be a shard. Every rank takes part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This rank's part of `value`."""
    return value.to_local() if isinstance(value, DTensor) else value


def sharded(own: Tensor, pattern: Tensor) -> Tensor:
    """The tensor of which `own` is this rank's part, sharded as `pattern` is."""
    if not isinstance(pattern, DTensor):
        return own
    mesh, placements = pattern.device_mesh, pattern.placements
    shape, stride = pattern.shape, pattern.stride()
    return DTensor.from_local(own.to(pattern.device), mesh, placements, run_check=False, shape=shape, stride=stride)


def like(value: Tensor, pattern: Tensor | None) -> Tensor:
    """A whole `value` that every rank holds, sharded as `pattern` is."""
    if not isinstance(pattern, DTensor) or pattern.shape != value.shape:
        return value
    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def load(module: nn.Module, weights: Iterator[tuple[str, Tensor]], strict: bool = True) -> Any:
    """`module.load_state_dict` of whole weights, given one after the other."""
    have = module.state_dict()
    return module.load_state_dict({name: like(value, have.get(name)) for name, value in weights}, strict=strict)


def stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, one in memory at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            yield name, file.get_tensor(name)


def gradients(
    roots: list[Tensor], parameters: list[Tensor], slopes: list[Tensor] | None = None, keep: bool = False
) -> list[Tensor]:
    """`torch.autograd.grad`, zeros for a parameter that has no part in `roots`; summed over the
    ranks where weights are sharded.

    `keep` retains the graph. The parameters' own .grad stays as it was.
    """
    if not isinstance(parameters[0], DTensor):
        made: Sequence[Tensor | None] = torch.autograd.grad(
            roots, parameters, slopes, retain_graph=keep, allow_unused=True
        )
    else:  # the sum over ranks happens on the way into .grad
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        torch.autograd.backward(roots, slopes, retain_graph=keep)
        made = [p.grad for p in parameters]
        for p, grad in zip(parameters, before):
            p.grad = grad
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, made)]


class Replica:
    """The architecture of a module that is about to be sharded, with room for whole weights that
    is taken only inside `filled`."""

    def __init__(self, model: nn.Module):
        room = {}
        for p in model.parameters():
            room[id(p)] = nn.Parameter(torch.empty_like(p), requires_grad=False)
            room[id(p)].untyped_storage().resize_(0)
        self.model = copy.deepcopy(model, memo=room)  # tied parameters stay tied, and buffers are kept

    @contextmanager
    def filled(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[nn.Module]:
        """The module with `weights`, which are given in the order of its parameters."""
        own = list(self.model.parameters())
        for p, (_, value) in zip(own, weights, strict=True):
            p.untyped_storage().resize_(p.numel() * p.element_size())
            p.data.copy_(value)
        try:
            yield self.model
        finally:
            for p in own:
                p.untyped_storage().resize_(0)
