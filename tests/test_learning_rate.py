"""The learning rate over a run: constant, straight, along a cosine, with a rise at the start."""

import math

import pytest
import torch

from cegppo import config
from cegppo.record.files import read_lines
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput

from . import steps
from .test_train import Silent, load, without_times


def rates(tiny, folder, *overrides):
    run_training(load(tiny, "eval_every=0", f"run_dir={folder}", *overrides), Silent())
    return [row["lr"] for row in read_lines(folder / "metrics.jsonl")]


def test_cosine_with_a_rise(tiny, tmp_path):
    found = rates(
        tiny, tmp_path / "run", "steps=5", "update.lr=[[0, 0.01], [100%, 0, cosine]]", "update.warmup_steps=2"
    )
    wanted = [0.01 * (1 + math.cos(math.pi * step / 5)) / 2 * min(1, (step + 1) / 2) for step in range(5)]
    assert found == pytest.approx(wanted)


def test_a_rise_and_a_fall_as_one_schedule(tiny, tmp_path):
    found = rates(tiny, tmp_path / "run", "steps=5", "update.lr=[[0, 0], [2, 0.01, linear], [4, 0.002, linear]]")
    assert found == pytest.approx([0, 0.005, 0.01, 0.006, 0.002])


def test_a_rate_of_zero_moves_nothing(tiny):
    """What is logged is what the optimizer goes by."""
    state = build(load(tiny, "steps=4", "update.lr=[[0, 0.0], [1, 0.01]]", "diagnostics.every=0"))
    weights = lambda: torch.cat([p.detach().flatten().clone() for p in state.policy.model.parameters()])
    before = weights()
    assert steps.step(state)["lr"] == 0 and torch.equal(weights(), before)
    assert steps.step(state)["lr"] == 0.01 and not torch.equal(weights(), before)


class Interrupting(Silent):
    def step(self, step, *_):
        if step == 3:
            raise KeyboardInterrupt


def test_a_resumed_run_is_the_same(tiny, tmp_path):
    """With the critic's rate on a schedule of its own."""
    words = [
        "method=ppo",
        "steps=5",
        "update.lr=[[0, 0.001], [100%, 0.0, cosine]]",
        "critic.lr=[[0, 0.01], [40%, 0.001]]",
    ]
    run_training(load(tiny, *words, f"run_dir={tmp_path / 'whole'}"), Silent())
    again = load(tiny, *words, f"run_dir={tmp_path / 'twice'}")
    with pytest.raises(KeyboardInterrupt):
        run_training(again, Interrupting())
    run_training(again, Silent())
    rows = without_times(tmp_path / "whole" / "metrics.jsonl")
    assert without_times(tmp_path / "twice" / "metrics.jsonl") == rows
    assert [row["critic/lr"] for row in rows] == [0.01, 0.01, 0.001, 0.001, 0.001]
    with pytest.raises(BadInput, match="holds another run: "):  # 40 % of a longer run is another step
        run_training(load(tiny, *words, "steps=10", f"run_dir={tmp_path / 'whole'}"), Silent())


def test_a_schedule_is_what_it_is_by_steps(tiny):
    of = lambda lr, steps=10: config.load(tiny, [f"update.lr={lr}", f"steps={steps}"])[0].identity()
    assert of("[[0, 1e-3], [50%, 1e-4]]") == of("[[0, 1e-3], [5, 1e-4]]") != of("[[0, 1e-3], [50%, 1e-4]]", 12)


@pytest.mark.parametrize(
    "given, part",
    [
        ("[[0, 1e-3], [50%, 11]]", "command line: update.lr must be in [0, 10], not "),
        ("[[0, 1e-3], [50%, .nan]]", "command line: update.lr must be finite"),
        ("[[1, 1e-3]]", "command line: update.lr: a schedule begins at 0"),
        ("[[0, x]]", "command line: update.lr: a schedule takes numbers"),
        ("[[0, true]]", "command line: update.lr: a schedule takes numbers"),
        ("[0.1, 0.2]", "command line: update.lr: a schedule is a list of [step, value]"),
        ("[]", "command line: update.lr: a schedule is a list of [step, value]"),
        ("[[0, 0.1], [9, 0.2, cosin]]", "goes linear or cosine from one value to the next, not 'cosin'"),
        ("fast", "command line: update.lr: Value 'fast' of type 'str' could not be converted"),
    ],
)
def test_bad_rates(tiny, given, part):
    with pytest.raises(BadInput) as error:
        config.load(tiny, [f"update.lr={given}"])
    assert part in str(error.value) and "\n" not in str(error.value)
