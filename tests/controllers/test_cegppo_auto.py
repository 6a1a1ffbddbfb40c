"""β by its levers: the choice by hand, what is learnt, and closed loops with a plant that is
known."""

import json
import random

import pytest

from cegppo import controllers
from cegppo.controllers.cegppo_auto import Params, Rule, choose, strength

BOX = dict(least=[0.0, 0.0], most=[1.0, 1.0], near=[0.5, 1.0])
START = {"loss.beta1": 0.5, "loss.beta2": 1.0}


@pytest.mark.parametrize(
    "lever, wanted, beta, given",
    [
        ([-0.2, 0.1], 0.0, [0.5, 1.0], 0.0),  # (0.5, 1) is on the line
        ([-0.2, 0.0], -0.04, [0.2, 1.0], -0.04),  # one side alone; the other stays
        ([-0.4, 0.3], 0.225, [0.1875, 1.0], 0.225),  # the foot (0.3, 1.15) is outside, so along the line into the box
        ([-0.1, 0.2], -0.05, [0.9, 0.2], -0.05),  # from (0.5, 1) by (−0.05 − 0.15) / 0.05 · L, which is inside
        ([-0.2, 0.1], 0.5, [0.0, 1.0], 0.1),  # too weak upwards: the corner that raises most
        ([-0.2, 0.1], -0.5, [1.0, 0.0], -0.2),
        ([-0.2, 0.0], 0.3, [0.0, 1.0], 0.0),  # a lever that does nothing leaves its β
        ([0.0, 0.0], 0.3, [0.5, 1.0], 0.0),
        ([1e-200, 0.0], 4e-201, [0.4, 1.0], 4e-201),  # no square underflows
    ],
)
def test_the_nearest_beta_that_gives_what_is_wanted(lever, wanted, beta, given):
    found, gives = choose(lever, wanted, **BOX)
    assert found == pytest.approx(beta) and gives == pytest.approx(given)
    if given == wanted:
        assert sum(b * L for b, L in zip(found, lever, strict=True)) == pytest.approx(wanted)


def test_the_nearest_beta_against_a_grid():
    draw = random.Random(3)
    grid = [(i / 100, j / 100) for i in range(101) for j in range(101)]
    for _ in range(20):
        lever, near = [draw.uniform(-1, 1), draw.uniform(-1, 1)], [draw.random(), draw.random()]
        on = draw.choice(grid)
        wanted = on[0] * lever[0] + on[1] * lever[1]
        found, _ = choose(lever, wanted, [0.0, 0.0], [1.0, 1.0], near)
        off = lambda beta, near=near: (beta[0] - near[0]) ** 2 + (beta[1] - near[1]) ** 2
        close = [b for b in grid if abs(b[0] * lever[0] + b[1] * lever[1] - wanted) < 1e-9]
        assert all(0 <= b <= 1 for b in found) and off(found) <= min(map(off, close)) + 1e-9
        assert found[0] * lever[0] + found[1] * lever[1] == pytest.approx(wanted)


def metrics(entropy, low, high):
    return {"updates": 4.0, "entropy/mean": entropy, "lever/low": low, "lever/high": high}


def test_four_steps_by_hand():
    """H* 0.5, horizon 10, gain 2, entropy_memory 2, memory 4; levers of −0.02 and 0.01."""
    p = Params(levers="logit", horizon=10, rate=0.1, gain=2.0, memory=4.0, entropy_memory=2.0)
    rule = Rule(p, START)
    # h = 0.4. Wanted are 0.01 nats; without levers none can be had.
    values, facts = rule.decide(metrics(0.4, -0.02, 0.01), lambda ahead: 0.5)
    assert values == START and (facts["wanted"], facts["foretold"], facts["reach"]) == pytest.approx((0.01, 0.0, 0.0))
    # 0.03 more than foretold, with a weight of 1 / 1.5: h = 0.42, d = 0.02 / 4.
    values, facts = rule.decide(metrics(0.43, -0.02, 0.01), lambda ahead: 0.5)
    assert values == START and (facts["wanted"], facts["drift"]) == pytest.approx((0.008, 0.005))
    # 0.425 as foretold. Three levers are known: (0.5, 1) gives −0.02 · 0.5 + 0.01 = 0, so the drift
    # stays. Wanted 0.0075, of the sides 0.0025, in levers 0.00125: with β₂ = 1, β₁ = 0.4375.
    values, facts = rule.decide(metrics(0.425, -0.02, 0.01), lambda ahead: 0.5)
    assert (facts["drift"], facts["lever_low"], facts["lever_high"]) == pytest.approx((0.005, -0.02, 0.01))
    assert values == pytest.approx({"loss.beta1": 0.4375, "loss.beta2": 1.0}) and facts["reach"] == pytest.approx(1)
    # A leap of the target: 0.0125 of levers would be wanted, 0.01 can be had, β₁ goes one `rate`
    # towards 0. The β of the step under way gives 2 · (−0.02 · 0.4375 + 0.01) = 0.0025.
    values, facts = rule.decide(metrics(0.43, -0.02, 0.01), lambda ahead: 0.73)
    assert values == pytest.approx({"loss.beta1": 0.3375, "loss.beta2": 1.0}) and rule.given == pytest.approx(0.0025)
    assert (facts["wanted"], facts["foretold"], facts["reach"]) == pytest.approx((0.03, 0.025, 0.8))


