"""Whom responses may be sampled from besides the policy as it trains: itself at another
temperature, and other weights."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..explore import Behaviour
from ..model.policy import Policy
from ..types import BadInput, Job, Origin, Rollout
from .divided import DividedSampler
from .hf import HFSampler


@dataclass
class Behaviours:
    """Samplers by behaviour, of the same rules but for the temperature."""

    sampler: DividedSampler  # of the policy
    policy: Policy
    read: Callable[[str], Policy]  # the policy in a folder
    statistics: bool = False  # of the policy's own responses, where the engine has them
    others: dict[str, DividedSampler] = field(default_factory=dict)  # of checkpoints, by their folder

    def draw(self, jobs: list[Job], step: int, behaviour: Behaviour) -> list[Rollout]:
        """A response to each (prompt, index), in order; of another behaviour than the policy's with
        its own log-probabilities as the old ones."""
        sampler = self.other(behaviour.checkpoint) if behaviour.checkpoint else self.sampler
        usual = sampler.rules.temperature
        heat = usual if behaviour.temperature is None else behaviour.temperature
        if sampler is self.sampler and heat == usual:
            return sampler.but(statistics=self.statistics).draw(jobs, step)
        rollouts = (sampler if heat == usual else sampler.but(temperature=heat)).draw(jobs, step)
        origin: Origin = "checkpoint" if behaviour.checkpoint else "tempered"
        # An engine that reports no log-probabilities at this temperature leaves the policy's.
        return [replace(r, origin=origin, old_logprobs=r.logprobs or None) for r in rollouts]

    def other(self, folder: str) -> DividedSampler:
        """The sampler of the weights in `folder`, which are read once. Raises BadInput."""
        if folder not in self.others:
            policy = self.read(folder)
            if policy.tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
                raise BadInput(f"explore.samplers: {folder} has another vocabulary than the model that trains")
            policy.model.requires_grad_(False)
            self.others[folder] = DividedSampler(HFSampler(policy, self.sampler.rules))
        return self.others[folder]
