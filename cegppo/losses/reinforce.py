"""REINFORCE: the score function times the advantage, no ratio and no clip.

    loss_t = −A_t · log π_θ(y_t)

Source: Williams (1992). Weight on ∇log π: A, whatever the ratio. After the first update of a step
the samples are no longer from π_θ and nothing corrects for it; every ratio-based loss in this
folder has this gradient where the ratio is 1.
"""

from dataclasses import dataclass

from torch import Tensor

from ..types import TokenBatch


@dataclass(frozen=True)
class Params:
    """No knobs."""


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    return -x.advantage_BT * x.logprob_BT, {}
