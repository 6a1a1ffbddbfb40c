"""Several processes as one run: the only file that knows torch.distributed.

`torchrun` starts the processes, called ranks. Every rank knows the whole step (prompts, rollouts,
scores, advantages); sampling, grading, forward and backward passes are divided among them, and what
is summed is summed over all ranks, so that nothing is an average of averages. The weights, their
gradients and the optimizer's state are sharded with FSDP2 (`fully_shard`; arXiv 2304.11277). In a
process of its own every function here is the identity. Left out: tensor, sequence and pipeline
parallelism.
"""

import copy
import ctypes
import heapq
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from .types import BadInput

A = TypeVar("A")
B = TypeVar("B")

# --------------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def join() -> None:
    """Meet the other ranks: gloo between CPUs, and NCCL between GPUs where there are any."""
    if not launched() or dist.is_initialized():
        return
    ctypes.CDLL(None).prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: a rank whose torchrun was killed would hold its GPU and the folder
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    # Ranks wait for the one whose responses are longest; a rank that died is torchrun's to notice.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=6))


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which rank this is; 0 writes what is written."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Which of this machine's ranks this is."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


class Elsewhere:
    """What ranks other than the first have for a record and a screen: those are the first
    rank's."""

    def save_checkpoint(self, step: int, write: Callable[[None], None], best: bool) -> None:
        write(None)  # each rank gives its shards

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


# --------------------------------------------------------------------------------------------------


def gathered(value: A) -> list[A]:
    """Every rank's `value` (anything that pickles), in the order of the ranks."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def total(value: A) -> A:
    """The sum of every rank's `value`: a float or a tensor, which keeps its type. A tensor may
    be overwritten."""
    if world() == 1:
        return value
    if isinstance(value, Tensor):
        dist.all_reduce(value)
        return value
    return total(torch.tensor(value, dtype=torch.float64)).item()


def anywhere(flags: list[bool]) -> list[bool]:
    """Of each flag, whether it is set on any rank."""
    return flags if world() == 1 else total(torch.tensor(flags, dtype=torch.int32)).bool().tolist()


@contextmanager
def together() -> Iterator[None]:
    """What one rank cannot do, none does: the BadInput of one rank (the first, if there are
    several) is raised on all of them, its `shared` set so that one of them says it."""
    error = None
    try:
        yield
    except BadInput as mine:
        error = mine
    for first in gathered(error):
        if first is not None:
            first.shared = True
            raise first


def shares(sizes: list[int], parts: int) -> list[list[int]]:
    """The places of `sizes` in `parts` lists of about equal sum: the largest first, each to the
    list that has least; in order."""
    if parts == 1:
        return [list(range(len(sizes)))]
    heap: list[tuple[int, int]] = [(0, part) for part in range(parts)]
    made: list[list[int]] = [[] for _ in range(parts)]
    for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        filled, part = heapq.heappop(heap)
        made[part].append(place)
        heapq.heappush(heap, (filled + sizes[place], part))
    return [sorted(places) for places in made]


def divided(function: Callable[[list[A]], list[B]], items: list[A]) -> list[B]:
    """`function(items)`, one result an item, each rank working on its part of them."""
    if world() == 1:
        return function(items)
    parts = gathered(function(items[rank() :: world()]))
    return [parts[i % world()][i // world()] for i in range(len(items))]


class DividedSampler:
    """A sampler whose prompts are divided among the ranks, each of which has its own `sampler`;
    every rank gets all responses."""

    def __init__(self, sampler: Any):
        self.sampler = sampler

    @property
    def identity(self) -> list[Any]:
        return self.sampler.identity

    @property
    def seed(self) -> int:
        return self.sampler.seed

    def but(self, **rules: Any) -> "DividedSampler":
        """The same with other sampling rules."""
        return DividedSampler(self.sampler.but(**rules))

    def load(self, policy: Any) -> None:
        self.sampler.load(policy)

    def sample(self, prompts: list, n: int, step: int) -> list:
        """`n` responses to each prompt: prompt by prompt, index 0 … n-1."""

        def groups(part: list) -> list[list]:
            rollouts = self.sampler.sample(part, n, step)
            return [rollouts[i * n : (i + 1) * n] for i in range(len(part))]

        return [rollout for group in divided(groups, prompts) for rollout in group]

    def sample_index(self, prompts: list, index: int, step: int) -> list:
        """Response number `index` to each prompt."""
        return divided(lambda part: self.sampler.sample_index(part, index, step), prompts)


# --------------------------------------------------------------------------------------------------


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
    for module in (*layers, model):
        fully_shard(
            module, mesh=mesh, reshard_after_forward=True
        )  # the root too: its parameters are shards whenever it does not run
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    model.inside = lambda function: tuple(value.clone() for value in function())  # FSDP's hooks do not stay on views
    register_fsdp_forward_method(model, "inside")


def inside(model: nn.Module, function: Callable[[], A]) -> A:
    """`function()`, which calls parts of `model` and returns a tuple of tensors, as a forward
    pass of it."""
    return model.inside(function) if isinstance(model, FSDPModule) else function()


def whole(value: Tensor) -> Tensor:
    """The whole tensor of which `value` may be a shard. Every rank takes part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This rank's part of `value`."""
    return value.to_local() if isinstance(value, DTensor) else value


def like(value: Tensor, pattern: Tensor | None) -> Tensor:
    """A whole `value` that every rank holds, sharded as `pattern` is."""
    if not isinstance(pattern, DTensor) or pattern.shape != value.shape:
        return value
    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def load(module: nn.Module, weights: Iterator[tuple[str, Tensor]], strict: bool = True) -> Any:
    """`module.load_state_dict` of whole weights, given one after the other."""
    have = module.state_dict()
    return module.load_state_dict({name: like(value, have.get(name)) for name, value in weights}, strict=strict)


def gradients(
    roots: list[Tensor], parameters: list[Tensor], slopes: list[Tensor] | None = None, keep: bool = False
) -> list[Tensor]:
    """`torch.autograd.grad`, zeros for a parameter that has no part in `roots`; summed over the
    ranks where weights are sharded.

    `keep` retains the graph. The parameters' own .grad stays as it was.
    """
    if not isinstance(parameters[0], DTensor):
        made = torch.autograd.grad(roots, parameters, slopes, retain_graph=keep, allow_unused=True)
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
