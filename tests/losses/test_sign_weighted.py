import pytest
import torch

from .batches import CELLS, assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged


def test_by_hand():
    x = one_row([(1.5, 1.0), (-0.5, 1.0), (1.5, 2.0), (-0.5, 0.5)])
    loss_BT, weight_BT, _ = evaluated("sign_weighted", x, positive=0.5, negative=2.0)
    torch.testing.assert_close(weight_BT, torch.tensor([[0.75, -1.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(loss_BT, torch.tensor([[-0.75, 1.0, -0.9, 0.8]], dtype=torch.float64))


def test_with_equal_weights_it_is_ppo_clip():
    assert_same(evaluated("sign_weighted", ragged()), evaluated("ppo_clip", ragged()))
    ours, theirs = (evaluated(name, ragged()) for name in ("sign_weighted", "ppo_clip"))
    doubled = evaluated("sign_weighted", ragged(), positive=2.0, negative=2.0)
    assert_same(doubled, [2 * value_BT for value_BT in ours[:2]])
    assert_same(doubled, [2 * value_BT for value_BT in theirs[:2]])


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sign_alone(sign):
    x = one_row(CELLS)
    weights = {"positive": float(sign > 0), "negative": float(sign < 0)}
    ours, mine_BT = evaluated("sign_weighted", x, **weights), sign * x.advantage_BT > 0
    assert_same(ours, evaluated("ppo_clip", x), mine_BT)
    assert not ours[1][~mine_BT].any()


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("sign_weighted")
