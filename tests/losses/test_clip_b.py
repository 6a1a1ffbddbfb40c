import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged


def test_by_hand():
    """Old probability ½ and entropies that make S = 1, 1, 1 and −2 (mean ¼, deviation 1.3): with
    μ = 1 only the last lies below, and is dropped where A < 0."""
    half = torch.tensor(0.5, dtype=torch.float64).log().item()
    pull_BT = torch.tensor([[1.0, 1.0, 1.0, -2.0]], dtype=torch.float64)
    for advantage in (-0.5, 1.5):
        x = one_row([(advantage, 1.0)] * 4, old=half)
        x = x.but(old_entropy_BT=pull_BT / 0.5 - half)
        loss_BT, weight_BT, facts = evaluated("clip_b", x, mu=1.0)
        kept = torch.tensor([[1.0, 1.0, 1.0, 0.0 if advantage < 0 else 1.0]], dtype=torch.float64)
        torch.testing.assert_close(weight_BT, advantage * kept)
        torch.testing.assert_close(loss_BT, -advantage * kept)
        assert facts["entropy_clip"].sum() == (advantage < 0)


def test_what_it_keeps_is_ppo_clip():
    x = ragged()
    ours = evaluated("clip_b", x, mu=0.5)
    dropped_BT = ours[2]["entropy_clip"]
    assert_same(ours, evaluated("ppo_clip", x), ~dropped_BT)
    assert dropped_BT.any() and (x.advantage_BT[dropped_BT] < 0).all() and not ours[1][dropped_BT].any()


def test_with_a_large_mu_it_is_ppo_clip():
    x = ragged()
    assert_same(evaluated("clip_b", x, mu=99.0), evaluated("ppo_clip", x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("clip_b")
