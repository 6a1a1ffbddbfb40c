import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, ragged, rows


def test_by_hand():
    """Two fifths of five tokens: entropies 5 and 4, with what the clip makes of them; a padded
    token of entropy 9 does not count."""
    x = rows([1.5, -0.5], [[1.0, 2.0, 1.0], [1.0, 0.5, 9.0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    x = x.but(entropy_BT=torch.tensor([[1.0, 5.0, 2.0], [4.0, 3.0, 9.0]], dtype=torch.float64))
    loss_BT, weight_BT, facts = evaluated("top_entropy", x, share=0.4, eps_low=0.25, eps_high=0.25)
    assert facts["kept"].tolist() == [[False, True, False], [True, False, False]]
    torch.testing.assert_close(weight_BT, torch.tensor([[0, 0, 0], [-0.5, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(loss_BT, torch.tensor([[0, -1.5 * 1.25, 0], [0.5, 0, 0]], dtype=torch.float64))


def test_of_all_tokens_it_is_ppo_clip():
    x = ragged()
    assert_same(evaluated("top_entropy", x, share=1.0), evaluated("ppo_clip", x, eps_high=0.28), x.mask_BT.bool())


def test_one_token_at_least_is_kept():
    _, _, facts = evaluated("top_entropy", ragged(), share=1e-6)
    assert facts["kept"].sum() == 1


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("top_entropy", share=1.0)
