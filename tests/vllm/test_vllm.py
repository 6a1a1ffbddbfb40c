"""vLLM for real, on a CPU: `make test-vllm`, in an environment of its own; `make test` does not
collect this folder.

The model is the testbed's own with wider heads (vLLM's CPU attention starts at 32 dimensions, the
testbed's heads have 16): the same function of its input, so it answers as the testbed does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cegppo import config
from cegppo.config import VLLM
from cegppo.metrics import mismatch
from cegppo.model.policy import Policy
from cegppo.problems import testbed
from cegppo.record.files import read_lines
from cegppo.rollout import Sampling
from cegppo.rollout.vllm import VLLMSampler, default_max_mismatch
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput, Diverged, Prompt, requests

from .. import steps
from ..test_train import Silent, without_times

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = VLLM(memory_share=0.01, max_rows=16)
RULES = dict(seed=3, max_tokens=40)
LONGEST = 400


def widened(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """The same function with heads of twice the width, the added dimensions being zero.

    Rotations go by pairs (i, i + width/2) and base^(−2i/width), so zeros follow each half and the
    base is squared. Normalised queries and keys grow by √2 each, and attention divides by √2 more:
    one √2 is taken from the keys' norm.
    """
    old, width = model.config, model.config.head_dim
    rope = {"rope_type": "default", "rope_theta": old.rope_parameters["rope_theta"] ** 2}
    wide = Qwen3ForCausalLM(Qwen3Config(**{**old.to_dict(), "head_dim": 2 * width, "rope_parameters": rope}))
    kept = torch.cat([torch.arange(width // 2), width + torch.arange(width // 2)])
    state = wide.state_dict()
    for name, value in model.state_dict().items():
        if state[name].shape == value.shape:
            state[name] = value
            continue
        axis = 1 if "o_proj" in name else 0
        heads = torch.arange(value.shape[axis] // width)
        place = (heads[:, None] * 2 * width + kept).flatten()
        state[name] = torch.zeros_like(state[name]).index_copy(
            axis, place, value / 2**0.5 if "k_norm" in name else value
        )
    wide.load_state_dict(state)
    return wide


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    policy = Policy.load(testbed.base_model(testbed.Recipe()), "cpu")
    wide = widened(policy.model).eval()
    tokens = torch.tensor([policy.tokenizer.encode("Calculate 3 - 4 + 5.\n 3-4=-1 so")])
    torch.testing.assert_close(wide(tokens).logits, policy.model(tokens).logits, atol=1e-3, rtol=1e-4)
    wide.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(model):
    return Policy.load(model, "cpu")


@pytest.fixture(scope="module")
def sampler(policy):
    return VLLMSampler(policy, Sampling(**RULES), longest=LONGEST, settings=SETTINGS)


def prompts(policy):
    texts = [
        "Calculate 3 - 4 + 5.\n",
        "Calculate 1 + 2.\n",
        "x",
        "Find the Greatest Common Divisor (GCD) of these numbers: 12, 18.\n" * 3,
    ]
    return [Prompt(f"p/{i}", "p", t, tuple(policy.tokenizer.encode(t)), "") for i, t in enumerate(texts)]


def key(rollouts):
    return [(r.prompt.id, r.index, r.token_ids, r.finish) for r in rollouts]


def against(policy, rollouts, temperature=1.0):
    """(largest, mean) difference of the rollouts' log-probabilities to those of `policy`."""
    zeros = np.zeros(len(rollouts))
    return mismatch(
        Policy(policy.model, policy.tokenizer, temperature=temperature).collate(rollouts, zeros, zeros, zeros)
    )


def test_seeds_batches_and_order(policy, sampler):
    rollouts = sampler.sample(requests(prompts(policy), 6), step=5)
    assert [(r.prompt.id, r.index) for r in rollouts] == [(f"p/{p}", i) for p in range(4) for i in range(6)]
    assert len({r.token_ids for r in rollouts}) > 12
    assert key(sampler.sample(requests(prompts(policy), 6), step=5)) == key(rollouts)
    assert sorted(key(sampler.sample(requests(prompts(policy)[::-1], 6), step=5))) == sorted(key(rollouts))
    assert [k for p in prompts(policy) for k in key(sampler.sample(requests([p], 3), step=5))] == [
        k for k in key(rollouts) if k[1] < 3
    ]
    assert key(sampler.sample(requests(prompts(policy), 1, first=4), step=5)) == [k for k in key(rollouts) if k[1] == 4]
    asked = requests(prompts(policy), 6)
    for other in (sampler.sample(asked, step=6), sampler.but(seed=4).sample(asked, step=5)):
        assert key(other) != key(rollouts)
    assert sampler.sample(requests([], 6), step=5) == []


