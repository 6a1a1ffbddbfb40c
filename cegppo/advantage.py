"""From rewards to advantages: group (GRPO), centred (Dr. GRPO), over the batch's deviation, above a
quantile (QAE), the plain reward, GAE with a critic (PPO); and what may be made of them token by
token: the soft policy gradient's, and a weight by what a token does to the entropy. Numpy and torch
in, the same out."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .instrument.entropy import entropy_change
from .types import TokenBatch

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


def above_quantile(reward_G: np.ndarray, share: float) -> np.ndarray:
    """QAE: (r − the group's `share`-quantile) / std; 0 in a constant group. [..., G] to the same.

    With rewards of 0 and 1 it is a gate: where no more than 1 − `share` of a group are right only
    they are raised, where more are only the wrong ones are lowered. Source: arXiv 2509.22611, read
    in its abstract: that the deviation still divides is assumed, and that the quantile is one of
    the rewards (the lower one between two).
    """
    quantile_1 = np.quantile(reward_G, share, axis=-1, keepdims=True, method="inverted_cdf")
    return (reward_G - quantile_1) / (reward_G.std(axis=-1, ddof=1, keepdims=True) + STD_FLOOR)


def over_batch(rewards: Sequence[np.ndarray]) -> list[np.ndarray]:
    """r − its group's mean, over the standard deviation (n − 1) of all rewards of the batch; 0 in a
    constant group. Source: arXiv 2508.08221; TRL's `scale_rewards="batch"`."""
    std = np.concatenate(rewards).std(ddof=1)
    return [centred(reward_G) / (std + STD_FLOOR) for reward_G in rewards]


def estimator(kind: str, quantile: float) -> Callable[[np.ndarray], np.ndarray]:
    """The rewards of one group to its advantages, by `advantage.kind`. With a critic they come from
    it alone; those of `batch` are still to be divided by its deviation (`over_batch`)."""
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "group": group,
        "centred": centred,
        "batch": centred,
        "none": lambda reward_G: reward_G.astype(float),
        "quantile": partial(above_quantile, share=quantile),
        "gae": np.zeros_like,
    }
    return kinds[kind]


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


def soft(x: TokenBatch, alpha: float) -> Tensor:
    """Advantages of the soft policy gradient with groups, [B, T]: A_t + α (S_t − b_t).

        S_t = −log π(y_t) + Σ_{k>t} H(s_k)
        b_t = mean of S_t over the group's responses that have a place t

    all under the policy that starts the step. S_t estimates the entropy to come: what the policy
    will have been unsure of from t on is earned like a reward, where an entropy bonus asks for the
    entropy of the states visited and not for states that have more of it.

    Source: arXiv 1912.01557, whose theorem has ∇log π(a) (Q_soft(s, a) − α log π(a)). Q_soft needs
    a critic (`advantage.kind=gae` has one). Ours with groups: the entropy itself stands for −log π
    of the tokens that follow, which has the same mean; b_t stands for V_soft; α is in units of the
    advantage, after its division by the group's deviation. α = 0: the advantages themselves. One
    response token, in expectation: the gradient of an entropy bonus of α.
    """
    mask_BT, entropy_BT = x.mask_BT, x.old_entropy_BT * x.mask_BT
    after_BT = entropy_BT.flip(1).cumsum(1).flip(1) - entropy_BT
    to_go_BT = (after_BT - x.logprob_BT) * mask_BT
    group_B = x.group_B
    sums = mask_BT.new_zeros(2, int(group_B.max()) + 1, mask_BT.shape[1])
    sums.index_add_(1, group_B, torch.stack([to_go_BT, mask_BT]))
    baseline_BT = (sums[0] / sums[1].clamp(min=1))[group_B]
    return (x.advantage_BT + alpha * (to_go_BT - baseline_BT)) * mask_BT


def polarised(x: TokenBatch, scale_BT: Tensor, drift: float, most: float) -> tuple[Tensor, dict[str, float]]:
    """Advantages of which those that raise the entropy are multiplied by c and those that lower it
    by 1/c, so that what both do together is the drift that is wanted; [B, T], and facts to log.

        P_t = A_t T_t,  T = Σπ² (log π + H) − p (log p + H)      (instrument.entropy_change)
        U = Σ scale·P over P > 0,  D = Σ scale·|P| over P < 0
        c U − D / c = drift · (U + D),  c within [1/most, most]

    all under the policy that starts the step. drift = 0 asks that the two balance, c = √(D/U).
    With most = 1 the advantages are as they were.

    In the spirit of PAPO (arXiv 2605.11775), which keeps both kinds of tokens and re-weights their
    advantages by the course of the entropy. Its weights are not public: P is inferred from its
    abstract and c is ours, hence it does not bear its name.
    """
    statistics = (x.logprob_BT, x.entropy_BT, x.sum_p2_BT, x.sum_p2_logp_BT)
    pull_BT = entropy_change(x.advantage_BT, *statistics) * scale_BT
    up, down = float(pull_BT.clamp(min=0).sum()), float(-pull_BT.clamp(max=0).sum())
    wanted = drift * (up + down)
    root = (wanted * wanted + 4 * up * down) ** 0.5
    # Two forms of one root, of which each is used where it does not cancel.
    top, bottom = (wanted + root, 2 * up) if wanted > 0 else (2 * down, root - wanted)
    c = top / bottom if bottom > 0 else most if down > 0 else 0.0 if up > 0 else 1.0
    c = min(max(c, 1 / most), most)
    factor_BT = torch.where(pull_BT > 0, c, torch.where(pull_BT < 0, 1 / c, 1.0))
    whole = up + down
    facts = {
        "factor": c,
        "before": (up - down) / whole if whole else 0.0,
        "after": (c * up - down / c) / whole if whole else 0.0,
        "wanted": drift,
    }
    return x.advantage_BT * factor_BT, facts
