"""The instrument's fixed probe: the responses whose entropy it differentiates and measures."""

from typing import Any

import numpy as np

from ..model.policy import Policy
from ..types import Prompt, Rollout, TokenBatch, requests
from . import Sampler


class Probe:
    """A response of the starting policy to each of the first training prompts, for a whole run."""

    def __init__(self) -> None:
        self.rows: list[list[list[int]]] | None = None  # [prompt tokens, response tokens] of each row

    def sample(self, sampler: Sampler, prompts: list[Prompt], index: int) -> None:
        """Draw the probe, once: response number `index` to each of `prompts`."""
        if self.rows is None:
            rollouts = sampler.but(statistics=False).sample(requests(prompts, 1, first=index), 0)
            self.rows = [[list(r.prompt.token_ids), list(r.token_ids)] for r in rollouts]

    def batch(self, policy: Policy) -> TokenBatch:
        """The probe's tokens. No advantage, no reward."""
        assert self.rows is not None, "the probe was not sampled"
        rollouts = [
            Rollout(Prompt(f"probe/{i}", "probe", "", tuple(p), ""), 0, tuple(a), (0.0,) * len(a), "stop", "")
            for i, (p, a) in enumerate(self.rows)
        ]
        zeros = np.zeros(len(rollouts))
        return policy.collate(rollouts, zeros, zeros, zeros, range(len(rollouts)))

    def state(self) -> Any:
        return self.rows

    def restore(self, state: Any) -> None:
        self.rows = state
