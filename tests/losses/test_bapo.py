import pytest

from .batches import assert_reinforce_at_ratio_one, assert_same, evaluated, one_row, ragged


def found(x, **knobs) -> tuple[float, float]:
    _, _, facts = evaluated("bapo", x, **knobs)
    assert facts["clip_low"].unique().numel() == facts["clip_high"].unique().numel() == 1
    return facts["clip_low"][0, 0].item(), facts["clip_high"][0, 0].item()


@pytest.mark.parametrize(
    "share, low, high",
    [(0.3, 0.5, 1.25), (0.4, 0.5, 1.5), (0.5, 0.5, 2.0), (0.7, 0.75, 2.0)],
    ids=["at once", "one step up", "three steps up", "to the end"],
)
def test_bounds_by_hand(share, low, high):
    """A = 1 at r = 4 against A = −2 at r = 1: shares c / (c + 2) of 0.38, 0.43, 0.47 and 0.5 at
    c_high of 1.25, 1.5, 1.75 and 2; c_low is raised when c_high has reached its end."""
    x = one_row([(1.0, 4.0), (-2.0, 1.0)])
    ends = dict(low_start=0.5, low_end=0.75, low_step=0.125, high_start=1.25, high_end=2.0, high_step=0.25)
    assert found(x, positive_share=share, **ends) == (low, high)


def test_a_step_that_overshoots_ends_at_the_end():
    x = one_row([(-2.0, 1.0)])
    assert found(x) == (0.9, 3.0)  # no positive token, so the share is never reached
    assert found(x, low_step=0.5, high_step=0.7) == (0.9, 3.0)


def test_the_share_is_that_of_the_tokens_inside_the_mask():
    x = ragged()
    padded = x.but(advantage_BT=x.advantage_BT - 100 * (1 - x.mask_BT))
    assert found(padded, positive_share=0.3) == found(x, positive_share=0.3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.45, 1.0])
def test_with_the_bounds_it_finds_it_is_ppo_clip(share):
    x = ragged()
    low, high = found(x, positive_share=share)
    assert_same(
        evaluated("bapo", x, positive_share=share), evaluated("ppo_clip", x, eps_low=1 - low, eps_high=high - 1)
    )
    if share == 0:
        assert (low, high) == (0.6, 1.2)


def test_at_ratio_one_it_is_reinforce():
    assert_reinforce_at_ratio_one("bapo")
