"""Samplers: requests in, responses with the log-probabilities of their tokens out. What the engines
have in common."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Self

from .. import ranks
from ..types import BadInput, Job, Origin, Request, Rollout

if TYPE_CHECKING:
    from ..model.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """The parameters that responses are sampled with."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    max_tokens: int = 64
    stop: tuple[str, ...] = ()  # a response ends with the token that completes one of these
    statistics: bool = False  # each token's entropy and the like, too, where the engine has them


class Sampler:
    """An engine with the parameters it samples with; it fills in `draw` and `load`.

    A response depends on the weights, the parameters and (step, prompt id, index) alone, however
    the work is batched and divided.
    """

    identity: list[Any]  # what the samples depend on besides weights and parameters
    read: Callable[[str], "Policy"] | None = None  # the policy in a folder, for requests that name one

    def __init__(self, policy: "Policy", rules: Sampling):
        self.policy, self.rules = policy, rules
        self.frozen: dict[str, Self] = {}  # samplers of other weights, by their folder

    def load(self, policy: "Policy") -> None:
        """Hand over the weights of `policy`. Every rank takes part."""
        self.policy = policy

    def draw(self, jobs: list[Job], step: int) -> list[Rollout]:
        """A response to each (prompt, index), in order, on this rank."""
        raise NotImplementedError

    def but(self, **rules: Any) -> Self:
        """A sampler of the same engine and weights with other parameters."""
        made = copy.copy(self)
        made.rules = replace(self.rules, **rules)
        return made

    def sample(self, requests: list[Request], step: int) -> list[Rollout]:
        """A response to each request, in order: every rank samples its part, and gets all of them.

        Those from another temperature or other weights bring their own log-probabilities as the
        old ones; an engine that reports none there leaves the policy's.
        """
        made: dict[int, Rollout] = {}
        usual = self.rules.temperature
        source = lambda r: (r.checkpoint, usual if r.temperature is None else r.temperature)
        for checkpoint, temperature in dict.fromkeys(map(source, requests)):
            places = [place for place, r in enumerate(requests) if source(r) == (checkpoint, temperature)]
            jobs = [(requests[place].prompt, requests[place].index) for place in places]
            if not checkpoint and temperature == usual:
                made |= zip(places, self._divided(jobs, step))
                continue
            engine = self.of_checkpoint(checkpoint) if checkpoint else self
            engine = engine.but(**{**vars(self.rules), "temperature": temperature, "statistics": False})
            origin: Origin = "checkpoint" if checkpoint else "tempered"
            found = [replace(r, origin=origin, old_logprobs=r.logprobs or None) for r in engine._divided(jobs, step)]
            made |= zip(places, found)
        return [made[place] for place in range(len(requests))]

    def _divided(self, jobs: list[Job], step: int) -> list[Rollout]:
        """`draw`, divided among the ranks. Neighbours of one prompt stay on one rank, which reads
        the prompt once."""
        parts = [list(part) for _, part in groupby(jobs, key=lambda job: job[0].id)]

        def drawn(own: list[list[Job]]) -> list[list[Rollout]]:
            rollouts = iter(self.draw([job for part in own for job in part], step))
            return [list(islice(rollouts, len(part))) for part in own]

        return [rollout for part in ranks.divided(drawn, parts) for rollout in part]

    def of_checkpoint(self, folder: str) -> Self:
        """The sampler of the weights in `folder`, which are read once. Raises BadInput."""
        if folder not in self.frozen:
            assert self.read is not None, "a sampler that training did not start reads no other weights"
            policy = self.read(folder)
            if policy.tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
                raise BadInput(f"explore.samplers: {folder} has another vocabulary than the model that trains")
            policy.model.requires_grad_(False)
            made = copy.copy(self)
            made.policy = policy
            self.frozen[folder] = made
        return self.frozen[folder]

    def check_lengths(self, jobs: list[Job], longest: int | None) -> None:
        """Raises BadInput where a prompt and a response exceed `longest` tokens (None: any)."""
        for prompt, _ in jobs:
            if longest is not None and len(prompt.token_ids) + self.rules.max_tokens > longest:
                raise BadInput(
                    f"{prompt.id} has {len(prompt.token_ids)} tokens; with {self.rules.max_tokens} more it exceeds"
                    f" {longest}, the least of the model's positions and data.max_prompt_tokens + max_tokens"
                )
