"""Answers of unlike length in rows of like length: bins, with a mask that keeps them apart.

Every row of a padded batch is as long as the longest. A bin holds several answers one after the
other, and a prompt once for all of its answers there. Each answer sees its prompt and itself, at
the positions it would have alone: the same numbers up to rounding, from fewer tokens. What is paid
is attention over the whole bin, so `plan` takes bins only where that is cheaper. On a GPU in bf16
variable-length attention does it without a mask (`attention.packed_states`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..types import TokenBatch
from .attention import alike, outgrows_positions, predicting_states, some_batch
from .traits import text_config

# A layer's matrix products cost a token about 24 · width², attention 4 · width for each token that
# is looked at, half of them where it is causal.
ATTENTION = 1 / 6
PAYS = 0.9  # of the padded cost, at most: the mask and the order cost something, too
BLOCK = 64  # rows that are put into bins together: the time this takes grows with the rows alone
WIDTHS = (1, 2, 4)  # of bins, in lengths of the longest row


@dataclass
class Pass:
    """Rows of a batch that go through a model together, and the tokens that this takes."""

    rows: list[int]
    tokens: int
    bin_of: list[int] | None = None  # of each row, when they lie in bins


@dataclass
class Bin:
    """Rows of a batch and the tokens that they take together."""

    rows: list[int] = field(default_factory=list)
    prompts: set[bytes] = field(default_factory=set)
    tokens: int = 0


def plan(rows: Sequence[int], x: TokenBatch, padded: list[Pass], width: int, most: int) -> list[Pass]:
    """Passes over `rows` of `x` in bins; the `padded` ones where these cost no more in a decoder of
    `width`, or where a row is longer than the `most` tokens that a pass may have."""
    prompt, answer = x.prompt_len_B.tolist(), x.length_B.long().tolist()
    sequence = x.sequence_BS.cpu().numpy()
    key = {b: sequence[b, : prompt[b]].tobytes() for b in rows}
    # The last token of an answer predicts nothing and is not fed.
    size = {b: prompt[b] + max(0, answer[b] - 1) for b in rows}
    longest = max(size.values())
    if longest > most or len(rows) == 1:
        return padded
    least = PAYS * sum(_cost(len(each.rows), each.tokens // len(each.rows), width, causal=True) for each in padded)
    best = padded
    for times in WIDTHS:
        bins = [
            made
            for start in range(0, len(rows), BLOCK)
            for made in _filled(rows[start : start + BLOCK], key, prompt, size, min(times * longest, most))
        ]
        passes = list(_passes(bins, most))
        cost = sum(_cost(len(each), each[-1].tokens, width, causal=False) for each in passes)
        if cost < least:
            least, best = cost, [_pass(each) for each in passes]
    return best


def _cost(rows: int, longest: int, width: int, causal: bool) -> float:
    """Of a pass in units of one token's matrix products."""
    return rows * longest * (1 + longest * ATTENTION / width / (2 if causal else 1))


def _filled(
    rows: Sequence[int], key: dict[int, bytes], prompt: list[int], size: dict[int, int], most: int
) -> list[Bin]:
    """Bins of at most `most` tokens: the longest row first, into the first bin that has its prompt
    and room, else into the first that has room."""
    made: list[Bin] = []
    for b in sorted(rows, key=lambda b: (-size[b], b)):
        least = size[b] - prompt[b]  # beside its own prompt
        room = [each for each in made if each.tokens + (least if key[b] in each.prompts else size[b]) <= most]
        into = next((each for each in room if key[b] in each.prompts), room[0] if room else None)
        if into is None:
            made.append(into := Bin())
        into.tokens += least if key[b] in into.prompts else size[b]
        into.rows.append(b)
        into.prompts.add(key[b])
    return made


def _passes(bins: list[Bin], most: int) -> Iterator[list[Bin]]:
    """Bins of like size together, as many as have room; the largest last."""
    bins = sorted(bins, key=lambda each: each.tokens)
    start = 0
    for stop in range(1, len(bins) + 1):
        if stop == len(bins) or bins[stop].tokens * (stop + 1 - start) > most:
            yield bins[start:stop]
            start = stop


def _pass(bins: list[Bin]) -> Pass:
    rows, bin_of = zip(*((b, n) for n, each in enumerate(bins) for b in each.rows))
    return Pass(list(rows), len(bins) * bins[-1].tokens, list(bin_of))


