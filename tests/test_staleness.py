"""`rollout.staleness: k`: responses from the weights of k steps ago, what the ratio and the
correction are against, and that a run of them resumes bit for bit and does the same on two
ranks."""

import shutil
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from cegppo import train as loop
from cegppo.metrics import mismatch
from cegppo.model import memory
from cegppo.record.files import read_lines
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput

from . import steps
from .test_parallel import ROOT, assert_same_run, torchrun, wait_for_steps
from .test_train import Silent, load, without_times

LARGE = "update.lr=0.02"  # steps that move the tiny model visibly


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.trained()])


class Watched:
    """Keeps the weights that each step began with, those that sampled it, and its batch."""

    def __init__(self, settings):
        self.state = build(settings)
        self.policy, self.sampler, self.older = self.state.policy, self.state.sampler, self.state.older
        self.began, self.sampled_by, self.batches = [], [], []

    def step(self):
        self.began.append(weights(self))
        sample_groups, make_batch = loop.sample_groups, loop.make_batch

        def watching_groups(*args):
            self.sampled_by.append(weights(self))
            return sample_groups(*args)

        def watching_batch(*args):
            made = make_batch(*args)
            self.batches.append(made[0])
            return made

        with patch.object(loop, "sample_groups", watching_groups), patch.object(loop, "make_batch", watching_batch):
            return steps.step(self.state)


def test_age_0_has_no_copies_and_logs_no_age(tiny):
    """That its numbers are those of before is held by tests/test_golden.py."""
    trainer = build(load(tiny))
    assert "rollout/age" not in steps.step(trainer) and not trainer.older.kept and not trainer.older.parts()


