"""Groups of any size, responses from elsewhere, prompts sampled twice; losses that draw, and knobs
that set themselves."""

import dataclasses
import json
import textwrap

import numpy as np
import pytest
import torch

from cegppo import losses
from cegppo.record.files import read_lines
from cegppo.rollout.collect import Collected
from cegppo.train import train
from cegppo.trainer import Trainer, with_draws
from cegppo.types import ORIGINS, BadInput, Group, Score, Verdict

from .test_train import Silent, gradient, load, without_times


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    """A folder whose files are losses too."""
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path / "losses")])
    (tmp_path / "losses").mkdir()
    return tmp_path / "losses"


def ragged(collected: Collected, sizes: list[int]) -> Collected:
    groups = [Group(g.prompt, g.rollouts[:n], g.scores[:n]) for g, n in zip(collected.groups, sizes)]
    return Collected(groups, groups, 0)


def test_groups_need_not_be_of_one_size(tiny):
    trainer = Trainer(load(tiny))
    collected = ragged(trainer.collect(0), [4, 2, 3, 4])
    x = trainer.batch(collected)
    assert x.group_B.tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [3] * 4
    for n, group in enumerate(collected.trained):
        reward_G = np.array([score.reward for score in group.scores])
        spread = reward_G.std(ddof=1) + 1e-6
        expected = (reward_G - reward_G.mean()) / spread if np.ptp(reward_G) else np.zeros(len(group))
        np.testing.assert_allclose(x.advantage_BT[x.group_B == n, 0], expected, rtol=1e-5, atol=1e-6)
    assert sum(map(len, trainer.mini_batches(x))) == 13


def test_the_same_prompt_twice_in_a_step_is_two_groups_and_draws_anew(tiny):
    trainer = Trainer(load(tiny))
    prompts = trainer.stream.take(2)
    first, again = (trainer.sampler.sample(prompts, 3, 0, first=k) for k in (0, 3))
    assert [r.index for r in again] == [3, 4, 5, 3, 4, 5]
    assert [r.token_ids for r in first] != [r.token_ids for r in again]
    whole = trainer.sampler.sample(prompts, 6, 0)
    assert [r.token_ids for r in whole[3:6]] == [r.token_ids for r in again[:3]]
    groups = [
        Group(prompts[0], tuple(part), tuple(Score(float(i), Verdict.WRONG, float(i)) for i in range(3)))
        for part in (first[:3], again[:3])
    ]
    x = trainer.batch(Collected(groups, groups, 0))
    assert x.group_B.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(x.advantage_BT[:3, 0], x.advantage_BT[3:, 0])


def test_a_response_from_elsewhere_keeps_its_own_old_logprobs(tiny):
    trainer = Trainer(load(tiny))
    rollouts = trainer.sampler.sample(trainer.stream.take(1), 3, 0)
    own = tuple(-0.5 - 0.01 * t for t in range(len(rollouts[1].token_ids)))
    mixed = [
        rollouts[0],
        dataclasses.replace(rollouts[1], origin="teacher", old_logprobs=own),
        dataclasses.replace(rollouts[2], origin="replay"),
    ]
    zeros = np.zeros(3)
    plain, x = (trainer.policy.collate(rows, zeros, zeros, zeros) for rows in (rollouts, mixed))
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
    trainer = Trainer(load(tiny, "loss.name=half", "update.grad_clip=0"))
    assert trainer.objective.draws
    mini = with_draws(trainer.batch(trainer.collect(0)), [0, 1, 2])
    inside = mini.mask_BT.bool()
    assert 0 <= mini.uniform_BT[inside].min() and mini.uniform_BT[inside].max() < 1
    assert mini.uniform_BT[inside].unique().numel() > 0.9 * inside.sum()
    whole, tally, _ = gradient(trainer, mini, 10**9)
    parts, parts_tally, _ = gradient(trainer, mini, 1)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()
    assert parts_tally.sums["fact/kept"] == tally.sums["fact/kept"] == (mini.uniform_BT[inside] < 0.5).sum()
    other, _, _ = gradient(trainer, with_draws(mini, [0, 1, 3]), 10**9)
    assert (other - whole).norm() > 0.1 * whole.norm()


CONTROLLER = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Params:
    gain: float = 1.0

class Doubling:
    moving = ("gain",)

    def __init__(self, values, steps):
        self.gain = values["gain"]

    def at(self, step):
        return {"gain": self.gain}

    def observe(self, metrics):
        self.gain *= 2 if metrics["entropy/mean"] > 0 else 1

    def state(self):
        return {"gain": self.gain}

    def restore(self, state):
        self.gain = state["gain"]

make_knobs = Doubling

def token_loss(x, p):
    return -p.gain * x.advantage_BT * x.logprob_BT, {}
"""


def test_knobs_that_set_themselves_are_logged_saved_and_restored(tiny, tmp_path, own_losses):
    (own_losses / "doubling.py").write_text(CONTROLLER)
    options = ["loss.name=doubling", "loss.gain=0.5"]
    train(load(tiny, *options, "steps=4", f"run_dir={tmp_path / 'whole'}"), Silent())
    rows = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [row["knob/gain"] for row in rows] == [0.5, 1.0, 2.0, 4.0]
    state = json.loads((tmp_path / "whole" / "checkpoints" / "latest" / "state.json").read_text())
    assert state["knobs"] == {"gain": 8.0}
    train(load(tiny, *options, "steps=2", f"run_dir={tmp_path / 'parts'}"), Silent())
    train(load(tiny, *options, "steps=4", f"run_dir={tmp_path / 'parts'}"), Silent())
    assert without_times(tmp_path / "parts" / "metrics.jsonl") == without_times(tmp_path / "whole" / "metrics.jsonl")


def test_a_knob_that_is_no_float_only_steps(tiny, own_losses):
    (own_losses / "counted.py").write_text(CONTROLLER.replace("gain: float = 1.0", "gain: int = 1"))
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

    trainer = Trainer(load(tiny, "loss.name=narrow"))
    mini = moved(trainer, trainer.batch(trainer.collect(0)))
    _, tally, _ = gradient(trainer, mini, 10**9)
    m = tally.metrics(1)
    now = trainer.policy.evaluate(mini)["logprob_BT"]
    ratio, a = (now - mini.old_logprob_BT).exp(), mini.advantage_BT
    even = (torch.arange(ratio.shape[1]) % 2 == 0) & mini.mask_BT.bool()
    assert m["clip/low"] == pytest.approx(float((even & (a < 0) & (ratio < 0.99)).sum() / mini.mask_BT.sum()))
    assert m["clip/high"] == pytest.approx(float((even & (a > 0) & (ratio > 1.01)).sum() / mini.mask_BT.sum()))
    assert m["clip/low"] > 0 and m["clip/high"] > 0 and "fact/clip_low" not in m
