"""Groups of any size, responses from elsewhere, prompts sampled twice; losses that draw, and knobs
that set themselves."""

import dataclasses
import textwrap

import numpy as np
import pytest
import torch

from cegppo import losses
from cegppo.batch import split_evenly, with_draws
from cegppo.state import build
from cegppo.types import ORIGINS, BadInput, Group, Score, Verdict, requests

from . import steps
from .test_train import gradient, load


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    """A folder whose files are losses too."""
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path / "losses")])
    (tmp_path / "losses").mkdir()
    return tmp_path / "losses"


def ragged(groups: list[Group], sizes: list[int]) -> list[Group]:
    return [Group(g.prompt, g.rollouts[:n], g.scores[:n]) for g, n in zip(groups, sizes)]


def test_groups_need_not_be_of_one_size(tiny):
    state = build(load(tiny))
    groups = ragged(steps.groups(state)[0], [4, 2, 3, 4])
    x = steps.batch(state, groups)
    assert x.group_B.tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [3] * 4
    for n, group in enumerate(groups):
        reward_G = np.array([score.reward for score in group.scores])
        spread = reward_G.std(ddof=1) + 1e-6
        expected = (reward_G - reward_G.mean()) / spread if np.ptp(reward_G) else np.zeros(len(group))
        np.testing.assert_allclose(x.advantage_BT[x.group_B == n, 0], expected, rtol=1e-5, atol=1e-6)
    assert sum(map(len, split_evenly(state.config, x, steps.now(state), 0))) == 13


def test_the_same_prompt_twice_in_a_step_is_two_groups_and_draws_anew(tiny):
    state = build(load(tiny))
    prompts = state.stream.take(2)
    first, again = (state.sampler.sample(requests(prompts, 3, first=k), 0) for k in (0, 3))
    assert [r.index for r in again] == [3, 4, 5, 3, 4, 5]
    assert [r.token_ids for r in first] != [r.token_ids for r in again]
    whole = state.sampler.sample(requests(prompts, 6), 0)
    assert [r.token_ids for r in whole[3:6]] == [r.token_ids for r in again[:3]]
    groups = [
        Group(prompts[0], tuple(part), tuple(Score(float(i), Verdict.WRONG, float(i)) for i in range(3)))
        for part in (first[:3], again[:3])
    ]
    x = steps.batch(state, groups)
    assert x.group_B.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(x.advantage_BT[:3, 0], x.advantage_BT[3:, 0])


def test_a_response_from_elsewhere_keeps_its_own_old_logprobs(tiny):
    state = build(load(tiny))
    rollouts = state.sampler.but(statistics=False).sample(requests(state.stream.take(1), 3), 0)
    own = tuple(-0.5 - 0.01 * t for t in range(len(rollouts[1].token_ids)))
    mixed = [
        rollouts[0],
        dataclasses.replace(rollouts[1], origin="teacher", old_logprobs=own),
        dataclasses.replace(rollouts[2], origin="replay"),
    ]
    zeros = np.zeros(3)
    plain, x = (state.policy.collate(rows, zeros, zeros, zeros) for rows in (rollouts, mixed))
    assert [ORIGINS[o] for o in x.origin_B] == ["policy", "teacher", "replay"]
    torch.testing.assert_close(x.old_logprob_BT[1, : len(own)], torch.tensor(own))
    assert torch.equal(x.old_logprob_BT[[0, 2]], plain.old_logprob_BT[[0, 2]])
    assert (x.old_logprob_BT[1, len(own) :] == 0).all()
    assert torch.equal(x.old_entropy_BT, plain.old_entropy_BT)  # a fact of the policy, not of who wrote


def test_a_loss_that_draws_gets_the_same_draws_however_it_is_cut(tiny, own_losses):
    (own_losses / "half.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        import torch
        DRAWS = True

        @dataclass(frozen=True)
        class Params:
            share: float = 0.5

        def token_loss(x, p):
            keep_BT = x.uniform_BT < p.share
            return torch.where(keep_BT, -x.advantage_BT * x.logprob_BT, 0.0), {"kept": keep_BT}
        """)
    )
    state = build(load(tiny, "loss.name=half", "update.grad_clip=0"))
    assert steps.now(state).draws
    mini = with_draws(steps.batch(state), [0, 1, 2])
    inside = mini.mask_BT.bool()
    assert 0 <= mini.uniform_BT[inside].min() and mini.uniform_BT[inside].max() < 1
    assert mini.uniform_BT[inside].unique().numel() > 0.9 * inside.sum()
    whole, tally, _ = gradient(state, mini, 10**9)
    parts, parts_tally, _ = gradient(state, mini, 1)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()
    assert parts_tally.sums["fact/kept"] == tally.sums["fact/kept"] == (mini.uniform_BT[inside] < 0.5).sum()
    other, _, _ = gradient(state, with_draws(mini, [0, 1, 3]), 10**9)
    assert (other - whole).norm() > 0.1 * whole.norm()


COUNTED = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Params:
    gain: int = 1

def token_loss(x, p):
    return -p.gain * x.advantage_BT * x.logprob_BT, {}
"""


def test_a_knob_that_is_no_float_only_steps(tiny, own_losses):
    (own_losses / "counted.py").write_text(COUNTED)
    assert load(tiny, "loss.name=counted", "loss.gain=[[0, 1], [2, 4]]").loss["gain"] == [[0, 1], [2, 4]]
    with pytest.raises(BadInput, match="loss.gain takes a int: from one value to the next it can only step"):
        load(tiny, "loss.name=counted", "loss.gain=[[0, 1], [2, 4, linear]]")


def test_a_loss_states_its_own_bounds(tiny, own_losses):
    """The clip facts are those of the bounds that the loss returns, token by token."""
    (own_losses / "narrow.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        import torch

        @dataclass(frozen=True)
        class Params:
            pass

        def token_loss(x, p):
            place_BT = torch.arange(x.mask_BT.shape[1]).expand_as(x.mask_BT)
            even_BT = (place_BT % 2 == 0).to(x.mask_BT.dtype)  # every second token is never clipped
            bounds = dict(clip_low=0.99 * even_BT, clip_high=1.01 + 1e9 * (1 - even_BT))
            return -x.advantage_BT * x.logprob_BT, bounds
        """)
    )
    from .test_train import moved

    state = build(load(tiny, "loss.name=narrow"))
    mini = moved(state, steps.batch(state))
    _, tally, _ = gradient(state, mini, 10**9)
    m = tally.metrics(1)
    now = state.policy.evaluate(mini)["logprob_BT"]
    ratio, a = (now - mini.old_logprob_BT).exp(), mini.advantage_BT
    even = (torch.arange(ratio.shape[1]) % 2 == 0) & mini.mask_BT.bool()
    assert m["clip/low"] == pytest.approx(float((even & (a < 0) & (ratio < 0.99)).sum() / mini.mask_BT.sum()))
    assert m["clip/high"] == pytest.approx(float((even & (a > 0) & (ratio > 1.01)).sum() / mini.mask_BT.sum()))
    assert m["clip/low"] > 0 and m["clip/high"] > 0 and "fact/clip_low" not in m
