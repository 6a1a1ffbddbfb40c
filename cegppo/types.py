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
from unicodedata import category

if TYPE_CHECKING:  # grading saved texts and saying --help need no torch, whose import takes seconds
    from torch import Tensor


# exp(20) is 5e8: a ratio beyond it carries no information, and its float32 square would overflow.
MAX_LOG_RATIO = 20.0


# Why the difference of log-probabilities is a metric of divergence and no loss term.
NO_K1 = (
    "its gradient is that of log π alone, without the reference: 0 in expectation, so it drives the policy away"
    " instead of back; use k2 or k3 (kl/old_k1 stays a metric)"
)


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
        return printable(super().__str__(), keep="")


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` as a terminal may have it: names and texts of others may hold codes that move its
    cursor, hide lines or turn their direction. Such a character is written as Python writes it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or category(c) == "Zs" else repr(c)[1:-1] for c in text)


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


class Diverged(Exception):
    """A gradient that is not finite, or a sampler that is not the policy; nothing was updated.
    Printed as one line; exit code 1."""


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


@dataclass(frozen=True)
class Request:
    """A response to be sampled."""

    prompt: Prompt
    index: int  # among the responses to its prompt
    temperature: float | None = None  # None: the one that the sampler has
    checkpoint: str = ""  # folder of other weights to sample from; "": the policy's own


def requests(prompts: Iterable[Prompt], n: int, first: int = 0) -> list[Request]:
    """`n` responses to each prompt: prompt by prompt, index first … first + n − 1. A prompt that is
    sampled again in a step draws anew from where it left off with `first`."""
    return [Request(prompt, first + i) for prompt in prompts for i in range(n)]


def thinks_on(prompt: Prompt, text: str) -> bool:
    """Whether the response `text` to `prompt` never left its thinking: it began inside `<think>`,
    which the prompt's own text (a chat template) or the response opened, and `</think>` did not
    come."""
    began = prompt.text.rstrip().endswith("<think>") or text.lstrip().startswith("<think>")
    return began and "</think>" not in text


Job = tuple[Prompt, int]  # of a request, what an engine's random stream is made of


@dataclass(frozen=True)
class Rollout:
    """One sampled response."""

    prompt: Prompt
    index: int  # position in its group, 0 … G-1
    token_ids: tuple[int, ...]  # response tokens, the token that ended it included
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
    def ended_by(self) -> int | None:
        """The token that ended it: one of the model's ends, or the one that completed a stop
        string; None where the token limit cut it."""
        return self.token_ids[-1] if self.finish == "stop" and self.token_ids else None

    @property
    def spoken(self) -> str:
        """The text without the thinking before `</think>`; nothing where the thinking has no
        end."""
        return "" if thinks_on(self.prompt, self.text) else self.text.rpartition("</think>")[2]


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

    @property
    def constant(self) -> bool:
        """Whether all responses earned the same, so that it teaches nothing (DAPO drops such a
        group: all right or all wrong, however long the answers)."""
        return len({score.graded for score in self.scores}) == 1

    def only(self, places: Sequence[int], advantage_G: Sequence[float]) -> Group:
        """The responses at `places`, with their advantages among those of the whole group."""
        pick = lambda values: tuple(values[place] for place in places)
        return Group(self.prompt, pick(self.rollouts), pick(self.scores), tuple(float(a) for a in pick(advantage_G)))

    def __len__(self) -> int:
        return len(self.rollouts)


def filled() -> Any:
    """A field of TokenBatch that is filled in where it is not given."""
    return field(default=None)


@dataclass(frozen=True)
class TokenBatch:
    """Response tokens of B rows, right-padded to T. What a token loss reads.

    Every field is there in every batch, a tensor; of shape [B, T] and float where no note says
    otherwise. Log-probabilities are in nats, fp32 (fp64 in tests), at the sampling temperature. The
    first five are enough to make a batch. Numbers that nobody gave are NaN, and so is all that is
    made of them: a loss says in its NEEDS what else it reads, so that a trainer without it can
    refuse.
    """

    logprob_BT: Tensor  # log π_θ of the sampled token; carries the gradient
    # The same under the policy that starts the step's updates, or under the one that the ratio is
    # against instead (older samples, responses from elsewhere); no gradient.
    old_logprob_BT: Tensor
    advantage_BT: Tensor
    mask_BT: Tensor  # 1.0 on response tokens, 0.0 elsewhere
    entropy_BT: Tensor  # full-vocabulary entropy of π_θ(·|s_t); a gradient only when an entropy term is on

    sum_p2_BT: Tensor = filled()  # Σ_x π(x)²
    sum_p2_logp_BT: Tensor = filled()  # Σ_x π(x)² log π(x)
    old_entropy_BT: Tensor = filled()  # entropy before the step's first update
    # Under the old policy without its tail, for a loss that says PROXY; `head.GONE` in the tail.
    proxy_logprob_BT: Tensor = filled()
    sampler_logprob_BT: Tensor = filled()  # the sampler's own log-probability of its token
    # Under the policy that sampled, as the trainer computes it, where `old_logprob_BT` is not that.
    behaviour_logprob_BT: Tensor = filled()
    ref_logprob_BT: Tensor = filled()  # under the frozen reference policy
    old_value_BT: Tensor = filled()  # the critic's V(s_t) before the step's updates
    return_BT: Tensor = filled()  # the critic's regression target
    uniform_BT: Tensor = filled()  # seeded draws in [0, 1), for a loss that says DRAWS = True
    checked_B: Tensor = filled()  # [B] 1.0 where the trainer computed the old log-probabilities itself; default: all
    row_B: Tensor = filled()  # [B] int64, place among the responses that train in this step; default: in this batch
    group_B: Tensor = filled()  # [B] int64, index of the prompt within the step; default: each row its own
    reward_B: Tensor = filled()  # [B]
    correct_B: Tensor = filled()  # [B] 1.0 where the verdict is `correct`
    origin_B: Tensor = filled()  # [B] int64, index into ORIGINS; default: the policy
    sequence_BS: Tensor = filled()  # [B, S] int64, prompt then response, right-padded; default: S = 0
    prompt_len_B: Tensor = filled()  # [B] int64; default: 0
    # [B] int64, rows of one number lie one after the other in a pass (model/bins.py); None: no bins
    bin_B: Tensor | None = None

    def __post_init__(self) -> None:
        missing = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name != "bin_B"]
        rows = len(self.mask_BT)
        for name in missing:
            object.__setattr__(self, name, self._default(name, rows))

    def _default(self, name: str, rows: int) -> Tensor:
        import torch

        device = self.mask_BT.device
        if name.endswith("_BT"):
            return self.mask_BT.new_full((), float("nan")).expand(self.mask_BT.shape)
        if name in ("row_B", "group_B"):
            return torch.arange(rows, device=device)
        if name == "sequence_BS":
            return torch.zeros(rows, 0, dtype=torch.int64, device=device)
        if name in ("origin_B", "prompt_len_B"):
            return torch.zeros(rows, dtype=torch.int64, device=device)
        return self.mask_BT.new_full((), 1.0 if name == "checked_B" else float("nan")).expand(rows)

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
        picked = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "bin_B"}
        longest = max(1, int(picked["mask_BT"].sum(-1).max()))
        sequence_len = int((picked["prompt_len_B"] + picked["mask_BT"].sum(-1).long()).max())
        picked["sequence_BS"] = picked["sequence_BS"][:, :sequence_len]
        for name, value in picked.items():
            if name.endswith("_BT"):
                picked[name] = value[:, :longest]
        return TokenBatch(**picked, bin_B=None if self.bin_B is None else self.bin_B[index])

    def split(self, parts: int) -> list[TokenBatch]:
        """`parts` mini-batches of consecutive rows (so whole groups stay together when the sizes
        allow it)."""
        import torch

        edges = [len(self) * i // parts for i in range(parts + 1)]
        return [self.rows(torch.arange(a, b)) for a, b in zip(edges, edges[1:]) if b > a]

    def but(self, **changes: Any) -> TokenBatch:
        """A copy with some fields replaced."""
        return replace(self, **changes)
