"""Samplers: prompts in, responses with the log-probabilities of their tokens out. What the
engines have in common."""

import copy
from typing import Self

from ..types import Prompt, Rollout


class Sampler:
    """An engine with its sampling rules as attributes (seed, temperature, top_p, top_k,
    max_tokens); it fills in `_sample` and `load`."""

    def but(self, **rules: float) -> Self:
        """A sampler of the same engine and weights with other rules."""
        made = copy.copy(self)
        for name, value in rules.items():
            setattr(made, name, value)
        return made

    def sample(self, prompts: list[Prompt], n: int, step: int) -> list[Rollout]:
        """`n` responses to each prompt: prompt by prompt, index 0 … n-1."""
        return self._sample([(prompt, index) for prompt in prompts for index in range(n)], step)

    def sample_index(self, prompts: list[Prompt], index: int, step: int) -> list[Rollout]:
        """Response number `index` to each prompt: the one that `sample` with n > index would
        give."""
        return self._sample([(prompt, index) for prompt in prompts], step)

    def _sample(self, jobs: list[tuple[Prompt, int]], step: int) -> list[Rollout]:
        """A response to each (prompt, index), in order."""
        raise NotImplementedError
