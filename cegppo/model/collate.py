"""Rollouts laid out as arrays: each row is copied once, into one array of the whole batch."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..types import ORIGINS, Rollout, TokenBatch


def padded(rows: Sequence[Iterable[Sequence[float]]], width: int, dtype: type) -> Tensor:
    """[B, width] of `dtype`: the pieces of each row one after the other, then zeros."""
    made: np.ndarray = np.zeros((len(rows), width), dtype=dtype)
    for whole, pieces in zip(made, rows):
        start = 0
        for piece in pieces:
            whole[start : start + len(piece)] = piece
            start += len(piece)
    return torch.from_numpy(made)


def laid_out(
    rollouts: Sequence[Rollout],
    advantage_B: np.ndarray,
    reward_B: np.ndarray,
    correct_B: np.ndarray,
    group_B: Sequence[int] | None,
    device: torch.device,
) -> TokenBatch:
    """What `rollouts` and their scores say, [B, T]; what a policy says of their tokens is 0."""
    tensor = lambda values, dtype=torch.float32: torch.tensor(np.asarray(values), dtype=dtype, device=device)
    length_B = tensor([len(r.token_ids) for r in rollouts], torch.int64)
    prompt_len_B = tensor([len(r.prompt.token_ids) for r in rollouts], torch.int64)
    longest, widest = int(length_B.max()), int((prompt_len_B + length_B).max())
    mask_BT = (torch.arange(longest, device=device) < length_B[:, None]).float()
    blank_BT = torch.zeros_like(mask_BT)
    return TokenBatch(
        logprob_BT=blank_BT,
        old_logprob_BT=blank_BT,
        advantage_BT=tensor(advantage_B)[:, None] * mask_BT,
        mask_BT=mask_BT,
        entropy_BT=blank_BT,
        sampler_logprob_BT=padded([[r.logprobs] for r in rollouts], longest, np.float32).to(device),
        row_B=torch.arange(len(rollouts), device=device),
        group_B=tensor(range(len(rollouts)) if group_B is None else group_B, torch.int64),
        reward_B=tensor(reward_B),
        correct_B=tensor(correct_B),
        origin_B=tensor([ORIGINS.index(r.origin) for r in rollouts], torch.int64),
        sequence_BS=padded([[r.prompt.token_ids, r.token_ids] for r in rollouts], widest, np.int32).to(device).long(),
        prompt_len_B=prompt_len_B,
    )