@pytest.mark.parametrize("kind", ["none", "truncate"])
def test_where_nothing_moves_age_changes_nothing(tiny, kind):
    """With a learning rate of 0 the older weights are the present ones."""
    keys = ["update.lr=0", f"update.correction={kind}"]
    fresh, old = build(load(tiny, *keys)), build(load(tiny, *keys, "rollout.staleness=2"))
    for age in range(3):
        wanted, made = steps.step(fresh), steps.step(old)
        assert made.pop("rollout/age") == age and made.keys() == wanted.keys()
        for key, value in wanted.items():
            assert "time/" in key or made[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_a_step_samples_from_the_weights_of_k_steps_ago(tiny):
    trainer = Watched(load(tiny, "rollout.staleness=2", LARGE, "steps=5"))
    ages = [trainer.step()["rollout/age"] for _ in range(5)]
    assert ages == [0, 1, 2, 2, 2]
    for step, by in enumerate(trainer.sampled_by):
        assert torch.equal(by, trainer.began[max(0, step - 2)])
    assert not torch.equal(trainer.began[1], trainer.began[0])
    assert len(trainer.older.kept) == 2 and torch.equal(
        torch.cat([value.flatten() for value in trainer.older.kept[0]]), trainer.began[3]
    )


def test_an_engine_is_handed_the_older_weights_and_then_the_present_ones(tiny):
    """What a sampler with weights of its own (vllm) samples from: the older ones while a step
    samples, the present ones when it is evaluated."""
    trainer = Watched(load(tiny, "rollout.staleness=1", LARGE))
    given, usual = [], trainer.sampler.load
    trainer.sampler.load = lambda policy: (given.append(weights(trainer)), usual(policy))
    for _ in range(3):
        trainer.step()
    wanted = [trainer.began[1], trainer.began[0], trainer.began[2], trainer.began[1], weights(trainer)]
    assert len(given) == 5 and all(map(torch.equal, given, wanted))


def test_sampling_leaves_the_policy_as_it_was(tiny):
    """Bit for bit, also where sampling fails half way."""
    trainer = build(load(tiny, "rollout.staleness=1", LARGE))
    steps.step(trainer)
    before = weights(trainer)
    with trainer.older.oldest() as age:
        assert age == 1 and not torch.equal(weights(trainer), before)
    assert torch.equal(weights(trainer), before)
    with pytest.raises(ZeroDivisionError), trainer.older.oldest():
        raise ZeroDivisionError
    assert torch.equal(weights(trainer), before)


@pytest.mark.parametrize("old_logprobs", ["auto", "recompute"])
def test_the_ratio_is_against_the_weights_that_sampled(tiny, old_logprobs):
    """At the first update it is π_start / π_behaviour, not 1; entropies are of the policy that
    starts the step; the mismatch compares like with like."""
    trainer = Watched(load(tiny, "rollout.staleness=2", LARGE, f"rollout.old_logprobs={old_logprobs}"))
    for _ in range(2):
        trainer.step()
    fresh = build(load(tiny, LARGE))  # to compute with: the behaviour's weights, then those of the start
    metrics = trainer.step()
    x, inside = trainer.batches[-1], trainer.batches[-1].mask_BT.bool()

    def computed(step):
        place = 0
        with torch.no_grad():
            for p in fresh.policy.trained():
                p.copy_(trainer.began[step][place : place + p.numel()].view_as(p))
                place += p.numel()
        return fresh.policy.evaluate(x)

    behaviour, start = computed(0), computed(2)
    torch.testing.assert_close(x.old_logprob_BT, behaviour["logprob_BT"], atol=2e-5, rtol=0)
    torch.testing.assert_close(x.logprob_BT, start["logprob_BT"])
    torch.testing.assert_close(x.old_entropy_BT, start["entropy_BT"])
    assert float((x.ratio_BT[inside] - 1).abs().mean()) > 0.01
    assert metrics["mismatch/max"] < 1e-4 and metrics["kl/old_k3"] > 1e-4
    assert metrics["entropy/mean"] == pytest.approx(float(start["entropy_BT"][inside].mean()), rel=1e-5)
    assert metrics["mismatch/checked"] == (1.0 if old_logprobs == "recompute" else pytest.approx(1 / 16))


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_with_a_correction_the_ratio_is_against_the_start_and_rho_corrects_for_the_age(tiny, kind):
    """ρ = π_start / π_behaviour, and the ratio of the first update is 1; the mismatch compares
    the same weights. Without age both are what they were."""
    keys = ["rollout.staleness=1", LARGE, f"update.correction={kind}", "updates_per_step=1"]
    trainer = Watched(load(tiny, *keys, "update.correction_low=0.9", "update.correction_high=1.1"))
    first, second = trainer.step(), trainer.step()
    x, inside = trainer.batches[-1], trainer.batches[-1].mask_BT.bool()
    assert torch.equal(x.old_logprob_BT, x.logprob_BT)
    rho_N = (x.old_logprob_BT - x.sampler_logprob_BT)[inside].exp()
    assert float((rho_N - 1).abs().mean()) > 0.01 and mismatch(x)[0] < 1e-4
    wanted_N = rho_N.clamp(0.9, 1.1) if kind == "truncate" else torch.where((rho_N >= 0.9) & (rho_N <= 1.1), rho_N, 0)
    assert second["fact/correction"] == pytest.approx(float(wanted_N.mean()), rel=1e-5)
    assert second["fact/correction_cut"] > 0 and second["ratio/min"] == pytest.approx(1, abs=1e-4)
    assert first["fact/correction"] == pytest.approx(1, abs=1e-4) and first["rollout/age"] == 0


def test_a_loss_that_asks_more_of_the_old_policy_gets_it_of_the_same(tiny):
    """Lp-Reg's proxy is of the policy that the ratio is against."""
    plain, corrected = (
        Watched(load(tiny, "loss.name=lp_reg", "rollout.staleness=1", LARGE, f"update.correction={kind}"))
        for kind in ("none", "truncate")
    )
    for trainer in (plain, corrected):
        trainer.step(), trainer.step()
        x = trainer.batches[-1]
        kept = x.mask_BT.bool() & (x.proxy_logprob_BT > -1e3)
        # Without its tail a token of the same policy only gains.
        assert kept.any() and (x.proxy_logprob_BT >= x.old_logprob_BT - 1e-5)[kept].all()
    x = plain.batches[-1]
    kept = x.mask_BT.bool() & (x.proxy_logprob_BT > -1e3)
    assert not (x.proxy_logprob_BT >= x.logprob_BT - 1e-5)[kept].all()  # the check can fail


@pytest.mark.parametrize("own", [[], ["model.lora.rank=2"], ["update.correction=truncate", "method=ppo"]])
def test_a_run_resumes_bit_for_bit(tiny, tmp_path, own):
    if "model.lora.rank=2" in own:
        pytest.importorskip("peft")
    keys = [*own, "rollout.staleness=2", LARGE, "steps=5", "diagnostics.every=2", "diagnostics.probe=4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_training(load(tiny, *keys, f"run_dir={whole}"), Silent())
    for count in (1, 3, 5):  # with fewer copies than the age, and with all
        run_training(load(tiny, *[k for k in keys if k != "steps=5"], f"steps={count}", f"run_dir={parts}"), Silent())
    assert without_times(whole / "metrics.jsonl") == without_times(parts / "metrics.jsonl")
    last = [load_file(root / "checkpoints/latest/older1.safetensors") for root in (whole, parts)]
    assert last[0].keys() == last[1].keys() and all(torch.equal(last[0][k], last[1][k]) for k in last[0])
    # The check can fail: with a wrong copy the run goes another way.
    lost = tmp_path / "lost"
    run_training(load(tiny, *[k for k in keys if k != "steps=5"], "steps=3", f"run_dir={lost}"), Silent())
    files = sorted((lost / "checkpoints/latest").glob("older*.safetensors"))
    assert [f.name for f in files] == ["older1.safetensors", "older2.safetensors"]
    shutil.copy(files[0], files[1])
    run_training(load(tiny, *keys, f"run_dir={lost}"), Silent())
    assert without_times(whole / "metrics.jsonl") != without_times(lost / "metrics.jsonl")


@pytest.mark.slow
def test_two_ranks_do_what_one_does(tiny, tmp_path):
    """Stopped and continued on one rank too: a checkpoint holds whole copies."""
    keys = ["rollout.staleness=2", "steps=7", "checkpoint_every=1", "diagnostics.every=0"]
    run_training(load(tiny, *keys, f"run_dir={tmp_path / 'one'}"), Silent())
    command = [ROOT / "run.py", "train", tiny, *keys, f"run_dir={tmp_path / 'two'}"]
    process = torchrun(*command)
    wait_for_steps(tmp_path / "two", 4, process)
    process.send_signal(2)
    said, _ = process.communicate(timeout=120)
    assert "stopped" in said, said
    assert run_training(load(tiny, *keys, f"run_dir={tmp_path / 'two'}"), Silent()) == "finished"
    assert_same_run(tmp_path / "two", tmp_path / "one")
    rows = read_lines(tmp_path / "two/metrics.jsonl")
    assert [row["rollout/age"] for row in rows] == [0, 1, 2, 2, 2, 2, 2]
    assert min(row["kl/old_k3"] for row in rows[2:]) > 1e-4  # far above the tolerance: the ages matter


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["rollout.staleness=-1"], "rollout.staleness must be at least 0"),
        (["rollout.staleness=1.5"], "rollout.staleness"),
        (["rollout.stalenes=1"], "did you mean 'rollout.staleness'"),
        (["rollout.staleness=1", "explore.name=uec_rl"], "rollout.staleness must be 0 with an explore.name"),
    ],
)
def test_bad_input(tiny, overrides, message):
    with pytest.raises(BadInput, match=message):
        load(tiny, *overrides)


def test_another_age_is_another_run(tiny):
    assert load(tiny, "rollout.staleness=1").identity() != load(tiny).identity()


def test_on_a_cpu_the_copies_count_as_memory(tiny):
    trainer = build(load(tiny))
    old, new = (memory.estimate(load(tiny, f"rollout.staleness={k}"), trainer.policy.model, "cpu") for k in (0, 4))
    size = sum(p.numel() for p in trainer.policy.trained())
    assert sum(new.values()) - sum(old.values()) == 4 * 5 * size
    assert memory.estimate(load(tiny, "rollout.staleness=4"), trainer.policy.model, "cuda").get("older weights") is None
