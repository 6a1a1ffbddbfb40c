"""What one step samples: prompts, rollouts and scores, in groups."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import advantage
from ..config import RolloutConfig
from ..explore import Explorer
from ..problems.data import PromptStream
from ..types import Group, Rollout, Score


@dataclass(frozen=True)
class Collected:
    """What one step sampled, and the part of it that trains."""

    groups: list[Group]  # everything sampled, but for what a rule of exploration asked for on top
    trained: list[Group]
    constant_groups: int

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group.rollouts]

    @property
    def scores(self) -> list[Score]:
        return [score for group in self.groups for score in group.scores]


@dataclass(frozen=True)
class Collector:
    """Prompts from a stream, responses from a rule of exploration, scores from a grader."""

    stream: PromptStream
    explorer: Explorer
    score: Callable[[list[Rollout], int], list[Score]]  # (rollouts, step)
    settings: RolloutConfig
    prompts_per_step: int
    group_size: int

    def __call__(self, step: int) -> Collected:
        """One step's groups; dropped and refilled as `rollout.drop_constant_groups` says."""
        r, n = self.settings, self.group_size
        groups: list[Group] = []
        trained: list[Group] = []
        constant_groups = 0
        drops = r.drop_constant_groups != "no"
        for _ in range(1 + (r.max_refills if r.drop_constant_groups == "refill" else 0)):
            prompts = self.stream.take(r.prompts_per_round or self.prompts_per_step)
            rollouts = self.explorer.sample(prompts, n, step)
            scores = self.score(rollouts, step)
            for p, prompt in enumerate(prompts):
                mine = slice(p * n, (p + 1) * n)
                group = Group(prompt, tuple(rollouts[mine]), tuple(scores[mine]))
                # DAPO drops groups that are all right or all wrong; a penalty for length does not
                # make such a group teach anything.
                constant = bool(advantage.constant_groups(np.array([s.graded for s in group.scores])))
                constant_groups += constant
                groups.append(group)
                if not (drops and constant) and len(trained) < self.prompts_per_step:
                    trained.append(group)
            if len(trained) == self.prompts_per_step:
                break
        return Collected(groups, self.explorer.chosen(trained, step), constant_groups)