def binned_states(decoder: nn.Module, x: TokenBatch) -> tuple[Tensor, Tensor]:
    """As `attention.predicting_states`, of a batch whose `bin_B` says which rows share a bin."""
    sequence_BS, prompt_B = x.sequence_BS, x.prompt_len_B
    fed = _Fed(x)
    token_bs = sequence_BS[fed.row_bs, fed.place_bs]
    # A token sees what came before it of its own part, and of the prompt that this part continues.
    seen_bss = fed.part_bs[:, None] == fed.part_bs[:, :, None]
    seen_bss |= fed.part_bs[:, None] == fed.parent_bs[:, :, None]
    seen_bss &= torch.ones(seen_bss.shape[1:], dtype=torch.bool, device=seen_bss.device).tril()
    hidden_bsH = decoder(
        input_ids=token_bs, position_ids=fed.place_bs, attention_mask=seen_bss[:, None], use_cache=False
    ).last_hidden_state
    row_N, t_N = torch.nonzero(x.mask_BT, as_tuple=True)
    place_N = torch.where(t_N == 0, fed.prompt_end_B[row_N], fed.begin_B[row_N] + t_N - 1)
    return hidden_bsH.flatten(0, 1).index_select(0, place_N), sequence_BS[row_N, prompt_B[row_N] + t_N]


class _Fed:
    """Where each token that is fed comes from, b bins by s places: its row and place in
    `sequence_BS`, the part it belongs to (a prompt or an answer, by number; 0 pads) and the part
    that this one continues. And where a row's tokens are, counted over all bins: the last of its
    prompt, the first of its answer."""

    def __init__(self, x: TokenBatch):
        sequence, prompt = x.sequence_BS.cpu().numpy(), x.prompt_len_B.tolist()
        branch = [max(0, n - 1) for n in x.length_B.long().tolist()]
        # (bin, place there, row, place there, tokens, part, its parent): a prompt or an answer.
        parts: list[tuple[int, ...]] = []
        filled: dict[int, int] = {}
        prompts: dict[tuple[int, bytes], tuple[int, int]] = {}  # of a bin: (part, its end)
        begin, end = [], []
        assert x.bin_B is not None, "the pass has no plan of bins"
        for b, own in enumerate(x.bin_B.tolist()):
            key = own, sequence[b, : prompt[b]].tobytes()
            at = filled.get(own, 0)
            if key not in prompts:
                number = len(parts) + 1
                parts.append((own, at, b, 0, prompt[b], number, number))
                at += prompt[b]
                prompts[key] = number, at
            parent, prompt_end = prompts[key]
            parts.append((own, at, b, prompt[b], branch[b], len(parts) + 1, parent))
            begin.append((own, at))
            end.append((own, prompt_end - 1))
            filled[own] = at + branch[b]
        shape = (max(filled) + 1, max(filled.values()))
        bin_P, at_P, row_P, place_P, count_P, part_P, parent_P = np.array(parts, dtype=np.int64).T
        step_M = np.arange(count_P.sum()) - np.repeat(count_P.cumsum() - count_P, count_P)
        into_M = np.repeat(bin_P * shape[1] + at_P, count_P) + step_M
        fields = np.zeros((4, shape[0] * shape[1]), dtype=np.int64)
        fields[:, into_M] = np.repeat(np.stack([row_P, place_P, part_P, parent_P]), count_P, axis=1)
        fields[1, into_M] += step_M
        device = x.mask_BT.device
        self.row_bs, self.place_bs, self.part_bs, self.parent_bs = torch.from_numpy(fields).view(4, *shape).to(device)
        flat = lambda pairs: torch.tensor([own * shape[1] + at for own, at in pairs], device=device)
        self.begin_B, self.prompt_end_B = flat(begin), flat(end)


def taken(model: PreTrainedModel) -> bool:
    """Whether `model` computes the same in bins: every layer attends to all that its mask shows, by
    PyTorch's attention, and a few tokens come out alike both ways."""
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"} or window:
        return False
    x = some_batch(model)
    x = x.but(bin_B=torch.zeros(len(x), dtype=torch.int64))
    try:
        with torch.no_grad():
            alone, together = (states(model.get_decoder(), x)[0] for states in (predicting_states, binned_states))
            outgrows_positions(model)
    except Exception:  # a decoder that takes no mask of this kind, no positions, or no row that is longer than these
        return False
    return alike(together, alone, 1e-3)
