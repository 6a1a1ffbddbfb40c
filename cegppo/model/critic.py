"""The critic of PPO, and the loss it learns by."""

import copy

import torch
from torch import Tensor, nn

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


def value_loss(value_BT: Tensor, x: TokenBatch, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped value loss per token and where the clip holds, [B, T] each: ½ max((V − R)²,
    (V_clipped − R)²)."""
    near_BT = x.old_value_BT + (value_BT - x.old_value_BT).clamp(-clip, clip)
    plain_BT, clipped_BT = (value_BT - x.return_BT).square(), (near_BT - x.return_BT).square()
    return torch.maximum(plain_BT, clipped_BT) / 2, clipped_BT > plain_BT
