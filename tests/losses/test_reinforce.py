import torch

from .batches import CELLS, evaluated, one_row


def test_the_weight_is_the_advantage_whatever_the_ratio():
    x = one_row(CELLS)
    loss_BT, weight_BT, _ = evaluated("reinforce", x)
    torch.testing.assert_close(weight_BT, x.advantage_BT, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss_BT, -x.advantage_BT * x.logprob_BT.detach(), rtol=1e-12, atol=0)
