from math import exp, log

import pytest
import torch

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, importance_weighted, one_row, ragged


def negatives(logprobs, proxies):
    """One row on the policy that sampled, A = −0.5."""
    x = one_row([(-0.5, 1.0)] * len(logprobs))
    row = lambda values: torch.tensor([values], dtype=torch.float64)
    return x.but(logprob_BT=row(logprobs).requires_grad_(), old_logprob_BT=row(logprobs), proxy_logprob_BT=row(proxies))


def test_by_hand():
    """Of five tokens the share of 0.6 makes three rarest: −6, −5, −4. The proxy of −5 is below it,
    that of −4 twice as probable, that of −6 e³ times: k3 = 20.1 − 3 − 1, above 10, so it pulls no
    more."""
    x = negatives([-1.0, -6.0, -5.0, -4.0, -3.0], [0.0, -3.0, -1e4, -4.0 + log(2), 0.0])
    loss_BT, weight_BT, facts = evaluated("lp_reg", x, share=0.6)
    assert facts["low_prob_kl"].tolist() == [[False, True, False, True, False]]
    k3 = 2 - log(2) - 1
    torch.testing.assert_close(loss_BT, torch.tensor([[0.5, 0.5 + 10, 0.5, 0.5 + k3, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(weight_BT, torch.tensor([[-0.5, -0.5, -0.5, -0.5 + 1.0, -0.5]], dtype=torch.float64))
    _, twice_BT, _ = evaluated("lp_reg", x, share=0.6, coefficient=2.0)
    assert twice_BT[0, 3] == pytest.approx(1.5)


def test_it_pulls_no_token_alone_and_none_with_a_positive_advantage():
    x = negatives([-1.0, -6.0, -5.0], [0.0, -5.5, -4.5])
    assert not evaluated("lp_reg", x, share=0.5)[2]["low_prob_kl"].any()  # one of three
    assert evaluated("lp_reg", x, share=0.7)[2]["low_prob_kl"].sum() == 2
    x = x.but(advantage_BT=-x.advantage_BT)
    assert not evaluated("lp_reg", x, share=0.7)[2]["low_prob_kl"].any()


def test_what_is_pulled_is_not_clipped():
    """r = e^−2 is below 0.8: with A < 0 the clip would take its gradient; pulled, it has r·A."""
    x = negatives([-4.0, -4.0], [-4.0 + log(2)] * 2)
    x = x.but(old_logprob_BT=x.old_logprob_BT + 2)
    _, weight_BT, _ = evaluated("lp_reg", x, share=1.0, eps_low=0.2)
    torch.testing.assert_close(weight_BT, torch.full_like(weight_BT, -0.5 * exp(-2) + 1))
    assert not evaluated("ppo_clip", x)[1].any()


def test_without_a_share_it_is_ppo_clip():
    x = ragged()
    bounds = dict(eps_low=0.2, eps_high=0.28)
    assert_same(evaluated("lp_reg", x, share=0.0, **bounds), evaluated("ppo_clip", x, **bounds))


def test_without_a_coefficient_nothing_is_left_but_the_ratio():
    x = ragged()
    assert evaluated("lp_reg", x, share=1.0)[2]["low_prob_kl"].any()
    ours = evaluated("lp_reg", x, share=1.0, coefficient=0.0, eps_high=99.0)
    assert_same(ours, importance_weighted(x))


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("lp_reg", share=0.0)