def test_logprobs_are_the_trainers(policy, sampler):
    assert against(policy, sampler.sample(requests(prompts(policy), 16), step=0))[0] < 1e-4
    cut = sampler.but(top_p=0.7, top_k=4).sample(requests(prompts(policy), 16), step=0)
    assert against(policy, cut)[0] < 1e-4  # before top-p and top-k
    assert all(
        r.logprobs == () for r in sampler.but(temperature=0.6).sample(requests(prompts(policy), 1), step=0)
    )  # those of 1 would be wrong


def test_it_samples_what_it_says(policy, sampler):
    """Frequencies of the first token against the policy's probabilities, plain and after top-k."""
    prompt = prompts(policy)[0]
    with torch.no_grad():
        p_V = torch.softmax(policy.model(torch.tensor([prompt.token_ids])).logits[0, -1], -1)
    best = p_V.topk(3).indices
    for rules, wanted_V in (
        (dict(), p_V),
        (dict(top_k=3), torch.zeros_like(p_V).index_copy(0, best, p_V[best] / p_V[best].sum())),
    ):
        drawn = sampler.but(max_tokens=1, **rules).sample(requests([prompt], 2000), step=0)
        share_V = torch.bincount(torch.tensor([r.token_ids[0] for r in drawn]), minlength=len(p_V)) / 2000
        error_V = (wanted_V * (1 - wanted_V) / 2000).sqrt()
        assert ((share_V - wanted_V).abs() <= 4.5 * error_V + 1e-3).all()
        assert len({r.token_ids for r in drawn}) > 2


def test_finish_reasons_and_the_length_limit(policy, sampler):
    eos = policy.tokenizer.eos_token_id
    rollouts = sampler.but(max_tokens=12).sample(requests(prompts(policy), 16), step=0)
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        assert len(r.logprobs) == len(r.token_ids) <= 12
        assert (r.token_ids[-1] == eos) == (r.finish == "stop") and eos not in r.token_ids[:-1]
        assert r.finish == "stop" or len(r.token_ids) == 12
    with pytest.raises(BadInput, match="p/0 has .* tokens; with 400 more it exceeds 400"):
        sampler.but(max_tokens=400).sample(requests(prompts(policy), 1), step=0)


def test_stop_strings(policy, sampler):
    plain = sampler.sample(requests(prompts(policy), 8), step=0)
    other = sampler.but(stop=("=-", "="))
    stopped = other.sample(requests(prompts(policy), 8), step=0)
    assert sum("=" in r.text for r in plain) > 4
    for long, short in zip(plain, stopped):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        assert short.text.partition("=")[0] == long.text.partition("=")[0]
        if "=" in long.text:
            text = [policy.tokenizer.decode(short.token_ids[:n]) for n in (-1, None)]
            assert "=" not in text[0] and "=" in text[1] and short.finish == "stop"
        else:
            assert short == long


def test_every_parameter_is_handed_over(model, policy, sampler):
    """The tied head's too. Until then nothing of the trainer's changes reaches the engine, and
    log-probabilities tell."""
    changed = Policy.load(model, "cpu")
    assert changed.model.config.tie_word_embeddings
    everything = [name for name, _ in changed.weights()]
    for names in (["model.embed_tokens.weight"], everything):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name in names:
                parameter = changed.model.get_parameter(name)
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
        assert against(changed, sampler.sample(requests(prompts(policy), 8), step=0))[1] > 0.01
        sampler.load(changed)
        assert against(changed, sampler.sample(requests(prompts(policy), 8), step=0))[0] < 1e-4
    sampler.load(policy)
    assert against(policy, sampler.sample(requests(prompts(policy), 8), step=0))[0] < 1e-4


