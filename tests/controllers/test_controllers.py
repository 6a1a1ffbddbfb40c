"""The adaptive bonus and EntroPIC by hand, and what holds of every controller."""

import json
from pathlib import Path

import pytest

from cegppo import config, controllers
from cegppo.record.files import read_lines
from cegppo.schedules import Schedules, objective_of
from cegppo.train import run_training
from cegppo.types import BadInput

from ..test_train import Silent, without_times


def test_the_coefficient_by_hand():
    values = {"target": 0.2, "delta": 1e-3, "least": 0.0, "most": 0.002}
    made = controllers.Controller("adaptive_bonus", values, {"update.entropy_coef": 0.0}, 10)
    found = []
    for step, entropy in enumerate([0.1, 0.1, 0.1, 0.3, 0.1, 0.2, 0.2, 0.2]):
        told = made.observe(step, {"updates": 1.0, "entropy/mean": entropy})
        found.append((made.section("update")["entropy_coef"], told["controller/coefficient"]))
    # Up, up, at its upper bound; above the target down and not applied; at it is as above it.
    applied = [0.001, 0.002, 0.002, 0.0, 0.002, 0.0, 0.0, 0.0]
    kept = [0.001, 0.002, 0.002, 0.001, 0.002, 0.001, 0.0, 0.0]
    assert found == [pytest.approx(pair) for pair in zip(applied, kept, strict=True)]
    assert told["controller/error"] == 0.0 and told["controller/target"] == 0.2


def test_proportional_and_integral_by_hand():
    values = {"target": 0.5, "proportional": 1.0, "integral": 0.1}
    made = controllers.Controller("entropic", values, {"loss.alpha": 0.0}, 10)
    found = []
    for step, entropy in enumerate([0.7, 0.6, 0.4, 9.0]):
        told = made.observe(step, {"updates": 1.0, "entropy/mean": entropy})
        found.append((made.section("loss")["alpha"], told["controller/integral"]))
    # e: 0.2, 0.1, −0.1, 8.5; the sum before each: 0, 0.2, 0.3, 0.2; the last is at its bound.
    assert found == [pytest.approx(p) for p in [(0.2, 0.0), (0.12, 0.02), (-0.07, 0.03), (1.0, 0.02)]]
    again = controllers.Controller("entropic", values, {"loss.alpha": 0.0}, 10)
    again.restore(json.loads(json.dumps(made.state())))
    line = {"updates": 1.0, "entropy/mean": 0.45}
    assert again.values == made.values and again.observe(4, line) == made.observe(4, line)


def decided(name, values, start, entropies, steps=10):
    """What a controller sets after each of these entropies, as tuples in the order of `start`."""
    made, found = controllers.Controller(name, values, start, steps), []
    for step, entropy in enumerate(entropies):
        made.observe(step, {"updates": 1.0, "entropy/mean": entropy})
        found.append(tuple(made.values[key] for key in start))
        again = controllers.Controller(name, values, start, steps)
        again.restore(json.loads(json.dumps(made.state())))
        assert again.values == made.values and again.state() == made.state()
        made = again
    return found


def test_zeta_doubles_halves_and_turns_over():
    values = {"target": 0.5, "least": 1e-3, "most": 5e-3}
    found = decided("repo_r", values, {"loss.zeta": 2e-3}, [0.4, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4, 0.4, 0.4])
    # Up to its bound; at the target it stays; down, over, further down; up and over again.
    zetas = [4e-3, 5e-3, 5e-3, 2.5e-3, 1.25e-3, -1e-3, -2e-3, -4e-3, -2e-3, -1e-3, 1e-3]
    assert [zeta for (zeta,) in found] == pytest.approx(zetas)


def test_surprising_tokens_are_weighted_below_the_target():
    start = {"loss.positive": 1.1, "loss.negative": 0.9}
    assert decided("stare", {"target": 0.3}, start, [0.2, 0.4, 0.3, 0.1]) == [(1.1, 0.9), (1, 1), (1, 1), (1.1, 0.9)]
    values = {"target": 0.3, "alpha": 0.1, "most": 1.25, "least": 0.75}
    found = decided("stare", values, start, [0.2, 0.2, 0.4, 0.4, 0.3, 0.2])
    # 1.2 and 0.8, at the bounds, back to 1.05 and 0.95 while the gate is shut; at the target they
    # stay.
    assert found == [pytest.approx(w) for w in [(1.2, 0.8), (1.25, 0.75), (1, 1), (1, 1), (1, 1), (1.15, 0.85)]]


