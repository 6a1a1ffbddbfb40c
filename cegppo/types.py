"""The values that flow through the house, from a prompt to a batch of tokens.

A name ends in its shape, by these letters, everywhere in the package:
B rows (one response each), T response tokens, S tokens of prompt and response together, N tokens in
one line, V vocabulary, H width of hidden states, P prompts, G responses of a group, C token
classes. A small letter (`logits_nv`) is a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:  # grading saved texts and saying --help need no torch, whose import takes seconds
    from torch import Tensor


# exp(20) is 5e8: a ratio beyond it carries no information, and its float32 square would overflow.
MAX_LOG_RATIO = 20.0


# Who wrote a response: the policy that starts the step, at the training temperature; an earlier
# step, by a buffer; a file or a solver; that same policy at another temperature; other weights.
Origin = Literal["policy", "replay", "teacher", "tempered", "checkpoint"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
Value = TypeVar("Value")


class BadInput(Exception):
    """What the user gave cannot be used. Printed as one line; exit code 2."""

    shared = False  # whether every rank has it (ranks.together)

    def __str__(self) -> str:
        """In one line, whatever names and values of the user's it quotes."""
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())


def said(error: BaseException, most: int = 200) -> str:
    """The first line of what an exception says, or its name where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:most]


def listed(names: Iterable[Any], most: int = 300) -> str:
    """Names that a file gives, for a line of text; one that would not show as Python writes it."""
    text = ", ".join(str(name) if str(name).strip() else repr(name) for name in names)
    return text if len(text) <= most else f"{text[:most]}…"


def knob(
    default: Value,
    doc: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Value:
    """A dataclass field with its meaning and its limits beside it: `least` and `most` may be
    reached, `above` and `below` may not. A list or a mapping is copied for each instance."""
    limits = {"least": least, "above": above, "most": most, "below": below}
    metadata = {"doc": doc} | {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def present(value: Value | None) -> Value:
    """`value` that may be absent for others and not for this caller: an optional field of its
    batch, a pipe it asked for."""
    assert value is not None
    return value


class Verdict(StrEnum):
    """What a grader found. Only `correct` and `wrong` are statements about the answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # finished without a final answer
    TRUNCATED = "truncated"  # hit the token limit before a final answer
    GRADER_ERROR = "grader_error"  # the grader failed; counted, never passed off as wrong


# Where a response has its final answer (problems/reward.py).
AnswerForm = Literal["boxed", "last_line", "last_number"]


@dataclass(frozen=True)
class Prompt:
    """One problem, as the model sees it and as the grader needs it."""

    id: str  # unique within a data source: "<source>/<index>"
    source: str  # the name of the data source or benchmark it came from
    text: str
    token_ids: tuple[int, ...]
    answer: str  # the reference answer
    task: str | None = None  # reasoning-gym task whose `score_answer` grades it; None: compared with `answer`
    entry: dict[str, Any] = field(default_factory=dict, compare=False)  # of the task, or the columns of the row
    verifier: str = "answer"  # who says whether a response is right: Source.verifier
    final: AnswerForm = "boxed"  # where a response to it has its final answer


Job = tuple[Prompt, int]  # a response to be sampled: its prompt, and its index among the responses to it


@dataclass(frozen=True)
class Rollout:
    """One sampled response."""

    prompt: Prompt
    index: int  # position in its group, 0 … G-1
    token_ids: tuple[int, ...]  # response tokens, the end-of-sequence token included when it was sampled
    logprobs: tuple[float, ...]  # the sampler's own, of each sampled token, at the sampling temperature, in nats
    finish: str  # "stop" or "length"
    text: str
    origin: Origin = "policy"  # who wrote it
    # Its log-probabilities under the policy that the ratio is against, one a token, where that is
    # not the policy that starts the step: what came from elsewhere keeps its own.
    old_logprobs: tuple[float, ...] | None = None
    # (entropy, Σπ², Σπ² log π) at each token, of a sampler that computes as the trainer does.
    statistics: tuple[tuple[float, float, float], ...] | None = None

    @property
    def spoken(self) -> str:
        """The text without the thinking before `</think>`; nothing where the thinking has no
        end."""
        _, end, rest = self.text.rpartition("</think>")
        return rest if end or not rest.lstrip().startswith("<think>") else ""


@dataclass(frozen=True)
class Score:
    """What a response earned. `reward` trains; `verdict` is the truth and is what accuracy
    counts."""

    reward: float
    verdict: Verdict
    graded: float  # the reward before any penalty for length: what tells a constant group


