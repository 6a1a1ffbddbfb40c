"""Several processes as one run, and what they tell each other.

`torchrun` starts the processes, called ranks. Every rank knows the whole step (prompts, rollouts,
scores, advantages); sampling, grading, forward and backward passes are divided among them, and what
is summed is summed over all ranks, so that nothing is an average of averages. In a process of its
own every function here is the identity. model/parallel.py divides the weights.
"""

import ctypes
import heapq
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from .types import BadInput

A = TypeVar("A")
B = TypeVar("B")
MEETING = timedelta(minutes=2)  # of ranks that torchrun starts together


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
    store, own, world = next(dist.rendezvous("env://", timeout=MEETING))
    store = dist.PrefixStore(_agreed(store, own, world), store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=own, world_size=world, timeout=MEETING)
    # Once they have met they wait for the one whose responses are longest; a rank that died is
    # torchrun's to notice.
    _set_pg_timeout(timedelta(hours=6))


def _agreed(store: dist.Store, own: int, world: int) -> str:
    """A name for this meeting that every rank has and no earlier one had.

    Where torchrun starts the ranks again it hands them the store of those before (PyTorch 2.13),
    with their addresses in it; whoever reads one of these waits for a process that is gone. So each
    rank says hello with a word of its own, and rank 0 answers that word, until all have answered
    back.
    """
    patience = MEETING.total_seconds()
    if own:
        word = uuid.uuid4().hex
        store.set(f"hello/{own}", word)
        try:
            name = store.get(f"answer/{word}").decode()
        except RuntimeError:  # the store's own patience, which is MEETING
            raise BadInput(f"rank 0 of {world} did not answer rank {own} within {patience:.0f} s") from None
        store.set(f"heard/{name}/{own}", "")
        return name
    name, until = uuid.uuid4().hex, time.monotonic() + patience
    waiting = set(range(1, world))
    while waiting:
        if time.monotonic() > until:
            raise BadInput(f"ranks {sorted(waiting)} of {world} did not come within {patience:.0f} s")
        for other in waiting:
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(0.01)
        waiting = {other for other in waiting if not store.check([f"heard/{name}/{other}"])}
    return name


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
    return cast(A, total(torch.tensor(value, dtype=torch.float64)).item())


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
