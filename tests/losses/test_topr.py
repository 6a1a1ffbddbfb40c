import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, ragged, rows


def test_by_hand():
    x = rows([2.0, 2.0, -1.0, -1.0, 0.0], [[0.5], [1.5], [0.5], [1.5], [1.5]])
    loss_BT, weight_BT, facts = evaluated("topr", x)
    right_BT = torch.tensor([[2.0], [2.0], [-0.5], [-1.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, right_BT)
    torch.testing.assert_close(loss_BT, -right_BT * x.logprob_BT.detach())
    assert not facts
    _, weight_BT, _ = evaluated("topr", x, positive=0.1, negative=3.0)
    torch.testing.assert_close(weight_BT[:, 0], torch.tensor([0.2, 0.2, -1.5, -3.0, 0.0], dtype=torch.float64))


def test_it_is_reinforce_where_no_ratio_is_below_one():
    x = ragged()
    x = x.but(logprob_BT=torch.maximum(x.logprob_BT.detach(), x.old_logprob_BT).requires_grad_())
    assert_same(evaluated("topr", x), evaluated("reinforce", x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("topr")
