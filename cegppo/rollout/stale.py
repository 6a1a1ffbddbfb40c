"""Older weights to sample from: `rollout.staleness: k`.

At step s (the first is 0) responses come from θ_{s−k}, the weights that began step s − k; before
there are k of them from the oldest there is, θ_0. In: the policy, once a step. Out: the same policy
with the older weights in it, for as long as it samples. The copies lie in host memory, of what
trains alone; each rank keeps its own shards. A copy is exact, so what the policy holds afterwards
is bit for bit what it held before.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..model import parallel
from ..model.policy import Policy


class OlderWeights:
    """The trained weights that began each of the last `steps` steps, oldest first."""

    def __init__(self, policy: Policy, steps: int):
        self.policy, self.steps = policy, steps
        self.kept: list[list[Tensor]] = []  # a copy: one host tensor per trained parameter (this rank's shard)

    @contextmanager
    def oldest(self) -> Iterator[int]:
        """The policy holds the oldest weights inside; yields their age in steps (0: its own). Once
        a step: at the end the step's own weights join the copies."""
        if self.steps == 0:
            yield 0
            return
        own = [parallel.local(p.detach()).to("cpu", copy=True) for p in self.policy.trained()]
        try:
            if self.kept:
                self._put(self.kept[0])
            yield len(self.kept)
        finally:
            if self.kept:
                self._put(own)
        self.kept = [*self.kept, own][-self.steps :]

    @torch.no_grad()
    def _put(self, copy: list[Tensor]) -> None:
        for p, value in zip(self.policy.trained(), copy, strict=True):
            parallel.local(p.detach()).copy_(value)

    def parts(self) -> dict[str, "Copy"]:
        """What a checkpoint holds, one file per age: `older1` began the last step."""
        return {f"older{age}": Copy(self, age) for age in range(1, self.steps + 1)}


class Copy:
    """The copy that is `age` steps old, for a checkpoint (`checkpoint.Stored`): named tensors, none
    where there is none yet. Restored from the youngest to the oldest."""

    def __init__(self, older: OlderWeights, age: int):
        self.older, self.age = older, age

    def _names(self) -> list[str]:
        return [name for name, p in self.older.policy.model.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        if self.age > len(self.older.kept):
            return {}
        copy = zip(self.older.kept[-self.age], self.older.policy.trained())
        return dict(zip(self._names(), (parallel.sharded(value, p) for value, p in copy), strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.age == 1:
            self.older.kept = []
        if state:
            pairs = zip(self._names(), self.older.policy.trained(), strict=True)
            copy = [parallel.local(parallel.like(state[name], p)).to("cpu", copy=True) for name, p in pairs]
            self.older.kept = [copy, *self.older.kept]
