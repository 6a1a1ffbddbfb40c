"""What every rule of exploration has to keep: limits in which it is the plain loop, right ratios,
marked origins, runs that resume bit for bit."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cegppo import explore
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import ORIGINS, BadInput, Request

from .. import steps
from ..test_train import Silent, load, without_times

ROOT = Path(__file__).resolve().parent.parent.parent
GRPO = ("loss.eps_high=0.2", "update.dual_clip=0", "update.kl_coef=0")  # what a preset has besides
OFF = {  # knobs of which a rule's docstring says that they make it the plain loop
    "uec_rl": ("retries=0", "keep=0", "drop_truncated=false", "replay_every=0"),
    "aepo": ("replace=0",),
    "oger": ("swap=0", "bonus=0"),
    "improper": ("samplers='1.0'",),
}
ON = {  # that make it do all it can on the tiny model
    "uec_rl": (
        "replay_every=2",
        "replay_least=0.0",
        "replay_size=1.5",
        "retries=6",
        "keep_retried=0.1",
        "drop_truncated=false",
    ),  # fmt: skip
    "aepo": ("replace=0.3", "prompts=0.5"),
    "oger": (),
    "improper": (),
}
PAIRS = ("prompts_per_step=8", "group_size=2")  # of which a coin fails a quarter
OWN = re.compile(r"(explore|origin)/.*|entropy/(policy|replay|teacher|tempered|checkpoint)|time/.*")


def options(name, knobs):
    return [f"method={name}", *GRPO, *PAIRS, *(f"explore.{item}" for item in knobs)]


def test_every_rule_is_here():
    assert set(OFF) == set(ON) == set(explore.names())


@pytest.mark.parametrize("name", explore.names())
def test_switched_off_it_is_the_plain_loop(tiny, name):
    plain, other = build(load(tiny, "method=grpo", *PAIRS)), build(load(tiny, *options(name, OFF[name])))
    for _ in range(2):
        ours, theirs = (
            {k: v for k, v in steps.step(trainer).items() if not OWN.fullmatch(k)} for trainer in (other, plain)
        )
        assert ours == theirs
    for (key, left), (_, right) in zip(other.policy.weights(), plain.policy.weights()):
        assert torch.equal(left, right), key


@pytest.mark.parametrize("name", explore.names())
def test_switched_on_it_is_not(tiny, name):
    plain, other = build(load(tiny, "method=grpo", *PAIRS)), build(load(tiny, *options(name, ON[name])))
    for trainer in (plain, other):
        for _ in range(2):
            made = steps.step(trainer)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(other.policy.weights(), plain.policy.weights()))
    assert sum(made[f"origin/{origin}"] for origin in ORIGINS) == pytest.approx(1)
    assert made["origin/policy"] < 1


@pytest.mark.parametrize("name", [*explore.names(), "polarity", "soft", "soft_ppo"])
def test_saved_and_restored_it_goes_on_the_same(tiny, tmp_path, name):
    chosen = load(tiny, *options(name, ON.get(name, ())))
    whole, begun, continued = build(chosen), build(chosen), build(chosen)
    timeless = lambda made: {key: value for key, value in made.items() if not key.startswith("time/")}
    rows = [timeless(steps.step(whole)) for _ in range(4)]
    assert [timeless(steps.step(begun)) for _ in range(2)] == rows[:2]
    begun.save(tmp_path)
    continued.restore(tmp_path)
    assert [timeless(steps.step(continued)) for _ in range(2)] == rows[2:]


def test_stopped_and_continued_it_is_the_same_run(tiny, tmp_path):
    """With a buffer that is full of what came before the stop, and the record of a step."""
    chosen = [*options("uec_rl", ON["uec_rl"]), "diagnostics.every=4", "diagnostics.probe=3", "eval_every=0", "arm=x"]
    run_training(load(tiny, *chosen, "steps=4", f"run_dir={tmp_path / 'whole'}"), Silent())
    for count in (3, 4):
        run_training(load(tiny, *chosen, f"steps={count}", f"run_dir={tmp_path / 'parts'}"), Silent())
    rows = without_times(tmp_path / "whole" / "metrics.jsonl")
    assert without_times(tmp_path / "parts" / "metrics.jsonl") == rows
    last = rows[3]
    assert last["explore/replayed"] > 0 and last["explore/retried_trained"] > 0
    record = pd.read_parquet(tmp_path / "parts" / "tokens" / "step000004.parquet")
    tokens = record["origin"].value_counts(normalize=True)
    assert dict(tokens) == pytest.approx({o: last[f"origin/{o}"] for o in ("policy", "replay", "tempered")})
    whole = pd.read_parquet(tmp_path / "whole" / "tokens" / "step000004.parquet")
    pd.testing.assert_frame_equal(record, whole)


def tempered_logprobs(trainer, rollout, temperature):
    """log π at `temperature` of a response's tokens, from whole logits."""
    ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
    logits = trainer.policy.model(input_ids=ids).logits[0, len(rollout.prompt.token_ids) - 1 : -1]
    logp = torch.log_softmax(logits.double() / temperature, -1)
    return logp.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]


