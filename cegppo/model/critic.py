"""The critic of PPO, and the loss it learns by."""

import copy

import torch
from torch import Tensor, nn

from .. import advantage, ranks
from ..types import TokenBatch
from . import parallel
from .policy import Policy, scatter


class Critic(nn.Module):
    """V(s_t) for PPO: a copy of the policy's decoder with a linear head, trained by its own
    optimizer."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy
        self.decoder = copy.deepcopy(policy.model.get_decoder())
        self.head = nn.Linear(policy.model.config.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)  # starts at V = 0 everywhere, without drawing random numbers
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(True)

    def shard(self) -> "Critic":
        """Divide the weights among the ranks."""
        parallel.shard(self, list(self.decoder.layers))
        return self

    def forward(self, x: TokenBatch) -> Tensor:
        """[B, T] value of the state before each response token; 0 elsewhere."""
        hidden_NH, _ = self.policy.states(self.decoder, x)
        return scatter(self.head(hidden_NH.to(self.head.weight.dtype))[:, 0], x.mask_BT)


@torch.no_grad()
def with_values(critic: Critic, x: TokenBatch, gamma: float, lam: float, whiten: bool, soft: float = 0.0) -> TokenBatch:
    """`x` with the critic's values, its targets, and advantages by GAE(λ) instead of a group's.

    `soft`: α of the soft policy gradient (arXiv 1912.01557). Each token then also earns −α log π of
    itself under the policy that starts the step, and the critic learns V_soft.
    """
    value_BT = torch.zeros_like(x.mask_BT)
    for index, micro in critic.policy.micro_batches(x):
        value_BT[index, : micro.mask_BT.shape[1]] += critic(micro)
    value_BT = ranks.total(value_BT)
    reward_BT = torch.zeros_like(x.mask_BT)
    # The whole reward comes with the last token.
    reward_BT[torch.arange(len(x)), x.length_B.long() - 1] = x.reward_B
    reward_BT = reward_BT - soft * x.logprob_BT
    advantage_BT, return_BT = advantage.gae(reward_BT, value_BT, x.mask_BT, gamma, lam)
    if whiten:
        advantage_BT = advantage.whiten(advantage_BT, x.mask_BT)
    return x.but(advantage_BT=advantage_BT, old_value_BT=value_BT, return_BT=return_BT)


def value_loss(value_BT: Tensor, x: TokenBatch, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped value loss per token and where the clip holds, [B, T] each: ½ max((V − R)²,
    (V_clipped − R)²)."""
    old_BT, return_BT = x.old_value_BT, x.return_BT
    near_BT = old_BT + (value_BT - old_BT).clamp(-clip, clip)
    plain_BT, clipped_BT = (value_BT - return_BT).square(), (near_BT - return_BT).square()
    return torch.maximum(plain_BT, clipped_BT) / 2, clipped_BT > plain_BT
