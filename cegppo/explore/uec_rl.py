"""UEC-RL: prompts that nobody solved are sampled again at a higher temperature; what teaches little
is left out; what taught much is kept and trained on again.

    hard      every response of the group failed, so that every advantage is 0
    again     `retries` responses more to each hard prompt at `temperature`, a group of their own
    kept      of the step's own responses those with |A| ≥ `keep`, of the others those with
              A ≥ `keep_retried`; of both none that was cut at the token limit and has A > 0
    replay    responses with A > `replay_least` go to a buffer that holds the newest `replay_size`
              steps' worth; every `replay_every` steps, once there is a step's worth, whole steps'
              worths of it train again, after the step's own

Ratio. Own responses: against the policy that starts the step. Hotter ones: with `ratio: sampler`
against that policy at `temperature`, which is what they were sampled from; with `ratio: policy`
against it at the training temperature, as if it had sampled them. Replayed ones: against what they
were when they first trained. Advantages: a group's own, made before anything is left out; replayed
responses keep theirs.

With `retries`, `keep` and `replay_every` 0 and `drop_truncated` off it is the plain loop. With
`keep` alone barely above 0 it is `rollout.drop_constant_groups: drop` for two-valued rewards.

Source: arXiv 2604.14646, by the authors' code of its predecessor EFRame (arXiv 2506.22200).
docs/methods.md says where its copies differ and what is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..types import ORIGINS, Group, Prompt, Rollout, Score, TokenBatch, Verdict, knob
from . import Explorer, Run, tokens, under_policy


@dataclass(frozen=True)
class Params:
    retries: int = knob(20, "more responses to a prompt that nobody solved; 0: none", least=0)
    temperature: float = knob(1.2, "at which they are sampled", above=0)
    ratio: Literal["sampler", "policy"] = knob(
        "sampler", "their ratio is against the policy at that temperature | at the one that trains"
    )
    keep: float = knob(0.05, "least |A| of the step's own responses that train", least=0)
    keep_retried: float = knob(0.5, "least A of the responses at that temperature that train", least=0)
    drop_truncated: bool = knob(True, "leave out what was cut at the token limit and has A > 0")
    replay_every: int = knob(5, "steps between replays; 0: none", least=0)
    replay_least: float = knob(1.0, "A above which a response goes to the buffer", least=0)
    replay_size: float = knob(2.0, "responses that the buffer holds, in steps' worths", least=1)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["rollout.drop_constant_groups"] != "no":
        return "rollout.drop_constant_groups", "must be no with explore.name=uec_rl, which has filters of its own"
    if p.retries == 1:
        return "explore.retries", "must be 0 (off) or at least 2, a group"
    if p.retries and p.ratio == "sampler" and flat["rollout.engine"] == "vllm":
        return "explore.ratio", "must be policy with rollout.engine=vllm, which reports one temperature's numbers"
    return None


class Buffer:
    """Responses that are trained on again: the newest `size`, oldest first."""

    def __init__(self, size: int):
        self.size = size
        self.kept: list[tuple[Rollout, Score, float]] = []  # with its advantage

    def add(self, found: list[tuple[Rollout, Score, float]]) -> None:
        self.kept = [*self.kept, *found][-self.size :]

    def state_dict(self) -> dict[str, Tensor]:
        """Tokens and old log-probabilities one after the other, and what there is in words."""
        said = [
            {
                "prompt": [r.prompt.id, r.prompt.source, r.prompt.text, list(r.prompt.token_ids), r.prompt.answer],
                "index": r.index, "length": len(r.token_ids), "finish": r.finish, "text": r.text,
                "score": [s.reward, s.verdict.value, s.graded], "advantage": advantage,
            }
            for r, s, advantage in self.kept
        ]  # fmt: skip
        old = [logprob for r, *_ in self.kept for logprob in r.old_logprobs or ()]
        return {
            "token": torch.tensor([token for r, *_ in self.kept for token in r.token_ids], dtype=torch.int32),
            "old_logprob": torch.tensor(old, dtype=torch.float32),
            "said": torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        token_ids, old, place = state["token"].tolist(), state["old_logprob"].tolist(), 0
        self.kept = []
        for row in json.loads(bytes(state["said"].tolist())):
            name, source, text, ids, answer = row["prompt"]
            mine = slice(place, place + row["length"])
            place += row["length"]
            prompt = Prompt(name, source, text, tuple(ids), answer)
            rollout = replayed(
                prompt, row["index"], tuple(token_ids[mine]), tuple(old[mine]), row["finish"], row["text"]
            )
            reward, verdict, graded = row["score"]
            self.kept.append((rollout, Score(reward, Verdict(verdict), graded), row["advantage"]))


def replayed(
    prompt: Prompt, index: int, token_ids: tuple[int, ...], old: tuple[float, ...], finish: str, text: str
) -> Rollout:
    """A response as it trains again: against the log-probabilities that its ratio was against."""
    return Rollout(prompt, index, token_ids, (), finish, text, "replay", old)


class Rule(Explorer):
    p: Params

    def __init__(self, p: Params, run: Run):
        super().__init__(p, run)
        self.buffer = Buffer(round(p.replay_size * run.rows))
        self.counts: dict[str, float] = {}

    def chosen(self, groups: list[Group], step: int) -> list[Group]:
        p = self.p
        hard = [group for group in groups if all(score.graded <= self.run.values[0] for score in group.scores)]
        again = self.again([group.prompt for group in hard], p.retries, step, p.temperature) if p.retries else []
        if p.ratio == "policy":
            again = [under_policy(group) for group in again]
        kept = [self._kept(group, np.abs(self.advantages(group)) >= p.keep) for group in groups]
        retried = [self._kept(group, self.advantages(group) >= p.keep_retried) for group in again]
        due = p.replay_every > 0 and (step + 1) % p.replay_every == 0
        replays = self._replays(step) if due else []
        self.counts = {
            "hard": len(hard) / len(groups),
            "retried": float(sum(map(len, again))),
            "retried_trained": float(sum(map(len, retried))),
            "solved": float(sum(any(s.graded > self.run.values[0] for s in group.scores) for group in again)),
            "kept": sum(map(len, kept)) / sum(map(len, groups)),
            "replayed": float(sum(map(len, replays))),
            "tokens": tokens(again),
        }
        return [group for group in (*retried, *kept, *replays) if len(group)]

    def _kept(self, group: Group, wanted_G: np.ndarray) -> Group:
        advantage_G = self.advantages(group)
        if self.p.drop_truncated:
            cut_G = np.array([rollout.finish == "length" for rollout in group.rollouts])
            wanted_G = wanted_G & ~(cut_G & (advantage_G > 0))
        return group.only(np.flatnonzero(wanted_G).tolist(), advantage_G.tolist())

    def _replays(self, step: int) -> list[Group]:
        """Whole steps' worths of the buffer, chosen at random, in the buffer's order; each response
        a group of its own, which its advantage is not made of."""
        kept = self.buffer.kept
        count = len(kept) // self.run.rows * self.run.rows
        places = np.random.default_rng([self.run.seed, step, 2]).choice(len(kept), size=count, replace=False)
        chosen = [kept[place] for place in np.sort(places)]
        return [Group(r.prompt, (r,), (score,), (advantage,)) for r, score, advantage in chosen]

    def learn(self, groups: list[Group], x: TokenBatch) -> None:
        if not self.p.replay_every:
            return
        rows = [(rollout, score) for group in groups for rollout, score in zip(group.rollouts, group.scores)]
        advantage_B, old = x.advantage_BT[:, 0].tolist(), x.old_logprob_BT.tolist()
        first_time = (x.origin_B != ORIGINS.index("replay")).tolist()
        found = []
        for b, (r, score) in enumerate(rows):
            if first_time[b] and advantage_B[b] > self.p.replay_least:
                own = tuple(old[b][: len(r.token_ids)])
                found.append((replayed(r.prompt, r.index, r.token_ids, own, r.finish, r.text), score, advantage_B[b]))
        self.buffer.add(found)

    def facts(self) -> dict[str, float]:
        return self.counts | {"buffer": float(len(self.buffer.kept))}

    def large(self) -> dict[str, Any]:
        return {"replay": self.buffer}