def test_what_is_newly_known_of_a_side_is_taken_out_of_the_drift():
    """The entropy rises by 0.01 a step; when the levers of (0.5, 1) turn out to be worth 0.02 of
    it, the drift loses as much, and what is foretold stays."""
    rule = Rule(Params(gain=1.0, entropy_memory=1.0, memory=2.0), START)
    look = {"ledger/lever_low": 0.0, "ledger/lever_high": 0.02}
    for step in range(20):
        rule.decide(metrics(0.4 + 0.01 * step, 0.0, 0.02), lambda ahead: 0.5)
    assert rule.drift == pytest.approx(0.01, rel=0.01)
    for step in range(20, 23):
        _, facts = rule.decide(metrics(0.4 + 0.01 * step, 0.0, 0.02) | look, lambda ahead: 0.5)
    assert facts["drift"] == pytest.approx(-0.01, rel=0.01) and rule.given == 0.02


@pytest.mark.parametrize(
    "levers, known",
    [
        ([0.3, 0.3], 0.0),  # two say nothing of how far they scatter
        ([0.3, 0.3, 0.3], 0.3),
        ([-0.2, -0.3, -0.4, -9.0, -0.3], -0.3 * (1 - (1.2533 * 1.4826 * 0.1 / 5**0.5 / 0.3) ** 2)),  # nor one leap
        ([-0.2, 0.3, 0.1, -0.3, 0.1], 0.0),  # scatter 0.2, so an error of 0.166: no sign
        ([0.0, 0.0, 0.0, 5.0], 0.0),
    ],
)
def test_a_lever_counts_as_far_as_its_sign_is_sure(levers, known):
    assert strength(levers) == pytest.approx(known)


def test_a_side_whose_levers_differ_in_sign_stays():
    """In parameter space both sides raise the entropy, in logit space the low one lowers it."""
    rule = Rule(Params(gain=1.0, rate=1.0), START)
    look = {"ledger/lever_low": 0.02, "ledger/lever_high": 0.02}
    for _ in range(5):
        values, facts = rule.decide(metrics(0.7, -0.01, 0.01) | look, lambda ahead: 0.5)
    assert (facts["lever_low"], facts["lever_high"]) == (0.0, 0.02)
    assert values["loss.beta1"] == 0.5 and values["loss.beta2"] < 1


def closed_loop(steps, target, lever, response, disturbance, noise=0.0, seed=0, **values):
    """What a controller with wrong knowledge of its plant makes of it: H moves by `response` · β ·
    L + `disturbance` a step, levers are seen with an error of a fifth. Lines as a run logs them."""
    draw = random.Random(seed)
    given = {"target": target, "levers": "logit", "gain": 1.0, **values}
    made, entropy, lines = controllers.Controller("cegppo_auto", given, START, steps), 0.6, []
    for step in range(steps):
        beta = made.section("loss")
        seen = metrics(entropy + draw.gauss(0, noise), *(L * draw.uniform(0.8, 1.2) for L in lever))
        lines.append({"H": entropy} | made.knobs() | made.observe(step, seen))
        entropy += response * (beta["beta1"] * lever[0] + beta["beta2"] * lever[1]) + disturbance
    return lines