def test_the_weight_of_what_is_right_falls_below_the_target():
    values = {"target": 0.5, "delta": 0.5, "least": 0.25, "most": 1.25}
    found = decided("positive_weight", values, {"loss.positive": 1.0}, [0.4, 0.4, 0.5, 0.6, 0.7])
    assert found == [(0.5,), (0.25,), (0.75,), (1.25,), (1.25,)]


def test_a_band_outside_of_which_one_sign_trains():
    """From 0.55–0.65 in a line to 0.35–0.45."""
    start = {"loss.positive": 1.0, "loss.negative": 1.0}
    values = {"target": [[0, 0.6], [4, 0.4, "linear"]], "width": 0.1}
    found = decided("entrocraft", values, start, [0.6, 0.61, 0.56, 0.56, 0.44, 0.34])
    assert found == [(1, 1), (1, 0), (1, 0), (1, 0), (1, 1), (0, 1)]  # the band is 0.5, 0.45, 0.4 … ± 0.05


def test_entropy_swings_between_a_floor_and_a_falling_ceiling():
    """First 0.5: floor 0.1, ceiling 0.5, 0.4, 0.3, 0.2, 0.1."""
    start = {"loss.upper": 0.0, "loss.lower": 0.0}
    values = {"target": [[0, 1.0], [4, 0.2, "linear"]], "floor": 0.2}
    found = decided("oscillating", values, start, [0.5, 0.39, 0.31, 0.1, 0.1, 0.2])
    assert found == [(0, 0), (0, 0), (0, 1), (1, 0), (1, 0), (0, 1)]
    made = controllers.Controller("oscillating", values, start, 10)
    told = [made.observe(step, {"updates": 1.0, "entropy/mean": 0.5}) for step in range(2)]
    assert told[1] == pytest.approx({"controller/target": 0.4, "controller/error": -0.1})


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["controller.name=cegpo_auto"], "command line: unknown controller 'cegpo_auto'; did you mean 'cegppo_auto'?"),
        (["controller.target=0.4"], "command line: controller.target needs a controller.name"),
        (["method=entropic", "loss.alpha=2"], "command line: loss.alpha must be in [-1, 1], not 2"),
        (["method=entropic", "loss.name=ppo_clip"], "controller 'entropic' sets loss.alpha, which loss 'ppo_clip'"),
        (["controller=3"], "command line: 'controller' takes keys, not 3"),
        (
            ["controller.name=cegppo_auto"],
            "command line: controller 'cegppo_auto' sets loss.beta1, which loss 'ppo_clip'",
        ),
        (
            ["loss.name=cegppo", "controller.name=cegppo_auto", "controller.hrizon=3"],
            "did you mean 'controller.horizon'?",
        ),
        (["method=cegppo_auto", "controller.horizon=1"], "controller.horizon must be at least 2, not 1"),
        (["method=cegppo_auto", "controller.horizon=2.5"], "controller.horizon takes a int, not 2.5"),
        (["method=cegppo_auto", "controller.target=-1"], "command line: controller.target must be at least 0, not -1"),
        (
            ["method=cegppo_auto", "controller.levers=legder"],
            "controller.levers: unknown value 'legder'; did you mean 'ledger'?",
        ),
        (
            ["method=cegppo_auto", "controller.memory=[[0, 2.0]]"],
            "controller.memory takes one value; controller.target alone",
        ),
        (["method=cegppo_auto", "controller.target=[[3, 2.0]]"], "controller.target: a schedule begins at 0"),
        (
            ["method=cegppo_auto", "loss.beta1=[[0, 0.5]]"],
            "command line: loss.beta1 is set by controller 'cegppo_auto'",
        ),
        (
            ["method=repo_r", "controller.most=1e-4"],
            "loss.zeta must be within ±controller.least=0.0001 and most=0.0001",
        ),
        (["method=stare", "loss.positive=2"], "loss.positive must be within 1 and controller.most=1.5, not 2"),
        (["method=stare", "loss.negative=0.1"], "loss.negative must be within controller.least=0.5 and 1, not 0.1"),
        (["method=positive_weight", "loss.positive=3"], "loss.positive must be within controller.least=0 and most=2"),
        (["method=entrocraft", "loss.name=stare"], "controller.name sets the weights of loss.name=sign_weighted"),
        (["method=positive_weight", "loss.name=stare"], "controller.name sets a weight of loss.name=sign_weighted"),
        (["loss.name=sign_weighted", "controller.name=stare"], "controller.name sets the weights of loss.name=stare"),
        (["method=cegppo_auto", "controller.beta2_most=0.9"], "loss.beta2 must be within controller.beta2_least=0"),
        (
            ["method=cegppo_auto", "diagnostics.every=0"],
            "command line: diagnostics.every must be above 0 with controller.le",
        ),
        (
            ["method=adaptive_bonus", "update.entropy_coef=0.1"],
            "command line: update.entropy_coef must be within controller",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tiny, overrides, says):
    with pytest.raises(BadInput) as error:
        config.load(tiny, overrides)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_layers_and_identity(tiny):
    load = lambda *overrides: config.load(tiny, overrides)[0]
    auto = load("method=cegppo_auto")
    assert auto.controller["name"] == "cegppo_auto" and auto.controller["horizon"] == 20
    assert load("method=cegppo_auto", "controller.name=none").controller == {"name": "none"}
    other = load("method=cegppo_auto", "controller.name=adaptive_bonus")  # the knobs of the other are gone
    assert other.controller["target"] == 0.2 and "horizon" not in other.controller
    assert load("method=cegppo_auto", "controller.target=[[0, 1], [3, 0.5, linear]]").controller["target"] == [
        [0, 1.0],
        [3, 0.5, "linear"],
    ]
    # What a controller reads of the ledger is a part of what is trained; else looking is not.
    looked = lambda *more: load("method=cegppo_auto", *more).identity()
    assert looked() != looked("diagnostics.every=5")
    assert looked("controller.levers=logit") == looked("controller.levers=logit", "diagnostics.every=5")
    shares = [looked(f"controller.target=[[0, 1], [{when}, 0.5]]", "steps=10") for when in ("50%", 5)]
    assert shares[0] == shares[1]
    assert "mean" in config.explain(*config.load(tiny, ["method=cegppo_auto"]))


