"""The token record: one row a token and update of a step, for tokens/step<n>.parquet.

docs/metrics.md has the columns.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from ..objective import Gradient, Weights
from ..types import Group, TokenBatch
from .entropy import CLASSES, SIDES, ClassRule, clip_side, entropy_change, gradient_contribution
from .ledger import Seen


class TokenRecord:
    """`add` for each micro-batch of each update, or `add_gradient` for a whole one; then
    `columns`, or without a ledger `parts`.

    When a step has more than `max_tokens` response tokens, whole responses are left out, chosen at
    random by (seed, step).
    """

    def __init__(self, step: int, groups: list[Group], tokenizer: Any, rule: ClassRule, max_tokens: int, seed: int):
        self.step, self.rule = step, rule
        self.rollouts = [rollout for group in groups for rollout in group.rollouts]
        self.scores = [score for group in groups for score in group.scores]
        lengths = np.array([len(r.token_ids) for r in self.rollouts])
        order = np.random.default_rng([seed, step]).permutation(len(lengths))
        self.chosen = torch.zeros(len(lengths), dtype=torch.bool)
        self.chosen[order[lengths[order].cumsum() <= max_tokens]] = True
        self.tokens = {
            row: tokenizer.convert_ids_to_tokens(list(self.rollouts[row].token_ids))
            for row in self.chosen.nonzero()[:, 0].tolist()
        }
        decode = cache(tokenizer.decode)  # of the same few tokens again and again
        self.texts = {row: pieces(decode, self.rollouts[row].token_ids) for row in self.tokens}
        self.parts: list[dict[str, np.ndarray]] = []
        self._places: list[tuple[int, np.ndarray]] = []  # of each part: its update, and its tokens' rows

    def add_gradient(self, update: int, gradient: Gradient) -> None:
        """The tokens of update number `update`."""
        for part in gradient.parts:
            if part.x.mask_BT.any():
                self.add(update, part.x, part.weights, part.scale_BT)

    def add(self, update: int, x: TokenBatch, w: Weights, scale_BT: torch.Tensor) -> None:
        """The tokens of a micro-batch of update number `update`."""
        row_B = x.row_B
        b_N, t_N = torch.nonzero(x.mask_BT * self.chosen.to(x.mask_BT.device)[row_B][:, None], as_tuple=True)
        pick = lambda value_BT: value_BT[b_N, t_N].detach().double()
        logprob, entropy, advantage, log_ratio = map(pick, (x.logprob_BT, x.entropy_BT, x.advantage_BT, x.log_ratio_BT))
        weight, sum_p2, ratio = pick(w.weight_BT), pick(x.sum_p2_BT), log_ratio.exp()
        code = self.rule.codes(logprob, entropy, advantage).tolist()
        side = clip_side(ratio, advantage, pick(w.clip_low_BT), pick(w.clip_high_BT)).tolist()
        numbers = {
            "prob": logprob.exp(), "old_prob": pick(x.old_logprob_BT).exp(), "entropy": entropy,
            "advantage": advantage, "ratio": ratio, "weight": weight, "scale": pick(scale_BT),
            "gradient": gradient_contribution(weight, logprob.exp(), sum_p2),
            "dentropy": entropy_change(weight, logprob, entropy, sum_p2, pick(x.sum_p2_logp_BT)),
        }  # fmt: skip
        row, place = row_B[b_N].tolist(), t_N.tolist()
        of = lambda kind, value: np.array([value(self.rollouts[r]) for r in row], dtype=kind)
        self._places.append((update, np.array(row, dtype=np.int64)))
        self.parts.append(
            {
                "step": np.full(len(row), self.step, dtype=np.int32),
                "update": np.full(len(row), update, dtype=np.int32),
                "prompt_id": of(object, lambda r: r.prompt.id),
                "rollout": of(np.int32, lambda r: r.index),
                "origin": of(object, lambda r: r.origin),
                "position": np.array(place, dtype=np.int32),
                "token_id": np.array([self.rollouts[r].token_ids[t] for r, t in zip(row, place)], dtype=np.int32),
                "token": np.array([self.tokens[r][t] for r, t in zip(row, place)], dtype=object),
                "text": np.array([self.texts[r][t] for r, t in zip(row, place)], dtype=object),
                **{name: value.cpu().numpy().astype(np.float32) for name, value in numbers.items()},
                "class": np.array([CLASSES[c] for c in code], dtype=object),
                "side": np.array([SIDES[c] for c in side], dtype=object),
                "reward": np.array([self.scores[r].reward for r in row], dtype=np.float32),
                "verdict": np.array([self.scores[r].verdict.value for r in row], dtype=object),
                "prompt": of(object, lambda r: r.prompt.text),
                "answer": of(object, lambda r: r.prompt.answer),
            }
        )

    def columns(self, seen: list[Seen]) -> list[dict[str, np.ndarray]]:
        """The record in parts, with what each token did to the entropy, as the ledger saw it
        update by update."""
        for part, (update, row_N) in zip(self.parts, self._places):
            influence_BT, row_B = seen[update].influence_BT, seen[update].mini.row_B
            place = {row: b for b, row in enumerate(row_B.tolist())}
            j = influence_BT.cpu().double().numpy()[[place[r] for r in row_N.tolist()], part["position"]]
            # λ = −w · scale, so that ΔH = λ J is w times this.
            influence = -part["scale"] * j
            part["influence"] = influence.astype(np.float32)
            part["dentropy_exact"] = (part["weight"] * influence).astype(np.float32)
        return self.parts


def pieces(decode: Callable[[tuple[int, ...]], str], token_ids: tuple[int, ...]) -> list[str]:
    """The text that each token adds to the response that `decode` makes of its tokens. A character
    of several tokens belongs to the last of them. Joined, they are the response (special tokens
    included)."""
    made: list[str] = []
    before, read = 0, 0  # decoding starts at the token before, which a leading space may depend on
    for end in range(1, len(token_ids) + 1):
        old, new = decode(token_ids[before:read]), decode(token_ids[before:end])
        whole = len(new) > len(old) and not new.endswith("\ufffd")
        made.append(new[len(old) :] if whole else "")
        if whole:
            before, read = read, end
    return made
