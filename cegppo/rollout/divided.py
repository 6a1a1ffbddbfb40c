"""A sampler whose prompts are divided among the ranks."""

from typing import Any

from ..config import Config
from ..model.policy import Policy
from ..ranks import divided
from . import vllm
from .hf import HFSampler


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


def sampler(policy: Policy, config: Config) -> DividedSampler:
    """The sampler of training rollouts."""
    r = config.rollout
    rules = dict(seed=config.seed, temperature=r.temperature, top_p=r.top_p, top_k=r.top_k, max_tokens=r.max_tokens)
    if r.engine == "hf":
        return DividedSampler(HFSampler(policy, **rules))
    limits = [r.max_tokens, config.eval.max_tokens or 0, *(source.max_tokens or 0 for source in config.eval.benchmarks)]
    longest = config.data.max_prompt_tokens + max(limits)
    return DividedSampler(vllm.VLLMSampler(policy, **rules, stop=r.stop, longest=longest, settings=r.vllm))
