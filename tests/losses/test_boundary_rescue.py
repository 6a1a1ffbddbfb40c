import torch

from .batches import CELLS, assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged

NEAR = [(1.5, 1.25), (1.5, 1.31), (1.5, 1.33), (-0.5, 0.79), (-0.5, 0.73), (-0.5, 0.71), (1.5, 0.79), (-0.5, 1.25)]


def test_by_hand():
    """Bounds 0.8 and 1.2 with a band of 0.1: from 0.72 and up to 1.32. With every draw below the
    share the tokens in it get r·A back; what moved against its advantage was never clipped."""
    x = one_row(NEAR)
    loss_BT, weight_BT, facts = evaluated("boundary_rescue", x, share=1.0)
    rescued = [True, True, False, True, True, False, False, False]
    assert facts["rescued"][0].tolist() == rescued
    back = [a * r if again or i > 5 else 0.0 for i, ((a, r), again) in enumerate(zip(NEAR, rescued))]
    torch.testing.assert_close(weight_BT, torch.tensor([back], dtype=torch.float64))
    values = [
        -a * r if again or i > 5 else -a * (1.2 if a > 0 else 0.8)
        for i, ((a, r), again) in enumerate(zip(NEAR, rescued))
    ]
    torch.testing.assert_close(loss_BT, torch.tensor([values], dtype=torch.float64))


def test_the_draws_decide():
    x = one_row([(1.5, 1.25)] * 3)
    x = x.but(uniform_BT=torch.tensor([[0.2, 0.3, 0.9]], dtype=torch.float64))
    _, weight_BT, facts = evaluated("boundary_rescue", x, share=0.3)
    assert facts["rescued"].tolist() == [[True, False, False]]
    torch.testing.assert_close(weight_BT, torch.tensor([[1.5 * 1.25, 0.0, 0.0]], dtype=torch.float64))


def test_with_a_share_of_zero_it_is_ppo_clip():
    for x in (one_row(CELLS), ragged()):
        assert_same(evaluated("boundary_rescue", x, share=0.0), evaluated("ppo_clip", x))


def test_with_a_share_of_one_it_is_an_unclipped_loss_up_to_the_band():
    x = one_row(CELLS)
    _, weight_BT, _ = evaluated("boundary_rescue", x, share=1.0, band=1.0)
    cut = lambda a, r: a > 0 and r > 2.4
    expected = [0.0 if cut(a, r) else a * r for a, r in CELLS]
    torch.testing.assert_close(weight_BT, torch.tensor([expected], dtype=torch.float64))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("boundary_rescue")