@pytest.mark.parametrize("response", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", [0.45, 0.75])
def test_it_reaches_the_target_and_stays(target, response):
    """A fall of 0.01 a step on its own; the sides lower it by at most 0.03 and raise it by 0.03."""
    lines = closed_loop(150, target, [-0.03 / response, 0.03 / response], response, -0.01, noise=0.003)
    assert all(abs(line["H"] - target) < 0.1 * target for line in lines[80:])
    assert sum(line["controller/reach"] for line in lines[80:]) / 70 > 0.98
    assert abs(sum(line["H"] for line in lines[-50:]) / 50 - target) < 0.015


def test_it_follows_a_curve():
    lines = closed_loop(150, [[0, 0.6], [50, 0.6], ["100%", 0.4, "linear"]], [-0.03, 0.03], 1.0, -0.01)
    assert all(abs(line["controller/error"]) < 0.1 * line["controller/target"] for line in lines[30:])


def test_it_holds_the_target_by_levers_of_every_fifth_step():
    """Those of parameter space, a tenth of what they eventually give; until the first of them the
    entropy falls as it likes."""
    made, entropy, seen = controllers.Controller("cegppo_auto", {"target": 0.5}, START, 150), 0.6, []
    for step in range(150):
        beta, looked = made.section("loss"), {"ledger/lever_low": -0.003, "ledger/lever_high": 0.003}
        told = made.observe(step, metrics(entropy, -9.0, 9.0) | (looked if step % 5 == 4 else {}))
        assert told["controller/lever_low"] == (0.0 if step < 14 else -0.003)  # of the third of them
        entropy += 10 * (beta["beta1"] * -0.003 + beta["beta2"] * 0.003) - 0.02
        seen.append(entropy)
    assert seen[13] < 0.54 and all(abs(h - 0.5) < 0.05 for h in seen[40:])


def test_where_the_levers_are_too_weak_it_says_so():
    """A fall of 0.01 a step against a high side that raises by 0.002."""
    lines = closed_loop(50, 0.6, [-0.03, 0.002], 1.0, -0.01)
    assert lines[-1]["H"] < 0.3 and (lines[-1]["knob/beta1"], lines[-1]["knob/beta2"]) == (0.0, 1.0)
    assert all(line["controller/reach"] < 0.3 for line in lines[20:])
    assert lines[-1]["controller/foretold"] < 0 < lines[-1]["controller/wanted"]


def test_no_beta_leaps():
    """Levers that are noise, an entropy that wanders: neither β moves by more than `rate` a
    step."""
    draw, made = random.Random(2), controllers.Controller("cegppo_auto", {"target": 0.7, "rate": 0.05}, START, 60)
    betas = [made.section("loss")]
    for step in range(60):
        look = {"ledger/lever_low": draw.gauss(0, 1e-3), "ledger/lever_high": draw.gauss(0, 1e-3)}
        made.observe(step, metrics(draw.gauss(0.6, 0.05), -0.01, 0.01) | look)
        betas.append(made.section("loss"))
    moved = [abs(b[name] - a[name]) for a, b in zip(betas, betas[1:]) for name in ("beta1", "beta2")]
    assert 0 < max(moved) <= 0.05 + 1e-12


def test_a_weak_lever_is_no_lasting_harm():
    """Once the disturbance is gone the target is reached without going far past it."""
    made, entropy = (
        controllers.Controller("cegppo_auto", {"target": 0.6, "levers": "logit", "gain": 1.0}, START, 300),
        0.6,
    )
    seen = []
    for step in range(300):
        beta = made.section("loss")
        made.observe(step, metrics(entropy, -0.02, 0.01))
        entropy += beta["beta1"] * -0.02 + beta["beta2"] * 0.01 - (0.02 if step < 30 else 0.0)
        seen.append(entropy)
    assert min(seen) < 0.4 and max(seen[30:]) < 0.66 and all(abs(h - 0.6) < 0.06 for h in seen[150:])


def test_without_levers_it_waits():
    made = controllers.Controller("cegppo_auto", {"target": 0.5}, START, 10)  # of the ledger, which is not looked at
    for step in range(5):
        told = made.observe(step, metrics(0.4 - 0.01 * step, -0.02, 0.01))
        assert told["controller/reach"] == 0.0 and made.section("loss") == {"beta1": 0.5, "beta2": 1.0}


def test_a_step_that_trained_nothing_sets_nothing():
    made = controllers.Controller("cegppo_auto", {"target": 0.5, "levers": "logit"}, START, 10)
    made.observe(0, metrics(0.4, -0.02, 0.01))
    before = made.state()
    for seen in ({"reward/mean": 0.0, "updates": 0.0}, metrics(float("nan"), -0.02, 0.01), {}):
        assert made.observe(1, seen) == {} and made.state() == before


def test_it_goes_on_where_it_was_saved():
    whole, parts = (controllers.Controller("cegppo_auto", {"target": 0.5, "levers": "logit"}, START, 40) for _ in "12")
    draw = random.Random(5)
    seen = [metrics(draw.uniform(0.3, 0.7), draw.gauss(-0.02, 0.01), draw.gauss(0.01, 0.01)) for _ in range(40)]
    for step, line in enumerate(seen):
        if step == 17:
            saved = json.dumps(parts.state())
            parts = controllers.Controller("cegppo_auto", {"target": 0.5, "levers": "logit"}, START, 40)
            parts.restore(json.loads(saved))
        assert whole.observe(step, line) == parts.observe(step, line) and whole.values == parts.values
