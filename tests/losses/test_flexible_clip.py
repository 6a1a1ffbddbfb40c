from pathlib import Path

import pytest
import torch

from cegppo import config
from cegppo.schedules import Schedules

from .batches import CELLS, assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged

ROOT = Path(__file__).resolve().parents[2]


def at(old_prob: float):
    return one_row(CELLS, old=torch.tensor(old_prob, dtype=torch.float64).log().item())


@pytest.mark.parametrize(
    "old_prob, low, high",
    [(0.01, 0.7 / 0.9987, 1.5 / 1.0025), (0.5, 0.7 / 0.935, 1.5 / 1.125), (0.9, 0.7 / 0.883, 1.5 / 1.225)],
)
def test_bounds_by_hand(old_prob, low, high):
    """The bounds are where the ratio meets its own ε: r = 1 + ε₊(r π_old) and 1 − ε₋(r π_old)."""
    _, _, facts = evaluated("flexible_clip", at(old_prob))
    assert facts["clip_low"][0, 0].item() == pytest.approx(low, rel=1e-12)
    assert facts["clip_high"][0, 0].item() == pytest.approx(high, rel=1e-12)
    assert high == pytest.approx(1 + (0.5 - 0.25 * high * old_prob), rel=1e-12)
    assert low == pytest.approx(1 - (0.3 - 0.13 * low * old_prob), rel=1e-12)


def test_a_mixture_by_hand():
    """Half of each: ε₊(π) = 0.35 − 0.125 π, ε₋(π) = 0.25 − 0.065 π, at π_old = 0.5."""
    _, _, facts = evaluated("flexible_clip", at(0.5), upper=0.5, lower=0.5)
    assert facts["clip_high"][0, 0].item() == pytest.approx(1.35 / 1.0625, rel=1e-12)
    assert facts["clip_low"][0, 0].item() == pytest.approx(0.75 / 0.9675, rel=1e-12)


def test_weight_and_value_in_every_cell():
    loss_BT, weight_BT, facts = evaluated("flexible_clip", at(0.5))
    low, high = facts["clip_low"][0, 0].item(), facts["clip_high"][0, 0].item()
    cut = lambda a, r: (a < 0 and r < low) or (a > 0 and r > high)
    weights = [0.0 if cut(a, r) else a * r for a, r in CELLS]
    values = [max(-a * r, -a * min(max(r, low), high)) for a, r in CELLS]
    torch.testing.assert_close(weight_BT, torch.tensor([weights], dtype=torch.float64), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_BT, torch.tensor([values], dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_without_its_lines_it_is_ppo_clip():
    x = ragged()
    ours = evaluated("flexible_clip", x, upper=0.0, lower=0.0, eps=0.15)
    assert_same(ours, evaluated("ppo_clip", x, eps_low=0.15, eps_high=0.15))


def test_with_flat_lines_any_mixture_is_ppo_clip():
    x = ragged()
    ours = evaluated("flexible_clip", x, upper=0.5, lower=0.25, upper_slope=0.0, lower_slope=0.0)
    assert_same(ours, evaluated("ppo_clip", x, eps_low=0.225, eps_high=0.35))


@pytest.mark.parametrize(
    "method, upper",
    [("flexible_clip", [1.0, 0.5, 0.0, 0.0, 0.0]), ("flexible_clip_did", [0.0, 0.5, 1.0, 1.0, 1.0])],
)
def test_the_phases(method, upper):
    """λ = 1 − 2k/T at a quarter, at half and just after, at three quarters and at the end: ε₊ mixed
    with λ or 1 − λ, then ε₋ with 1 + λ."""
    settings, _ = config.load(ROOT / "experiments" / "testbed.yaml", [f"method={method}", "steps=1000"])
    knobs = [Schedules(settings).at(step) for step in (0, 250, 500, 750, 999)]
    assert [k["loss.upper"] for k in knobs] == pytest.approx(upper)
    assert [k["loss.lower"] for k in knobs] == pytest.approx([0.0, 0.0, 1.0, 0.5, 0.002])


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("flexible_clip")
