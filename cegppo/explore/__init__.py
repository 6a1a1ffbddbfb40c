"""One file, one rule for what a step samples and which responses train. The file's name is the
registry, as in `cegppo.losses`.

A module defines
* `Params`, a frozen dataclass of its knobs with their limits (`types.knob`);
* `Rule(p, run)`, an `Explorer`;
* where values have to go together, `problem(p, flat)`: (key, what it must be) or None, `flat` being
  the configuration by dotted keys.

**What the ratio is against.** A response's old log-probabilities are the denominator of its ratio.
Those of the policy that starts the step are the rule. A response that was sampled from anything
else (`types.Request`) comes with its own, under what it was sampled from: the importance ratio that
is right for it. A rule that wants another denominator takes them away and says so in its docstring.
"""

import importlib
import pkgutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..types import BadInput, Group, Prompt, Request, Rollout, Score, TokenBatch, requests

NONE = "none"  # what explore.name says where there is none


@dataclass(frozen=True)
class Solution:
    """A teacher's response: tokens with their end, and their log-probabilities under the teacher
    where they are known, in nats."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None


class Samples(Protocol):
    """What samples (rollout.Sampler)."""

    def sample(self, requests: list[Request], step: int) -> list[Rollout]:
        """A response to each request, in order; from another temperature or other weights with its
        own log-probabilities as the old ones."""

    def of_checkpoint(self, folder: str) -> Any:
        """Raises BadInput when nothing can be sampled from the weights in `folder`."""


class Teaches(Protocol):
    """Who has solutions (problems/teachers.py)."""

    def solutions(self, prompt: Prompt) -> list[Solution]:
        """What there is to say to a prompt; may be nothing."""


@dataclass(frozen=True)
class Run:
    """What a rule may use of the run it is in. Every rank uses the same and gets the same."""

    seed: int
    group_size: int
    rows: int  # responses of a full step
    values: tuple[float, float]  # rewards of a failed and of a correct response
    sampler: Samples
    score: Callable[[list[Rollout], int], list[Score]]  # of rollouts in a step
    advantage: Callable[[np.ndarray], np.ndarray]  # of a group's rewards
    teacher: Teaches | None = None  # whom `explore.teacher` names


class Explorer:
    """What a step samples and trains on. As it stands here: the policy's own responses, all of
    them. A rule changes what it has to.

    Called on every rank with the same, in this order: `sample`, `chosen`, `rewards`, `learn`,
    `facts`, `observe`.
    """

    def __init__(self, p: Any, run: Run):
        self.p, self.run = p, run

    def sample(self, prompts: list[Prompt], n: int, step: int) -> list[Rollout]:
        """`n` responses to each prompt, prompt by prompt, index 0 … n − 1: the step's own."""
        return self.run.sampler.sample(requests(prompts, n), step)

    def chosen(self, groups: list[Group], step: int) -> list[Group]:
        """What trains, of a step's groups and whatever else."""
        return groups

    def rewards(self, groups: list[Group], x: TokenBatch) -> list[np.ndarray]:
        """The rewards that advantages are made of. `x` has the responses of `groups`, in order,
        with the policy's statistics before the updates and no advantages yet."""
        return [np.array([score.reward for score in group.scores]) for group in groups]

    def learn(self, groups: list[Group], x: TokenBatch) -> None:
        """What trains in this step, advantages included."""

    def facts(self) -> dict[str, float]:
        """Of the step, to be logged as explore/<name>. The same names in every step."""
        return {}

    def observe(self, metrics: dict[str, float]) -> None:
        """The metrics of the step that has just ended, but for times."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""

    def large(self) -> dict[str, Any]:
        """Parts with a file of their own in a checkpoint, by its name (`checkpoint.Stored`)."""
        return {}

    # -- what several rules need

    def again(self, prompts: list[Prompt], n: int, step: int, temperature: float) -> list[Group]:
        """A group of `n` more responses to each prompt, at `temperature`. Their indices leave the
        first `group_size` to the step's own responses and the next to the instrument's probe."""
        asked = [replace(r, temperature=temperature) for r in requests(prompts, n, first=self.run.group_size + 1)]
        rollouts = self.run.sampler.sample(asked, step)
        scores = self.run.score(rollouts, step)
        parts = [slice(g * n, (g + 1) * n) for g in range(len(prompts))]
        return [Group(p, tuple(rollouts[s]), tuple(scores[s])) for p, s in zip(prompts, parts)]

    def advantages(self, group: Group) -> np.ndarray:
        """[G] of a group: those it brings, or those of its rewards."""
        if group.advantages is not None:
            return np.array(group.advantages)
        return self.run.advantage(np.array([score.reward for score in group.scores]))

    def generator(self, step: int, prompt: Prompt, index: int = 0) -> np.random.Generator:
        """Random numbers of a rule's own for a response, the same however the run is cut up."""
        named = zlib.crc32(f"{prompt.id}#{index}".encode())
        return np.random.default_rng([self.run.seed, step, named, 1])


def under_policy(group: Group) -> Group:
    """`group` with the policy that starts the step as the ratio's denominator."""
    return replace(group, rollouts=tuple(replace(rollout, old_logprobs=None) for rollout in group.rollouts))


def tokens(groups: list[Group]) -> float:
    """Response tokens of `groups`."""
    return float(sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts))


def names() -> list[str]:
    """Every rule there is: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module `name`. Raises BadInput when there is none."""
    if name not in names():
        raise BadInput(f"there is no rule of exploration '{name}'; there are: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def explorer(values: Mapping[str, Any], run: Run) -> Explorer:
    """The rule of section `explore` ({name: …, knobs}) in `run`."""
    if values["name"] == NONE:
        return Explorer(None, run)
    module = load(values["name"])
    made: Explorer = module.Rule(module.Params(**{key: v for key, v in values.items() if key != "name"}), run)
    return made
