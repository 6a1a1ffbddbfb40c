"""A sampler whose prompts are divided among the ranks."""

from itertools import groupby, islice
from typing import Any

from ..config import RolloutConfig
from ..model.policy import Policy
from ..ranks import divided
from ..types import Job, Prompt, Rollout
from . import Sampler, Sampling, vllm
from .hf import HFSampler


class DividedSampler:
    """Each rank has its own `sampler` and answers its part of the prompts; every rank gets all
    responses."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    @property
    def identity(self) -> list[Any]:
        return self.sampler.identity

    @property
    def rules(self) -> Sampling:
        return self.sampler.rules

    def but(self, **rules: Any) -> "DividedSampler":
        """The same with other sampling rules."""
        return DividedSampler(self.sampler.but(**rules))

    def load(self, policy: Policy) -> None:
        self.sampler.load(policy)

    def sample(self, prompts: list[Prompt], n: int, step: int, first: int = 0) -> list[Rollout]:
        """`n` responses to each prompt: prompt by prompt, index first … first + n − 1."""
        return self.draw([(prompt, first + i) for prompt in prompts for i in range(n)], step)

    def draw(self, jobs: list[Job], step: int) -> list[Rollout]:
        """A response to each (prompt, index), in order. Neighbours of one prompt stay on one rank,
        which reads the prompt once."""
        parts = [list(part) for _, part in groupby(jobs, key=lambda job: job[0].id)]

        def drawn(mine: list[list[Job]]) -> list[list[Rollout]]:
            rollouts = iter(self.sampler.draw([job for part in mine for job in part], step))
            return [list(islice(rollouts, len(part))) for part in mine]

        return [rollout for part in divided(drawn, parts) for rollout in part]


def start(policy: Policy, r: RolloutConfig, seed: int, longest: int) -> DividedSampler:
    """The sampler of training rollouts. `longest`: the most tokens that a prompt and its response
    may have together, in training or evaluation."""
    rules = Sampling(seed, r.temperature, r.top_p, r.top_k, r.max_tokens)
    if r.engine == "hf":
        return DividedSampler(HFSampler(policy, rules))
    return DividedSampler(vllm.VLLMSampler(policy, rules, stop=r.stop, longest=longest, settings=r.vllm))
