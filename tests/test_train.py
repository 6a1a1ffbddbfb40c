"""The loop on a tiny model: gradients do not know about micro-batches, runs repeat and resume
bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import run
from cegppo import config, losses
from cegppo.batch import split_evenly, with_draws
from cegppo.instrument.tally import Tally
from cegppo.model.critic import value_loss
from cegppo.objective import Objective, Terms, aggregation, kl_penalty
from cegppo.record.files import read_lines
from cegppo.record.run import Record, checkpoint
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput, TokenBatch

from . import steps

ROOT = Path(__file__).resolve().parent.parent


class Silent:
    def start(self, *_): ...
    def step(self, *_): ...
    def evaluated(self, *_): ...
    def say(self, *_): ...


def load(tiny, *overrides):
    return config.load(tiny, list(overrides))[0]


def objective(settings):
    """The objective of the first step of the run of `settings`."""
    return steps.objective(settings)


def without_times(path):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_lines(path)]


def gradient(state, mini, micro_batch_tokens, chosen=None):
    """The mini-batch's gradient, flat, and its tally; parameters stay as they are."""
    state.policy.micro_batch_tokens = micro_batch_tokens
    optimizer = torch.optim.SGD(state.policy.model.parameters(), lr=0.0)
    tally = Tally()
    norm = steps.update(state.policy, optimizer, mini, chosen or steps.now(state), tally)
    return torch.cat([p.grad.flatten() for p in state.policy.model.parameters()]), tally, norm


def moved(state, mini):
    """`mini` with old log-probabilities shifted, so that the ratio leaves the clip interval in
    places."""
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(mini.mask_BT.shape, generator=generator) * 0.4 * mini.mask_BT
    return mini.but(old_logprob_BT=mini.old_logprob_BT + shift)