@dataclass(frozen=True)
class Group:
    """The responses to one prompt that are compared with each other, and what they earned."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]  # one a rollout
    # One a rollout, where they are not to be made of these scores: of responses that are left of a
    # larger group, or that bring what they earned in their own time.
    advantages: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.rollouts) == len(self.scores), "a group has a score for each rollout"
        assert self.advantages is None or len(self.advantages) == len(self), "and an advantage, where it has any"

    def only(self, places: Sequence[int], advantage_G: Sequence[float]) -> Group:
        """The responses at `places`, with their advantages among those of the whole group."""
        pick = lambda values: tuple(values[place] for place in places)
        return Group(self.prompt, pick(self.rollouts), pick(self.scores), tuple(float(a) for a in pick(advantage_G)))

    def __len__(self) -> int:
        return len(self.rollouts)


@dataclass(frozen=True)
class TokenBatch:
    """Response tokens of B rows, right-padded to T. What a token loss reads.

    All fields without a note are float tensors of shape [B, T]; log-probabilities are in nats, fp32
    (fp64 in tests), at the sampling temperature. The first five are enough to evaluate a loss that
    does not say it needs more.
    """

    logprob_BT: Tensor  # log π_θ of the sampled token; carries the gradient
    old_logprob_BT: Tensor  # the same under the policy that starts the step's updates; no gradient
    advantage_BT: Tensor
    mask_BT: Tensor  # 1.0 on response tokens, 0.0 elsewhere
    entropy_BT: Tensor  # full-vocabulary entropy of π_θ(·|s_t); a gradient only when an entropy term is on

    sum_p2_BT: Tensor | None = None  # Σ_x π(x)²
    sum_p2_logp_BT: Tensor | None = None  # Σ_x π(x)² log π(x)
    old_entropy_BT: Tensor | None = None  # entropy before the step's first update
    # Under the old policy without its tail, for a loss that says PROXY; `head.GONE` in the tail.
    proxy_logprob_BT: Tensor | None = None
    sampler_logprob_BT: Tensor | None = None  # the sampler's own log-probability of its token
    checked_B: Tensor | None = None  # [B] 1.0 where the trainer computed the old log-probabilities itself; None: all
    ref_logprob_BT: Tensor | None = None  # under the frozen reference policy
    old_value_BT: Tensor | None = None  # the critic's V(s_t) before the step's updates
    return_BT: Tensor | None = None  # the critic's regression target
    uniform_BT: Tensor | None = None  # seeded draws in [0, 1), for a loss that says DRAWS = True
    row_B: Tensor | None = None  # [B] int64, place among the responses that train in this step
    group_B: Tensor | None = None  # [B] int64, index of the prompt within the step
    reward_B: Tensor | None = None  # [B]
    correct_B: Tensor | None = None  # [B] 1.0 where the verdict is `correct`
    origin_B: Tensor | None = None  # [B] int64, index into ORIGINS
    sequence_BS: Tensor | None = None  # [B, S] int64, prompt then response, right-padded
    prompt_len_B: Tensor | None = None  # [B] int64
    bin_B: Tensor | None = None  # [B] int64, rows of one number lie one after the other in a pass (model/bins.py)

    @property
    def log_ratio_BT(self) -> Tensor:
        return self.logprob_BT - self.old_logprob_BT

    @property
    def ratio_BT(self) -> Tensor:
        """π_θ / π_old of the sampled token; the log-ratio is capped at `MAX_LOG_RATIO` so that
        it cannot overflow."""
        return self.log_ratio_BT.clamp(max=MAX_LOG_RATIO).exp()

    @property
    def length_B(self) -> Tensor:
        """[B] response tokens in each row."""
        return self.mask_BT.sum(-1)

    def __len__(self) -> int:
        return self.mask_BT.shape[0]

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index` ([n] int64), cut to the longest response and sequence among them."""
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        picked = {name: None if value is None else value[index] for name, value in picked.items()}
        longest = max(1, int(picked["mask_BT"].sum(-1).max()))
        if picked["sequence_BS"] is not None:
            sequence_len = int((picked["prompt_len_B"] + picked["mask_BT"].sum(-1).long()).max())
            picked["sequence_BS"] = picked["sequence_BS"][:, :sequence_len]
        for name, value in picked.items():
            if name.endswith("_BT") and value is not None:
                picked[name] = value[:, :longest]
        return TokenBatch(**picked)

    def split(self, parts: int) -> list[TokenBatch]:
        """`parts` mini-batches of consecutive rows (so whole groups stay together when the sizes
        allow it)."""
        import torch

        edges = [len(self) * i // parts for i in range(parts + 1)]
        return [self.rows(torch.arange(a, b)) for a, b in zip(edges, edges[1:]) if b > a]

    def but(self, **changes: Any) -> TokenBatch:
        """A copy with some fields replaced."""
        return replace(self, **changes)