@torch.no_grad()
def test_the_ratio_of_a_tempered_response_is_against_what_it_was_sampled_from(tiny):
    trainer = build(load(tiny))
    prompts = trainer.stream.take(2)
    sample = lambda **where: trainer.sampler.sample([Request(p, i, **where) for p in prompts for i in range(3)], 0)
    rollouts = sample(temperature=1.7)
    assert {r.origin for r in rollouts} == {"tempered"}
    for rollout in rollouts:
        torch.testing.assert_close(
            torch.tensor(rollout.old_logprobs).double(), tempered_logprobs(trainer, rollout, 1.7), atol=1e-5, rtol=1e-5
        )
    zeros = np.zeros(6)
    x = trainer.policy.collate(rollouts, zeros, zeros, zeros)
    x = x.but(**trainer.policy.evaluate(x))
    for b, rollout in enumerate(rollouts):
        right = (tempered_logprobs(trainer, rollout, 1.0) - tempered_logprobs(trainer, rollout, 1.7)).exp()
        torch.testing.assert_close(x.ratio_BT[b, : len(right)].double(), right, atol=1e-4, rtol=1e-4)
    usual = sample(temperature=1.0)
    assert {r.origin for r in usual} == {"policy"} and usual == sample()


def test_the_mean_ratio_of_what_a_hotter_policy_samples_is_one(tiny):
    """E_{y ~ π^T}[π(y) / π^T(y)] = 1 for a whole response, and so for its first token."""
    trainer = build(load(tiny))
    (prompt,) = trainer.stream.take(1)
    rollouts = trainer.sampler.sample([Request(prompt, i, 1.3) for i in range(3000)], 0)
    x = trainer.policy.collate([r for r in rollouts], *(np.zeros(len(rollouts)),) * 3)
    ratio_B = (x.logprob_BT - x.old_logprob_BT)[:, 0].exp()
    assert float(ratio_B.mean()) == pytest.approx(1, abs=4 * float(ratio_B.std()) / 3000**0.5)
    assert float(ratio_B.std()) > 0.1  # the check can fail


def test_what_others_wrote_is_no_mismatch_and_needs_no_correction(tiny):
    from cegppo.metrics import mismatch
    from cegppo.objective import correction

    trainer = build(load(tiny))
    (prompt,) = trainer.stream.take(1)
    hot = trainer.sampler.sample([Request(prompt, i, 2.0) for i in range(4)], 0)
    as_policy = [dataclasses.replace(r, old_logprobs=None) for r in hot]
    mixed = [*trainer.sampler.sample([Request(prompt, 9)], 0), *hot, *as_policy]
    x = trainer.policy.collate(mixed, *(np.zeros(9),) * 3)
    assert mismatch(x)[0] < 1e-4
    assert (correction(x, "truncate", "token", 0.0, 2.0)[1:] == 1).all()


def test_a_checkpoint_as_a_sampler(tiny, tmp_path):
    moved = build(load(tiny, "update.lr=5e-2"))
    steps.step(moved)
    moved.save(tmp_path)
    trainer = build(load(tiny, "method=improper", *GRPO, f"explore.samplers='{tmp_path}@1.5,1.0'"))
    (prompt,) = trainer.stream.take(1)
    with torch.no_grad():
        for rollout in trainer.sampler.sample([Request(prompt, i, 1.5, str(tmp_path)) for i in range(4)], 0):
            assert rollout.origin == "checkpoint"
            wanted = tempered_logprobs(moved, rollout, 1.5)
            torch.testing.assert_close(torch.tensor(rollout.old_logprobs).double(), wanted, atol=1e-5, rtol=1e-5)
    for _ in range(2):
        made = steps.step(trainer)
        assert made["origin/checkpoint"] > 0 and made["ratio/max"] > 1
    theirs = dict(moved.policy.weights())
    frozen = trainer.sampler.of_checkpoint(str(tmp_path)).policy
    assert all(torch.equal(value, theirs[key]) for key, value in frozen.weights())


