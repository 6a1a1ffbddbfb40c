import pytest
import torch

from .batches import assert_same, evaluated, one_row, ragged


@pytest.mark.parametrize(
    "zeta, weights",
    [
        (0.5, [1.5 * 2, -0.5 * 0]),  # log π = −2: 1 + 0.5 · 2, and 1 − 1
        (0.25, [1.5 * 1.5, -0.5 * 0.5]),
        (-0.25, [1.5 * 0.5, -0.5 * 1.5]),
        (1.0, [1.5 * 3, 0.0]),  # 1 − 2 would turn the sign over
        (-1.0, [0.0, -0.5 * 3]),
    ],
)
def test_by_hand(zeta, weights):
    x = one_row([(1.5, 1.0), (-0.5, 1.0)], old=-2.0)
    loss_BT, weight_BT, _ = evaluated("repo_r", x, zeta=zeta)
    expected_BT = torch.tensor([weights], dtype=torch.float64)
    torch.testing.assert_close(weight_BT, expected_BT)
    torch.testing.assert_close(loss_BT, -expected_BT)


def test_without_zeta_it_is_ppo_clip():
    assert_same(evaluated("repo_r", ragged(), zeta=0.0), evaluated("ppo_clip", ragged()))


def test_it_is_ppo_clip_of_another_advantage():
    x = ragged()
    factor_BT = torch.where(x.advantage_BT > 0, 1 - 0.1 * x.logprob_BT, 1 + 0.1 * x.logprob_BT).detach().clamp(min=0)
    other = x.but(advantage_BT=x.advantage_BT * factor_BT)
    assert_same(evaluated("repo_r", x, zeta=0.1), evaluated("ppo_clip", other))
