"""From rewards to advantages: group (GRPO), centred (Dr. GRPO), GAE with a critic (PPO). Numpy
and torch in, the same out."""

import numpy as np
import torch
from torch import Tensor

STD_FLOOR = 1e-6  # added to the group's standard deviation, as the released CE-GPPO code does


def group(reward_G: np.ndarray) -> np.ndarray:
    """GRPO: (r − mean) / std within a group, unbiased standard deviation (n − 1); 0 in a constant
    group. [..., G] to the same.

    Source: DeepSeekMath (arXiv 2402.03300), Section 4.1.2.
    """
    std_1 = reward_G.std(axis=-1, ddof=1, keepdims=True)
    return centred(reward_G) / (std_1 + STD_FLOOR)


def centred(reward_G: np.ndarray) -> np.ndarray:
    """Dr. GRPO: r − mean within a group, no division. [..., G] to the same. Source: arXiv
    2503.20783, Section 3.2."""
    # Exactly 0 for a constant group, whose mean may round.
    return np.where(constant_groups(reward_G)[..., None], 0.0, reward_G - reward_G.mean(axis=-1, keepdims=True))


def constant_groups(reward_G: np.ndarray) -> np.ndarray:
    """Whether all rewards of a group are equal, so that it teaches nothing (DAPO drops it). [...,
    G] to [...] bool."""
    return np.ptp(reward_G, axis=-1) == 0


def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over response tokens (arXiv 1506.02438, Eq. 16). All [B, T].

    `value_BT` is V(s_t) before token t is emitted; the value after the last token of a row is 0.
    Returns (advantage_BT, return_BT) with return = advantage + value; both 0 outside the mask.
    """
    reward_BT, value_BT = reward_BT * mask_BT, value_BT * mask_BT
    next_value_BT = torch.cat([value_BT[:, 1:], torch.zeros_like(value_BT[:, :1])], dim=1)
    delta_BT = reward_BT + gamma * next_value_BT - value_BT
    advantage_BT = torch.zeros_like(value_BT)
    running_B = torch.zeros_like(value_BT[:, 0])
    for t in range(value_BT.shape[1] - 1, -1, -1):
        running_B = (delta_BT[:, t] + gamma * lam * running_B) * mask_BT[:, t]
        advantage_BT[:, t] = running_B
    return advantage_BT, (advantage_BT + value_BT) * mask_BT


def whiten(advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over response tokens; 0 outside the mask. [B, T] to
    [B, T]."""
    inside_N = advantage_BT[mask_BT > 0]
    return (advantage_BT - inside_N.mean()) / (inside_N.std(correction=0) + STD_FLOOR) * mask_BT