def test_what_it_sets_is_what_trains(tiny):
    settings = config.load(tiny, ["method=adaptive_bonus", "controller.target=100"])[0]
    schedules = Schedules(settings)
    schedules.observe(0, {"updates": 1.0, "entropy/mean": 3.0})
    assert objective_of(settings, schedules.at(1)).terms.entropy_coef == 1e-4
    settings = config.load(tiny, ["method=cegppo_auto", "controller.levers=logit"])[0]
    schedules = Schedules(settings)
    for step in range(3):
        schedules.observe(step, {"updates": 1.0, "entropy/mean": 3.0, "lever/low": -0.1, "lever/high": 0.1})
    params, set_to = objective_of(settings, schedules.at(3)).params, schedules.controller.values
    assert (params.beta1, params.beta2) == (set_to["loss.beta1"], set_to["loss.beta2"]) != (0.5, 1.0)


@pytest.mark.parametrize(
    "options",
    [
        ["method=cegppo_auto", "controller.target=2.0", "controller.levers=logit", "controller.beta1_most=1"],
        ["method=adaptive_bonus", "controller.target=[[0, 100.0], [2, 0.1]]", "controller.delta=1e-3"],
        ["method=entropic", "controller.target=2.0"],
        ["method=repo_r", "controller.target=9.0"],
        ["method=stare", "controller.target=[[0, 9.0], [2, 0.1]]"],
        ["method=positive_weight", "controller.target=9.0"],
        ["method=entrocraft", "controller.target=9.0"],
        ["method=flexible_clip_od", "controller.target=[[0, 9.0], [2, 0.1]]"],
    ],
    ids=lambda options: options[0].removeprefix("method="),
)
def test_a_run_goes_on_bit_for_bit(tiny, tmp_path, options):
    """Also: every line has every key, and what is logged as a knob is what was decided before."""
    options = [*options, "updates_per_step=4", "update.lr=5e-3", "eval_every=0"]
    load = lambda steps, name: config.load(tiny, [*options, f"steps={steps}", f"run_dir={tmp_path / name}"])[0]
    run_training(load(6, "whole"), Silent())
    run_training(load(4, "parts"), Silent())
    run_training(load(6, "parts"), Silent())
    lines = without_times(tmp_path / "whole" / "metrics.jsonl")
    assert lines == without_times(tmp_path / "parts" / "metrics.jsonl") and len(lines) == 6
    own = [{k: v for k, v in line.items() if k.startswith(("knob/", "controller/", "loss/"))} for line in lines]
    assert all(line.keys() == own[0].keys() and None not in line.values() for line in own)
    knobs = [tuple(v for k, v in line.items() if k.startswith("knob/")) for line in own]
    assert len(set(knobs)) > 1, "it set nothing"
    glossary = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [k for k in own[0] if k.startswith("controller/") and f"`{k}`" not in glossary] == []
    state = json.loads((tmp_path / "parts" / "checkpoints" / "latest" / "state.json").read_text())
    assert "rule" in state["controller"] and read_lines(tmp_path / "parts" / "metrics.jsonl")
