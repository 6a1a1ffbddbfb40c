import pytest
import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, ragged, rows

OPEN = dict(eps_low=0.9, eps_high=9.0)


def four_tokens():
    """A − mean is 1.5, 0.5, −0.5, −1.5 and log π − mean −1, 1, −1, 1, so that the covariances are
    −1.5, 0.5, 0.5, −1.5; ratios 1."""
    x = rows([1.5, 0.5, -0.5, -1.5], [[1.0]] * 4)
    logprob_BT = torch.tensor([[-2.0], [-0.0], [-2.0], [-0.0]], dtype=torch.float64)
    return x.but(logprob_BT=logprob_BT.clone().requires_grad_(), old_logprob_BT=logprob_BT)


def test_by_hand():
    """Of the second and third token, which alone lie between the bounds, the one with the smaller
    draw loses its gradient; with room for more both do."""
    x = four_tokens().but(uniform_BT=torch.tensor([[0.0], [0.6], [0.5], [0.1]], dtype=torch.float64))
    loss_BT, weight_BT, facts = evaluated("clip_cov", x, share=0.25, cov_low=0.4, cov_high=0.6)
    torch.testing.assert_close(weight_BT[:, 0], torch.tensor([1.5, 0.5, 0.0, -1.5], dtype=torch.float64))
    torch.testing.assert_close(loss_BT, -weight_BT)
    assert facts["covariance_clip"][:, 0].tolist() == [False, False, True, False]
    _, _, facts = evaluated("clip_cov", x, share=0.75, cov_low=0.4, cov_high=0.6)
    assert facts["covariance_clip"][:, 0].tolist() == [False, True, True, False]


def test_what_the_clip_has_cut_is_not_drawn():
    x = four_tokens()
    x = x.but(old_logprob_BT=x.old_logprob_BT + torch.tensor([[0.0], [-1.0], [0.0], [0.0]], dtype=torch.float64))
    knobs = dict(share=1.0, cov_low=0.4, cov_high=0.6, eps_low=0.2, eps_high=0.2)
    _, weight_BT, facts = evaluated("clip_cov", x, **knobs)
    assert weight_BT[1] == 0 and facts["covariance_clip"][:, 0].tolist() == [False, False, True, False]


@pytest.mark.parametrize("share, drawn", [(1e-6, 1), (0.2, 5), (1.0, 25)])
def test_how_many_are_drawn(share, drawn):
    """At least one, the share rounded down, all there are at most: of 25 tokens."""
    _, _, facts = evaluated("clip_cov", ragged(), share=share, cov_low=-99.0, cov_high=99.0, **OPEN)
    assert facts["covariance_clip"].sum() == drawn and int(ragged().mask_BT.sum()) == 25


def test_every_token_is_as_likely():
    """Over many draws each of the 25 tokens is among the five about as often."""
    x, counts = ragged(), 0
    for seed in range(400):
        uniform_BT = torch.rand(x.mask_BT.shape, generator=torch.Generator().manual_seed(seed))
        _, _, facts = evaluated("clip_cov", x.but(uniform_BT=uniform_BT), share=0.2, cov_low=-99, cov_high=99, **OPEN)
        counts = counts + facts["covariance_clip"].double()
    rates = counts[x.mask_BT.bool()] / 400
    assert abs(rates - 0.2).max() < 4 * (0.2 * 0.8 / 400) ** 0.5


def test_with_no_token_between_the_bounds_it_is_ppo_clip():
    x = ragged()
    assert_same(evaluated("clip_cov", x, eps_low=0.2, eps_high=0.2, cov_low=99.0), evaluated("ppo_clip", x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("clip_cov", cov_low=99.0)
