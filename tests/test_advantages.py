"""Advantages made token by token: the soft policy gradient's, and those weighted by polarity."""

import math

import numpy as np
import pytest
import torch

from cegppo import advantage
from cegppo.controllers.polarity import Params, Rule
from cegppo.model.critic import with_values
from cegppo.state import build
from cegppo.types import TokenBatch

from . import steps
from .test_train import gradient, load

F64 = torch.float64


def tensor(rows):
    return torch.tensor(rows, dtype=F64)


def soft_batch():
    """Two responses of a group, of two tokens and of one."""
    return TokenBatch(
        logprob_BT=tensor([[-1.0, -0.5], [-2.0, 0.0]]),
        old_logprob_BT=tensor([[-7.0, -7.0], [-7.0, -7.0]]),  # of whoever wrote them: not read
        advantage_BT=tensor([[1.0, 1.0], [-1.0, 0.0]]),
        mask_BT=tensor([[1.0, 1.0], [1.0, 0.0]]),
        entropy_BT=tensor([[0.3, 0.7], [0.4, 9.0]]),
        old_entropy_BT=tensor([[0.3, 0.7], [0.4, 9.0]]),
        group_B=torch.tensor([0, 0]),
    )


def test_soft_by_hand():
    """S: 1 + 0.7, 0.5 of the first and 2 of the second. Means: 1.85 at the first place, 0.5 at the
    second, where the first response is alone."""
    made = advantage.soft(soft_batch(), 0.1)
    torch.testing.assert_close(made, tensor([[1 - 0.015, 1.0], [-1 + 0.015, 0.0]]))
    assert torch.equal(advantage.soft(soft_batch(), 0.0), soft_batch().advantage_BT)


