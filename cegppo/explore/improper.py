"""Improper RL: each response is sampled by one of several base samplers, drawn by a softmax over
them that is learnt from what their responses earn.

    m ~ w = softmax(θ) for each response, θ = 0 at the start
    θ_m ← θ_m + `mixture_lr` · mean_i A_i (1[m_i = m] − w_m)     over the step's responses i

The mixture may earn more than each of its parts, hence the name. The policy is trained on all
responses beside it, as ever.

Base samplers: the policy at a temperature, which moves as the policy does, or the frozen weights of
a checkpoint at one. The source's are all fixed.

Ratio. Of each response: against the sampler that wrote it, m, at its temperature. Given m that is
what its tokens were drawn from.

With one base sampler at the training temperature it is the plain loop. With `mixture_lr` 0 it is a
mixture that does not learn.

Source: arXiv 2102.08201 and 2207.09090, which mix at every time step. Here a whole response is the
action: the bandit form of it. They estimate the gradient by perturbation, or with a critic; here
it is the likelihood ratio's, with the group as its baseline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ..types import BadInput, Group, Prompt, Request, Rollout, TokenBatch, knob
from . import Explorer, Run


@dataclass(frozen=True)
class Params:
    samplers: str = knob("0.8, 1.0, 1.2", "temperatures of the policy, checkpoint folders, or FOLDER@TEMPERATURE")
    mixture_lr: float = knob(1.0, "learning rate of the mixture", least=0)


class Base(NamedTuple):
    """A base sampler: the policy, or the weights in the folder `checkpoint`; at a temperature, or
    the one that the run trains at."""

    temperature: float | None = None
    checkpoint: str = ""


def base_samplers(said: str) -> list[Base]:
    """The base samplers that `explore.samplers` names. Raises BadInput that says what is wrong."""
    made = []
    for item in (part.strip() for part in said.split(",")):
        folder, at, heat = item.rpartition("@")
        temperature = _temperature(heat)
        if temperature is None and at:
            raise BadInput(f"'{item}' does not end in a temperature above 0")
        if temperature is not None and not 0 < temperature < inf:
            raise BadInput(f"'{item}': a temperature is above 0")
        made.append(Base(temperature, folder) if temperature is not None else Base(None, heat))
    if not all(b.temperature is not None or b.checkpoint for b in made):
        raise BadInput("an item is empty")
    if len(set(made)) < len(made):
        raise BadInput("an item is there twice")
    return made


def _temperature(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    try:
        named = base_samplers(p.samplers)
    except BadInput as error:
        return "explore.samplers", f"must be temperatures and folders with commas between: {error}"
    if flat["rollout.engine"] == "vllm" and named != [Base(flat["rollout.temperature"])]:
        return "rollout.engine", "must be hf with explore.name=improper: vllm has one set of weights, one temperature"
    return None


class Rule(Explorer):
    p: Params

    def __init__(self, p: Params, run: Run):
        super().__init__(p, run)
        self.bases = base_samplers(p.samplers)
        for base in self.bases:
            if base.checkpoint:
                run.sampler.of_checkpoint(base.checkpoint)
        self.theta = np.zeros(len(self.bases))
        self.by: dict[tuple[str, int], int] = {}  # which sampler wrote (prompt id, index) in this step
        self.used = self.shares()  # shares of the step under way

    def shares(self) -> np.ndarray:
        """w."""
        e = np.exp(self.theta - self.theta.max())
        return e / e.sum()

    def sample(self, prompts: list[Prompt], n: int, step: int) -> list[Rollout]:
        jobs = [(prompt, i) for prompt in prompts for i in range(n)]
        self.used, edges = self.shares(), self.shares().cumsum()[:-1]
        by = [int(np.searchsorted(edges, self.generator(step, *job).random(), side="right")) for job in jobs]
        self.by |= {(prompt.id, i): m for (prompt, i), m in zip(jobs, by)}
        asked = [Request(prompt, i, *self.bases[m]) for (prompt, i), m in zip(jobs, by)]
        return self.run.sampler.sample(asked, step)

    def learn(self, groups: list[Group], x: TokenBatch) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        picked_BM = np.eye(len(self.theta))[[self.by[r.prompt.id, r.index] for r in rollouts]]
        advantage_B = x.advantage_BT[:, 0].double().cpu().numpy()
        self.theta = self.theta + self.p.mixture_lr * (advantage_B[:, None] * (picked_BM - self.used)).mean(axis=0)

    def facts(self) -> dict[str, float]:
        return {f"share_{m}": float(w) for m, w in enumerate(self.used)}

    def observe(self, metrics: dict[str, float]) -> None:
        self.by = {}

    def state(self) -> dict[str, Any]:
        return {"theta": self.theta.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self.theta = np.array(state["theta"])