def test_two_ranks_share_an_engine(model, policy, sampler, tmp_path):
    """Tensor-parallel under torchrun: each rank gets its own prompts' responses, the ones that
    one process gives."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "tests/vllm/two_ranks.py",
        str(model),
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, *launch], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = json.loads(json.dumps(key(sampler.sample(requests(prompts(policy), 6), step=5))))
    assert parts == [alone[:6], alone[6:]]


# A process has one engine at a time: from here on the tests start their own.


def test_a_temperature_of_its_own(policy):
    sampler = VLLMSampler(policy, Sampling(**RULES, temperature=0.6), longest=LONGEST, settings=SETTINGS)
    rollouts = sampler.sample(requests(prompts(policy), 16), step=0)
    assert against(policy, rollouts, temperature=0.6)[0] < 1e-4 < against(policy, rollouts)[1]
    assert all(r.logprobs == () for r in sampler.but(top_p=0.9).sample(requests(prompts(policy), 1), step=0))


def test_fewer_bits(policy):
    """A bfloat16 engine beside a float32 trainer is off by what rounding makes of it, well
    inside the bound for it."""
    sampler = VLLMSampler(
        policy, Sampling(**RULES), longest=LONGEST, settings=VLLM(memory_share=0.01, dtype="bfloat16")
    )
    largest, mean = against(policy, sampler.sample(requests(prompts(policy), 64), step=0))
    print(f"bfloat16: mean {mean:.4f}, largest {largest:.4f}")
    assert 1e-3 < mean < default_max_mismatch(policy, VLLM(dtype="bfloat16")) / 2 < 0.1


def training(model, folder, *overrides):
    own = [
        "rollout.engine=vllm",
        "rollout.vllm.memory_share=0.01",
        f"model.path={model}",
        f"run_dir={folder}",
        "wandb.mode=disabled",
    ]
    small = [
        "steps=3",
        "prompts_per_step=8",
        "group_size=4",
        "updates_per_step=4",
        "eval.k=2",
        "eval.size=4",
        "diagnostics.every=3",
    ]
    return config.load(ROOT / "experiments" / "testbed.yaml", [*own, *small, "checkpoint_every=1", *overrides])[0]


def test_a_short_training_repeats_resumes_and_stays_in_step(model, tmp_path):
    assert run_training(training(model, tmp_path / "a"), Silent()) == "finished"
    rows = read_lines(tmp_path / "a" / "metrics.jsonl")
    assert len(rows) == 3 and all(0 < row["mismatch/max"] < 1e-4 for row in rows)
    assert len({row["entropy/mean"] for row in rows}) == 3 and all(row["grad/norm"] > 0 for row in rows)
    assert len(read_lines(tmp_path / "a" / "eval.jsonl")) == 12  # six benchmarks, before and after
    run_training(training(model, tmp_path / "b", "steps=2"), Silent())
    run_training(training(model, tmp_path / "b"), Silent())  # a new engine, handed the checkpoint's weights
    assert without_times(tmp_path / "b" / "metrics.jsonl") == without_times(tmp_path / "a" / "metrics.jsonl")


def test_a_run_stops_when_a_hand_over_fails(model, tmp_path):
    state = build(training(model, tmp_path, "update.correction=truncate", "rollout.stop=['}']"))
    assert all((r.text[-1] == "}") == (r.finish == "stop") for group in steps.groups(state)[0] for r in group.rollouts)
    assert steps.step(state)["fact/correction"] == pytest.approx(1, abs=1e-4)
    state.sampler.load = lambda policy: None
    steps.step(state)  # was handed the first step's weights, misses the second's
    before = [p.clone() for p in state.policy.model.parameters()]
    with pytest.raises(Diverged, match="hand-over of weights to vllm failed.* above rollout.vllm.max_mismatch=0.001"):
        steps.step(state)
    assert all(torch.equal(a, b) for a, b in zip(before, state.policy.model.parameters()))


def test_eval_by_the_front_door(model, tmp_path, capsys):
    import run

    run_training(training(model, tmp_path / "run", "steps=1"), Silent())
    before = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert run.main(["eval", str(tmp_path / "run"), "eval.temperature=0.6", "eval.top_p=0.95", "eval.k=3"]) == 0
    rows = read_lines(tmp_path / "run" / "eval-latest.jsonl")
    assert len(rows) == 6 and all(row["k"] == 3 and sum(row["verdicts"].values()) == 12 for row in rows)
    assert read_lines(tmp_path / "run" / "metrics.jsonl") == before
    assert run.main(["eval", str(ROOT / "experiments" / "testbed.yaml"), "rollout.engine=vllm"]) == 2
    assert "on a CPU its attention heads have one of 32, 64" in capsys.readouterr().err
    assert run.main(["eval", str(tmp_path / "run"), "rollout.vllm.tensor_parallel=2"]) == 2
    assert "rollout.vllm.tensor_parallel=2: needs torchrun with a multiple of 2 ranks, not 1" in capsys.readouterr().err