@pytest.mark.parametrize(
    "given, said",
    [
        (["explore.name=uecrl"], "unknown explore 'uecrl'; did you mean 'uec_rl'?"),
        (["explore.keep=0.1"], "explore.keep needs a explore.name"),
        (["method=uec_rl", "explore.keeep=0.1"], "has no knob 'explore.keeep'; did you mean 'explore.keep'?"),
        (["method=uec_rl", "explore.retries=1"], "explore.retries must be 0 (off) or at least 2, a group, not 1"),
        (["method=uec_rl", "explore.keep=[[0,0.1]]"], "explore.keep takes one value, no schedule"),
        (["method=uec_rl", "advantage.kind=gae"], "advantage.kind must be group or centred with explore.name=uec_rl"),
        (["method=uec_rl", "rollout.drop_constant_groups=drop"], "rollout.drop_constant_groups must be no with"),
        (["method=uec_rl", "rollout.engine=vllm"], "explore.ratio must be policy with rollout.engine=vllm"),
        (["method=aepo", "explore.low=2"], "explore.low must be at most explore.high=1.2, not 2"),
        (["method=oger", "explore.swap=4"], "explore.swap must be below group_size=4"),
        (["method=improper", "explore.samplers='1.0,,2'"], "must be temperatures and folders with commas between"),
        (["method=improper", "explore.samplers='0.9,0.9'"], "an item is there twice"),
        (["method=improper", "explore.samplers='-1'"], "'-1': a temperature is above 0"),
        (["method=improper", "explore.samplers='nan'"], "'nan': a temperature is above 0"),
        (["method=improper", "explore.samplers='there@hot'"], "'there@hot' does not end in a temperature above 0"),
        (["controller.name=polarity"], "advantage.polarity must be above 1 (off) with controller.name=polarity"),
    ],
)  # fmt: skip
def test_bad_values_are_one_line(tiny, given, said):
    with pytest.raises(BadInput) as error:
        load(tiny, *given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_no_checkpoint_ends_the_run_before_it_begins(tiny, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        build(load(tiny, "method=improper", f"explore.samplers='{tmp_path / 'gone'},1.0'"))


def test_the_token_record_marks_the_origin_and_metrics_have_rows(tiny):
    text = (ROOT / "docs" / "metrics.md").read_text()
    for name in explore.names():
        made = steps.step(build(load(tiny, *options(name, ON[name]))))
        own = {key for key in made if key.startswith("explore/")}
        assert own and all(f"`{re.sub('_[0-9]+$', '_…', key)}`" in text for key in own), own
    assert "`origin/{" + ",".join(ORIGINS) + "}`" in text and "`entropy/{" + ",".join(ORIGINS) + "}`" in text


def test_a_state_is_what_json_can_say(tiny):
    for name in explore.names():
        trainer = build(load(tiny, *options(name, ON[name])))
        steps.step(trainer)
        state = json.loads(json.dumps(trainer.explorer.state()))
        other = build(load(tiny, *options(name, ON[name]))).explorer
        other.restore(state)
        assert other.state() == trainer.explorer.state()


@pytest.mark.parametrize("name", [n for n in explore.names() if n != "uec_rl"])  # which has a filter of its own
def test_a_step_that_trains_nothing_still_says_what_was_done(tiny, tmp_path, name):
    (tmp_path / "none.py").write_text("def never(prompt, response):\n    return 0.0\n")
    keys = [f"reward={tmp_path / 'none.py'}:never", "rollout.drop_constant_groups=drop"]
    made = steps.step(build(load(tiny, *options(name, ON[name]), *keys)))
    usual = steps.step(build(load(tiny, *options(name, ON[name]))))
    own = lambda metrics: {key for key in metrics if key.startswith("explore/")}
    assert made["updates"] == 0 and own(made) == own(usual) and not any(key.startswith("origin/") for key in made)


def test_checkpoints_that_sample_take_memory(tiny, tiny_model):
    from transformers import AutoModelForCausalLM

    from cegppo.model.memory import estimate

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    needs = lambda *keys: estimate(load(tiny, *keys), model, "cpu", shards=2)
    plain, with_one = needs("method=improper"), needs("method=improper", f"explore.samplers='{tiny_model},1.0'")
    assert with_one["samplers"] == 4 * sum(p.numel() for p in model.parameters()) and plain["samplers"] == 0
