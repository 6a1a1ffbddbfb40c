"""A sampler whose prompts are divided among the ranks."""

from typing import Any

from ..config import RolloutConfig
from ..model.policy import Policy
from ..ranks import divided
from ..types import Prompt, Rollout
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

        def groups(part: list[Prompt]) -> list[list[Rollout]]:
            rollouts = self.sampler.sample(part, n, step, first)
            return [rollouts[i * n : (i + 1) * n] for i in range(len(part))]

        return [rollout for group in divided(groups, prompts) for rollout in group]


def start(policy: Policy, r: RolloutConfig, seed: int, longest: int) -> DividedSampler:
    """The sampler of training rollouts. `longest`: the most tokens that a prompt and its response
    may have together, in training or evaluation."""
    rules = Sampling(seed, r.temperature, r.top_p, r.top_k, r.max_tokens)
    if r.engine == "hf":
        return DividedSampler(HFSampler(policy, rules))
    return DividedSampler(vllm.VLLMSampler(policy, rules, stop=r.stop, longest=longest, settings=r.vllm))