EXTRAS = [
    "update.kl_coef=0.1",
    "update.nll_coef=0.1",
    "update.entropy_coef=0.01",
    "update.dual_clip=1.2",
    "update.grad_clip=0",
]


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", losses.names())
def test_micro_batches_do_not_change_the_gradient(tiny, name, aggregate):
    state = build(load(tiny, f"loss.name={name}", f"update.aggregate={aggregate}", *EXTRAS))
    mini = with_draws(moved(state, steps.batch(state)), [0, 1, 2])
    mini = mini.but(correct_B=torch.arange(len(mini)).remainder(3).eq(0).float())
    whole, tally, norm = gradient(state, mini, 10**9)
    sizes = []
    for tokens in (100, 50, 1):  # two, four and more ways, down to a row at a time
        state.policy.micro_batch_tokens = tokens
        sizes.append(len(list(state.policy.micro_batches(mini))))
        parts, parts_tally, _ = gradient(state, mini, tokens)
        assert (parts - whole).norm() <= 1e-5 * whole.norm()
        for key, value in tally.metrics(1).items():
            assert parts_tally.metrics(1)[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert sizes[0] > 1 and sizes[-1] == len(mini) and norm > 0


def test_a_whole_batch_loss_sees_the_whole_batch(tiny, monkeypatch):
    """A rule with statistics of the mini-batch gets them exactly, however it is cut."""
    import types as pytypes

    from cegppo.losses import ppo_clip

    def token_loss(x, p):
        inside = x.mask_BT.bool()
        spread = (x.logprob_BT.detach()[inside] - x.logprob_BT.detach()[inside].mean()).std()
        return -x.advantage_BT * x.logprob_BT * spread, {"positive": x.advantage_BT > 0}

    state = build(load(tiny))
    module = pytypes.SimpleNamespace(Params=ppo_clip.Params, token_loss=token_loss, WHOLE_BATCH=True)
    objective = Objective(module, ppo_clip.Params(), steps.now(state).terms)
    mini = steps.batch(state)
    whole, tally, _ = gradient(state, mini, 10**9, objective)
    parts, parts_tally, _ = gradient(state, mini, 100, objective)
    assert (parts - whole).norm() <= 1e-5 * whole.norm()
    assert parts_tally.sums["loss/policy"] == pytest.approx(tally.sums["loss/policy"], rel=1e-5)
    assert parts_tally.sums["fact/positive"] == tally.sums["fact/positive"] == (mini.advantage_BT > 0).sum()
    module.WHOLE_BATCH = False  # the check can fail: without the promise the parts differ
    parts, _, _ = gradient(state, mini, 100, objective)
    assert (parts - whole).norm() > 1e-3 * whole.norm()


def test_the_update_is_the_gradient_of_the_stated_loss(tiny):
    """Against autograd on the loss written out by hand, every term on."""
    state = build(load(tiny, "method=cegppo", *EXTRAS))
    mini = moved(state, steps.batch(state))
    mini = mini.but(correct_B=torch.arange(len(mini)).remainder(2).float())
    ours, _, _ = gradient(state, mini, 300)
    s = state.policy.statistics(mini, entropy_grad=True)
    inside = mini.mask_BT.bool()
    logp, old, adv, ref = (
        s.logprob_N,
        mini.old_logprob_BT[inside],
        mini.advantage_BT[inside],
        mini.ref_logprob_BT[inside],
    )
    right = (mini.correct_B[:, None] * mini.mask_BT)[inside]
    ratio = (logp - old).exp()
    low, high = (adv < 0) & (ratio < 0.8), (adv > 0) & (ratio > 1.2)
    token = torch.where(low, -0.5 * 0.8 * adv * logp, torch.where(high, -1.2 * adv * logp, -ratio * adv))
    token = torch.where((adv < 0) & (ratio > 1.2), 0.0, token)
    loss = (
        token.mean()
        - 0.01 * s.entropy_N.mean()
        + 0.1 * ((ref - logp).exp() - 1 - (ref - logp)).mean()
        - 0.1 * (right * logp).sum() / right.sum()
    )
    state.policy.model.zero_grad()
    loss.backward()
    by_hand = torch.cat([p.grad.flatten() for p in state.policy.model.parameters()])
    assert low.any() and high.any()
    assert (ours - by_hand).norm() <= 1e-4 * by_hand.norm()


def test_a_loss_may_read_the_entropy_with_a_gradient(tiny):
    """With an entropy term on, the slope of every term reaches the model."""
    import types as pytypes

    from cegppo.losses import ppo_clip

    state = build(load(tiny, "update.entropy_coef=0.01", "update.grad_clip=0"))
    module = pytypes.SimpleNamespace(
        Params=ppo_clip.Params, token_loss=lambda x, p: (x.entropy_BT**2 - x.logprob_BT, {})
    )
    mini = steps.batch(state)
    ours, _, _ = gradient(state, mini, 200, Objective(module, ppo_clip.Params(), steps.now(state).terms))
    s = state.policy.statistics(mini, entropy_grad=True)
    state.policy.model.zero_grad()
    (s.entropy_N.square() - s.logprob_N - 0.01 * s.entropy_N).mean().backward()
    by_hand = torch.cat([p.grad.flatten() for p in state.policy.model.parameters()])
    assert (ours - by_hand).norm() <= 1e-5 * by_hand.norm()


def test_aggregation_by_hand():
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    x = TokenBatch(*(torch.zeros(2, 3),) * 3, mask, torch.zeros(2, 3))
    assert aggregation(x, "token", 5).tolist() == (mask / 4).tolist()
    torch.testing.assert_close(aggregation(x, "sequence", 5), torch.tensor([[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]]))
    torch.testing.assert_close(aggregation(x, "constant", 5), mask / 10)


def test_kl_estimators_by_hand():
    logp, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    assert kl_penalty(logp, ref, "k1").item() == pytest.approx(0.5)
    assert kl_penalty(logp, ref, "k2").item() == pytest.approx(0.125)
    assert kl_penalty(logp, ref, "k3").item() == pytest.approx(np.exp(-0.5) - 1 + 0.5)


def test_the_log_ratio_of_k3_is_capped():
    """Where the reference is e^90 times as probable the term is finite, and so is its gradient."""
    logp = torch.tensor([-92.0], requires_grad=True)
    value = kl_penalty(logp, torch.tensor([-2.0]), "k3")
    assert value.item() == pytest.approx(np.expm1(20) - 20) and torch.autograd.grad(value.sum(), logp)[0].isfinite()


@pytest.mark.parametrize("kind, share", [("k1", 0.0), ("k2", 1.0)])
def test_the_expected_gradient_of_an_estimator_is_the_exact_one_or_none(kind, share):
    """Over tokens drawn from the policy, k2's gradient is the exact KL's; k1's vanishes, so it
    is no loss term."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
    z, ref = draw().requires_grad_(), draw().log_softmax(-1)
    logp = z.log_softmax(-1)
    (right,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), z, retain_graph=True)
    mean = (logp.exp().detach() * kl_penalty(logp[None], ref[None], kind)[0]).sum()
    (found,) = torch.autograd.grad(mean, z)
    torch.testing.assert_close(found, share * right, atol=1e-12, rtol=1e-12)


def test_k1_is_no_loss_term(tiny):
    with pytest.raises(BadInput, match="command line: update.kl_estimator=k1: its gradient is .* use k2 or k3"):
        config.load(tiny, ["update.kl_estimator=k1"])
    with pytest.raises(BadInput, match="update.kl_estimator=k1: its gradient is"):
        Terms(kl_coef=0.1, kl_estimator="k1")


def test_clipped_value_loss_by_hand():
    one = torch.ones(1, 1)
    x = TokenBatch(one, one, one, one, one, old_value_BT=0 * one, return_BT=one)
    loss, clipped = value_loss(0.3 * one, x, 0.5)  # near the old value: plain
    assert loss.item() == pytest.approx(0.5 * 0.7**2) and not clipped
    value = (0.9 * one).requires_grad_()
    loss, clipped = value_loss(value, x, 0.5)  # has moved too far already: ½ (0.5 − 1)², no gradient
    assert loss.item() == pytest.approx(0.125) and clipped
    assert torch.autograd.grad(loss.sum(), value)[0].item() == 0.0


@pytest.mark.parametrize("method", config.methods())
def test_every_method_trains(tiny, tmp_path, method):
    folder = tmp_path / method
    assert (
        run_training(load(tiny, f"method={method}", f"run_dir={folder}", "steps=2", "overlong_buffer=0.3"), Silent())
        == "finished"
    )
    rows = read_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(v is None or np.isfinite(v) for row in rows for v in row.values())
    assert rows[-1]["mismatch/max"] < 1e-5
    assert [(row["step"], row["benchmark"]) for row in read_lines(folder / "eval.jsonl")] == [(0, "sums"), (2, "sums")]
    assert ("critic/explained_variance" in rows[0]) == (method in ("ppo", "soft_ppo"))
    assert json.loads((folder / "meta.json").read_text())["status"] == "finished"


def test_same_seed_same_metrics_and_another_seed_others(tiny, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_training(load(tiny, f"seed={seed}", f"run_dir={tmp_path / name}"), Silent())
    a, b, c = (without_times(tmp_path / name / "metrics.jsonl") for name in "abc")
    assert a == b and a != c


def test_cegppo_with_betas_zero_is_grpo_step_by_step(tiny, tmp_path):
    run_training(load(tiny, "method=grpo", "steps=5", f"run_dir={tmp_path / 'grpo'}"), Silent())
    run_training(
        load(tiny, "method=cegppo", "loss.beta1=0", "loss.beta2=0", "steps=5", f"run_dir={tmp_path / 'ce'}"), Silent()
    )
    grpo, ce = (without_times(tmp_path / name / "metrics.jsonl") for name in ("grpo", "ce"))
    assert any(row["clip/low"] + row["clip/high"] > 0 for row in grpo)  # else the comparison would say nothing
    for left, right in zip(grpo, ce):
        left.pop("loss/policy"), right.pop("loss/policy")  # the values differ by constants
        assert left == pytest.approx(right, rel=1e-6, nan_ok=True)


def start(tiny, folder, *overrides):
    command = [sys.executable, str(ROOT / "run.py"), "train", str(tiny), f"run_dir={folder}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_steps(folder, count, process):
    while len(read_lines(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cegppo", "ppo"])
def test_killed_and_continued_equals_never_killed(tiny, tmp_path, method):
    options = [f"method={method}", "steps=12", "checkpoint_every=3", "update.nll_coef=0.1"]
    run_training(load(tiny, *options, f"run_dir={tmp_path / 'whole'}"), Silent())
    folder = tmp_path / "killed"
    for count in (2, 5, 8):  # before the first checkpoint, between two, and again
        process = start(tiny, folder, *options)
        wait_for_steps(folder, count, process)
        process.kill()
        process.wait()
    last = start(tiny, folder, *options)
    assert last.wait(timeout=120) == 0, last.stdout.read()
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert without_times(folder / name) == without_times(tmp_path / "whole" / name)
    assert len(json.loads((folder / "meta.json").read_text())["sessions"]) == 4


def test_a_save_that_died_halfway_is_not_seen(tiny, tmp_path):
    options = load(tiny, "steps=2", f"run_dir={tmp_path / 'run'}")
    run_training(options, Silent())
    before = checkpoint(tmp_path / "run").resolve()
    record = Record(options)
    record.begin(2)
    with pytest.raises(RuntimeError):
        record.save_checkpoint(3, lambda folder: (_ for _ in ()).throw(RuntimeError("disk full")), best=False)
    assert checkpoint(tmp_path / "run").resolve() == before and (before / "model.safetensors").is_file()
    record.save_checkpoint(3, lambda folder: (folder / "state.json").write_text("{}"), best=False)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert "latest" in names and not any("unfinished" in n for n in names)
    record.close("stopped")


@pytest.mark.slow
def test_interrupt_stops_where_it_resumes(tiny, tmp_path):
    process = start(tiny, tmp_path / "run", "steps=4000", "checkpoint_every=100000", "eval_every=0")
    wait_for_steps(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    state = json.loads((checkpoint(tmp_path / "run") / "state.json").read_text())
    assert state["step"] == rows[-1]["step"]
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["status"] == "stopped"


def test_a_folder_in_use_or_of_another_run_is_refused(tiny, tmp_path):
    first = load(tiny, f"run_dir={tmp_path / 'run'}")
    record = Record(first)
    with pytest.raises(BadInput, match="another live process"):
        Record(first)
    record.close("failed")
    Record(load(tiny, f"run_dir={tmp_path / 'run'}", "update.lr=0.25")).close(
        "failed"
    )  # nothing was recorded: not yet a run
    run_training(first, Silent())
    with pytest.raises(BadInput, match=r"holds another run: update.lr was 0.001, is now 0.5"):
        Record(load(tiny, f"run_dir={tmp_path / 'run'}", "update.lr=0.5"))
    Record(load(tiny, f"run_dir={tmp_path / 'run'}", "steps=50")).close("stopped")  # only longer: the same run


def test_a_damaged_checkpoint_is_one_clear_line_and_nothing_is_lost(tiny, tmp_path):
    folder = tmp_path / "run"
    run_training(load(tiny, "steps=2", f"run_dir={folder}"), Silent())
    before = (folder / "metrics.jsonl").read_bytes()
    path = checkpoint(folder) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="unreadable checkpoint"):
        run_training(load(tiny, "steps=4", f"run_dir={folder}"), Silent())
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_refill_fills_the_batch_and_drop_shrinks_it(tiny):
    sure = ["reward=task", "reward_values=[0.0,1.0]"]  # the tiny model is always wrong: every group is constant
    state = build(load(tiny, *sure, "rollout.drop_constant_groups=drop"))
    sampled, trained = steps.groups(state)
    assert trained == [] and len(sampled) == 4 and all(group.constant for group in sampled)
    state = build(load(tiny, "rollout.drop_constant_groups=refill", "group_size=2", "prompts_per_step=8"))
    sampled, trained = steps.groups(state)  # random rewards: half of the pairs are constant
    rewards = np.array([[score.reward for score in group.scores] for group in trained])
    assert len(rewards) == 8 and (np.ptp(rewards, axis=1) > 0).all() and len(sampled) > 8


def test_dropped_groups_make_fewer_updates_of_about_the_same_size(tiny):
    """Eight prompts sampled, at most four trained on, two updates: an update is of two groups of
    four."""
    state = build(load(tiny, "rollout.drop_constant_groups=drop", "rollout.prompts_per_round=8"))
    sampled, trained = steps.groups(state)
    assert len(sampled) == 8 and len(trained) <= 4
    x = steps.batch(state, trained)
    part = lambda rows: x.rows(torch.arange(rows))
    sizes = lambda rows: [len(mini) for mini in split_evenly(state.config, part(rows), steps.now(state), 0)]
    assert [sizes(n) for n in (16, 12, 8, 4)] == [[8, 8], [6, 6], [8], [4]]


def test_a_length_penalty_does_not_make_a_group_teach(tiny):
    """DAPO: all wrong is all wrong, however long the answers."""
    state = build(load(tiny, "reward=task", "method=dapo", "overlong_buffer=0.9", "rollout.max_refills=1"))
    sampled, trained = steps.groups(state)
    assert len({score.reward for group in sampled for score in group.scores}) > 1 and trained == []


def test_a_finished_record_without_its_checkpoint_is_not_overwritten(tiny, tmp_path):
    import shutil

    folder = tmp_path / "run"
    run_training(load(tiny, f"run_dir={folder}"), Silent())
    shutil.rmtree(folder / "checkpoints")  # as in a clone: checkpoints are not committed
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(BadInput, match="no checkpoint to continue from"):
        run_training(load(tiny, f"run_dir={folder}", "steps=9"), Silent())
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_keeps_to_the_model_it_started_from(tiny, tmp_path):
    folder = tmp_path / "run"
    run_training(load(tiny, "steps=2", f"run_dir={folder}"), Silent())
    path = checkpoint(folder) / "state.json"
    path.write_text(path.read_text().replace('"start": "', '"start": "another/'))
    with pytest.raises(BadInput, match="the run started from another"):
        run_training(load(tiny, "steps=4", f"run_dir={folder}"), Silent())


def test_on_policy_clip_facts_are_zero_and_said_so(tiny, tmp_path):
    class Listening(Silent):
        said = []

        def say(self, text):
            self.said.append(text)

    run_training(load(tiny, "updates_per_step=1", "steps=1", f"run_dir={tmp_path / 'run'}"), Listening())
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert row["clip/low"] == row["clip/high"] == 0 and row["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert any("ratio is 1" in text for text in Listening.said)


def test_random_rewards_leave_the_verdict_true(tiny, tmp_path):
    run_training(load(tiny, "steps=2", f"run_dir={tmp_path / 'run'}"), Silent())
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(row["accuracy/mean"] == row["verdict/correct"] == 0 and 0 < row["reward/mean"] < 1 for row in rows)


def test_eval_of_a_run_folder(tiny, tmp_path):
    folder = tmp_path / "run"
    run_training(load(tiny, "steps=2", f"run_dir={folder}"), Silent())
    assert run.main(["eval", str(folder), "--checkpoint", "best", "eval.k=3"]) == 0
    (row,) = read_lines(folder / "eval-best.jsonl")
    assert (row["benchmark"], row["n"], row["k"], len(row["correct"])) == ("sums", 3, 3, 3) and {
        "avg@3",
        "pass@1",
        "pass@2",
        "pass@3",
    } <= row.keys()


def test_no_gradient_lies_beside_a_rollout(tiny, monkeypatch):
    """When the sampler is handed the weights, and so when it samples."""
    state = build(config.load(tiny, ["method=ppo", "steps=2", "diagnostics.every=1"])[0])
    state.draw_probe()
    held, whole = [], state.sampler.load
    parameters = [*state.policy.model.parameters(), *state.critic.parameters()]

    def load(policy):
        held.append(any(p.grad is not None for p in parameters))
        whole(policy)

    monkeypatch.setattr(state.sampler, "load", load)
    steps.step(state)
    assert held == [False]
