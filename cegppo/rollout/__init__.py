"""Samplers: prompts in, responses with the log-probabilities of their tokens out. What the engines
have in common."""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from ..types import Job, Prompt, Rollout

if TYPE_CHECKING:
    from ..model.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """The rules that responses are drawn by."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    max_tokens: int = 64
    statistics: bool = False  # each token's entropy and the like, too, where the engine has them


class Sampler:
    """An engine with the rules it samples by; it fills in `draw` and `load`.

    A response depends on the weights, the rules and (step, prompt id, index) alone, however the
    work is batched.
    """

    rules: Sampling
    identity: list[Any]  # what the samples depend on besides weights and rules

    def load(self, policy: "Policy") -> None:
        """Hand over the weights of `policy`. Every rank takes part."""
        raise NotImplementedError

    def but(self, **rules: Any) -> Self:
        """A sampler of the same engine and weights with other rules."""
        made = copy.copy(self)
        made.rules = replace(self.rules, **rules)
        return made

    def sample(self, prompts: list[Prompt], n: int, step: int, first: int = 0) -> list[Rollout]:
        """`n` responses to each prompt: prompt by prompt, index first … first + n − 1.

        A prompt that is sampled again in a step draws anew from where it left off with `first`.
        """
        return self.draw([(prompt, first + i) for prompt in prompts for i in range(n)], step)

    def draw(self, jobs: list[Job], step: int) -> list[Rollout]:
        """A response to each (prompt, index), in order."""
        raise NotImplementedError