def test_soft_of_one_token_is_in_expectation_the_entropy_bonus():
    """Σ_a π(a) ∇log π(a) α(−log π(a) − b) = α ∇H, whatever b."""
    logits = tensor([0.3, -1.0, 1.2, 0.0, 2.0]).requires_grad_()
    logp = torch.log_softmax(logits, 0)
    (bonus,) = torch.autograd.grad(-0.2 * (logp.exp() * logp).sum(), logits, retain_graph=True)
    rows = len(logp)
    x = TokenBatch(
        logprob_BT=logp.detach()[:, None], old_logprob_BT=logp.detach()[:, None],
        advantage_BT=torch.zeros(rows, 1, dtype=F64), mask_BT=torch.ones(rows, 1, dtype=F64),
        entropy_BT=torch.ones(rows, 1, dtype=F64), old_entropy_BT=torch.ones(rows, 1, dtype=F64),
        group_B=torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip
    weight = advantage.soft(x, 0.2)[:, 0]
    (ours,) = torch.autograd.grad((logp.exp().detach() * weight * logp).sum(), logits)
    torch.testing.assert_close(ours, bonus)
    assert bonus.norm() > 0.01


def test_soft_values_and_gradients_on_a_model(tiny):
    """A constant group teaches GRPO nothing, and the soft policy gradient what is uncertain."""
    plain, soft = (build(load(tiny, "method=grpo", *keys)) for keys in ([], ["advantage.soft=0.1"]))
    x, y = steps.batch(plain), steps.batch(soft)
    torch.testing.assert_close(y.advantage_BT, advantage.soft(x, 0.1))
    a, b = gradient(plain, x, 10**9)[0], gradient(soft, y, 10**9)[0]
    c = gradient(plain, x.but(advantage_BT=y.advantage_BT - x.advantage_BT), 10**9)[0]
    assert (b - a - c).norm() <= 1e-5 * b.norm() and c.norm() > 0.01 * a.norm()
    constant = x.but(advantage_BT=torch.zeros_like(x.advantage_BT))
    assert advantage.soft(constant, 0.1).abs().sum() > 0


def test_soft_with_a_critic_earns_what_was_unlikely(tiny):
    """A critic that starts at 0, γ = λ = 1: the advantage is the reward and α(−log π) to go."""
    state = build(load(tiny, "method=ppo"))
    x = steps.batch(state)
    made = with_values(state.critic, x, 1.0, 1.0, False, 0.3)
    to_go = (-x.logprob_BT * x.mask_BT).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(made.advantage_BT, (x.reward_B[:, None] + 0.3 * to_go) * x.mask_BT, atol=1e-5, rtol=1e-5)
    zero = with_values(state.critic, x, 1.0, 1.0, True, 0.0)
    assert torch.equal(zero.advantage_BT, x.advantage_BT)


# -------------------------------------------------------------------------------------- polarity


def state(p, advantages):
    """One state with probabilities `p`, each of its tokens sampled once with its advantage."""
    p, rows = tensor(p), len(p)
    logp, one = p.log(), torch.ones(rows, 1, dtype=F64)
    return TokenBatch(
        logprob_BT=logp[:, None], old_logprob_BT=logp[:, None], advantage_BT=tensor(advantages)[:, None], mask_BT=one,
        entropy_BT=-(p * logp).sum() * one, sum_p2_BT=(p * p).sum() * one, sum_p2_logp_BT=(p * p * logp).sum() * one,
    )  # fmt: skip


def test_polarity_by_hand():
    """π = (¾, ¼), both tokens with A = 1. H = 0.5623, Σπ²(log π + H) = 0.1030, p(log p + H) =
    ±0.2060: T = −0.1030 and 0.3090. U = 0.3090, D = 0.1030, so that for no drift c = √(1/3)."""
    x = state([0.75, 0.25], [1.0, 1.0])
    made, facts = advantage.polarised(x, x.mask_BT, 0.0, 4.0)
    assert facts["factor"] == pytest.approx(math.sqrt(1 / 3)) and facts["before"] == pytest.approx(0.5)
    assert made[:, 0].tolist() == pytest.approx([math.sqrt(3), math.sqrt(1 / 3)])
    assert facts["after"] == pytest.approx(0, abs=1e-12)
    made, facts = advantage.polarised(x, x.mask_BT, 0.0, 1.25)  # not more than it may
    assert facts["factor"] == pytest.approx(0.8) and made[:, 0].tolist() == pytest.approx([1.25, 0.8])
    assert facts["after"] == pytest.approx(0.8 * 0.75 - 1.25 * 0.25)


@pytest.mark.parametrize("drift", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_polarity_gives_the_drift_that_is_asked_for(drift):
    x = state([0.5, 0.3, 0.15, 0.05], [1.0, -0.5, 0.3, -2.0])
    _, facts = advantage.polarised(x, x.mask_BT, drift, 1e6)
    assert facts["after"] == pytest.approx(drift) and facts["wanted"] == drift


def test_polarity_where_one_kind_or_both_are_missing():
    rise, none = state([0.9, 0.1], [-1.0, 1.0]), state([0.9, 0.1], [0.0, 0.0])
    assert advantage.polarised(rise, rise.mask_BT, 0.5, 2.0)[1]["factor"] == pytest.approx(0.5)  # c U = ½ U
    assert advantage.polarised(rise, rise.mask_BT, 0.0, 2.0)[1]["factor"] == 0.5  # as little as it may
    fall = rise.but(advantage_BT=-rise.advantage_BT)
    assert advantage.polarised(fall, fall.mask_BT, 0.5, 2.0)[1]["factor"] == 2.0
    assert advantage.polarised(fall, fall.mask_BT, -1.0, 2.0)[1]["factor"] == pytest.approx(1.0)
    made, facts = advantage.polarised(none, none.mask_BT, 0.5, 2.0)
    assert facts == {"factor": 1.0, "before": 0.0, "after": 0.0, "wanted": 0.5} and (made == 0).all()


def test_a_factor_of_one_leaves_advantages_as_they_are():
    x = state([0.5, 0.3, 0.2], [1.0, -0.5, 0.3])
    assert torch.equal(advantage.polarised(x, x.mask_BT, 0.7, 1.0)[0], x.advantage_BT)


@pytest.mark.parametrize("drift", [0.0, 0.4, -0.4])
def test_the_instrument_measures_the_drift_that_was_asked_for(tiny, drift):
    """One update a step, so that it is of the policy that the weights are made under."""
    keys = ["advantage.polarity=50", f"advantage.polarity_drift={drift}", "updates_per_step=1"]
    made = steps.step(build(load(tiny, "method=grpo", *keys)))
    plain = steps.step(build(load(tiny, "method=grpo", "updates_per_step=1")))
    assert made["polarity/after"] == pytest.approx(drift, abs=1e-6)
    up_and_down = plain["dentropy/predicted"] / made["polarity/before"]  # U + D in nats
    assert made["dentropy/predicted"] == pytest.approx(drift * up_and_down, abs=1e-6)
    assert abs(plain["dentropy/predicted"]) > 1e-5


def test_the_drift_follows_the_entropy():
    rule = Rule(Params(target=0.5, gain=2.0, most=0.3, memory=2.0), {"advantage.polarity_drift": 0.0})
    decide = lambda entropy: rule.decide({"entropy/mean": entropy}, lambda ahead: 0.5)
    assert decide(0.4) == ({"advantage.polarity_drift": pytest.approx(0.2)}, {"entropy": 0.4})
    # Weights ½ and 1: (½ · 0.4 + 0.7) / 1.5 = 0.6.
    assert decide(0.7)[0]["advantage.polarity_drift"] == pytest.approx(-0.2)
    assert decide(9.0)[0]["advantage.polarity_drift"] == -0.3
    other = Rule(Params(target=0.5, gain=2.0, most=0.3, memory=2.0), {"advantage.polarity_drift": 0.0})
    other.restore(rule.state())
    assert other.decide({"entropy/mean": 0.1}, lambda ahead: 0.5) == decide(0.1)


def test_a_controller_sets_the_drift_of_the_next_step(tiny):
    state = build(load(tiny, "method=polarity", "controller.target=100", "controller.most=0.25"))
    first, second = steps.step(state), steps.step(state)
    assert (first["polarity/wanted"], first["knob/polarity_drift"]) == (0.0, 0.0)
    assert (second["polarity/wanted"], second["knob/polarity_drift"]) == (0.25, 0.25)


def test_over_a_quantile_it_is_a_gate():
    """Rewards of 0 and 1, K = 0.4: right ones alone are raised up to 6 right of 10, then wrong ones
    alone are lowered."""
    for right in range(1, 10):
        reward_G = np.array([1.0] * right + [0.0] * (10 - right))
        made = advantage.estimator("quantile", 0.4)(reward_G)
        gate = reward_G if right <= 6 else reward_G - 1
        np.testing.assert_allclose(made, gate / (reward_G.std(ddof=1) + advantage.STD_FLOOR))
    assert not advantage.estimator("quantile", 0.4)(np.ones(8)).any()


def test_over_the_deviation_of_the_batch():
    groups = [np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0, 3.0])]
    std = np.concatenate(groups).std(ddof=1) + advantage.STD_FLOOR
    made = advantage.over_batch(groups)
    for found, right in zip(made, ([-0.5, 0.5], [0, 0], [-1, -1, 2])):
        np.testing.assert_allclose(found, np.array(right) / std)


def test_without_a_baseline_it_is_the_reward(tiny):
    made = build(load(tiny, "method=nsr"))
    groups = steps.groups(made)[1]
    x = steps.batch(made, groups)
    reward_B = [score.reward for group in groups for score in group.scores]
    assert set(reward_B) == {-1.0, 1.0} and x.advantage_BT[:, 0].tolist() == reward_B


def test_a_batch_s_deviation_in_a_step(tiny):
    made = build(load(tiny, "method=grpo", "advantage.kind=batch"))
    groups = steps.groups(made)[1]
    x = steps.batch(made, groups)
    rewards = [np.array([score.reward for score in group.scores]) for group in groups]
    np.testing.assert_allclose(x.advantage_BT[:, 0].numpy(), np.concatenate(advantage.over_batch(rewards)), rtol=1e-6)
