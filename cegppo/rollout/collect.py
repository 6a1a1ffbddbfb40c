"""What one step samples: prompts, rollouts, scores."""

from dataclasses import dataclass

from ..types import Rollout, Score


@dataclass
class Collected:
    """What one step sampled, and the part of it that trains."""

    rollouts: list[Rollout]  # everything sampled
    scores: list[Score]
    trained: list[int]  # places of what trains, whole groups
    groups: int  # sampled
    constant_groups: int
