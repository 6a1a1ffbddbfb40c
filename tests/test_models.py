"""Models of other kinds than the testbed's: what is tried on them, and what is refused in a
line."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from cegppo.config import VLLM
from cegppo.model import policy as policy_module
from cegppo.model.policy import Policy
from cegppo.rollout import Sampling
from cegppo.rollout.hf import HFSampler
from cegppo.rollout.vllm import VLLMSampler
from cegppo.types import BadInput, Prompt, Rollout, requests

from . import steps
from .architectures import model_of, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of an architecture in miniature, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = save(model_of(kind), tmp_path_factory.mktemp(kind))
        return made[kind]

    return of


def unlike(count=4):
    """Answers of unlike length to prompts of unlike length, random tokens."""
    rng = np.random.default_rng(0)
    tokens = lambda n: tuple(rng.integers(4, 90, n).tolist())
    return [
        Rollout(
            Prompt(f"p/{i}", "p", "", tokens(3 + 2 * i), ""), 0, tokens(4 + 5 * i), (0.0,) * (4 + 5 * i), "length", ""
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["opt", "biogpt", "lfm2"])
def test_a_model_that_does_not_keep_packed_answers_apart(kind, folder):
    """OPT and BioGPT count positions themselves, a convolution runs on into the next answer."""
    with pytest.raises(BadInput, match="model.packing=always: .* does not keep packed answers apart"):
        Policy.load(folder(kind), "cpu", packing="always")
    assert not Policy.load(folder(kind), "cpu", packing="auto").packing


def test_a_model_that_packs(folder):
    one = np.ones(4)
    padded, packed = (
        Policy.load(folder("llama"), "cpu", packing=packing).collate(unlike(), one, one, one)
        for packing in ("never", "always")
    )
    assert (padded.old_logprob_BT - packed.old_logprob_BT).abs().max() < 2e-5


def test_a_model_whose_causal_mask_bounds_a_row(folder):
    """GPT-Neo keeps it as a buffer: answers in a bin, or packed, are longer than any one."""
    policy = Policy.load(folder("gpt_neo"), "cpu", packing="auto")
    assert not policy.in_bins and Policy.load(folder("gpt2"), "cpu", packing="auto").in_bins
    with pytest.raises(BadInput, match="does not keep packed answers apart"):
        Policy.load(folder("gpt_neo"), "cpu", packing="always")


TURN = 94  # plays <end_of_turn>: named by the generation configuration alone, and no special token


@pytest.fixture
def chat(tmp_path):
    """A chat model that ends its turns by a token that its tokenizer does not call the end."""
    model = model_of("llama", max_position_embeddings=256)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.02)
    model.generation_config = GenerationConfig(eos_token_id=[2, TURN], bos_token_id=1, pad_token_id=0)
    return Policy.load(save(model, tmp_path), "cpu")


def prompt(policy, text="hi"):
    return Prompt("p/0", "p", text, tuple(policy.tokenizer.encode(text, add_special_tokens=False)), "")


def test_a_response_ends_where_the_model_says(chat):
    assert chat.ends == {2, TURN}
    rollouts = HFSampler(chat, Sampling(0, max_tokens=120)).sample(requests([prompt(chat)], 32), 0)
    assert {r.ended_by for r in rollouts} == {2, TURN, None}
    for r in rollouts:
        ends = [i for i, token in enumerate(r.token_ids) if token in chat.ends]
        assert (r.finish, r.ended_by) == (("stop", r.token_ids[-1]) if ends else ("length", None))
        assert ends in ([], [len(r.token_ids) - 1]) and (ends or len(r.token_ids) == 120)
        assert len(r.text) == sum(token > 3 for token in r.token_ids) - (r.ended_by == TURN)  # the end is not said


def test_an_end_that_is_no_token_is_left_out(tmp_path):
    model = model_of("llama")
    model.generation_config = GenerationConfig(eos_token_id=128009)  # of a larger vocabulary
    assert Policy.load(save(model, tmp_path), "cpu").ends == {2}


def test_vllm_is_told_the_same_ends(chat, monkeypatch):
    """What is asked of the engine; the engine itself is tried in tests/vllm."""
    asked = []
    engine = SimpleNamespace(generate=lambda prompts, rules, use_tqdm: asked.extend(rules) or [None])
    parallel = SimpleNamespace(get_tp_group=lambda: SimpleNamespace(world_size=1))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **rules: rules))
    monkeypatch.setitem(sys.modules, "vllm.distributed", SimpleNamespace(parallel_state=parallel))
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", parallel)
    monkeypatch.setattr(VLLMSampler, "_start", lambda self, settings: engine)
    monkeypatch.setattr(VLLMSampler, "load", lambda self, policy: None)
    sampler = VLLMSampler(chat, Sampling(0, max_tokens=20, stop=("}",)), settings=VLLM())
    with pytest.raises(AttributeError):  # the engine's output, of which there is none
        sampler.sample(requests([prompt(chat)], 1), 0)
    assert asked[0]["stop_token_ids"] == [2, TURN] and asked[0]["stop"] == ["}"] and asked[0]["detokenize"]
    ended = SimpleNamespace(token_ids=[40, TURN], logprobs=None, finish_reason="stop")
    made = sampler._rollout(prompt(chat), 0, ended)
    assert made.ended_by == TURN and made.text == chat.tokenizer.decode([40])


def test_stop_strings(chat):
    """A response ends with the token that completes a stop string; what is sampled before it is the
    same with and without, however rows are batched."""
    plain = HFSampler(chat, Sampling(0, max_tokens=60))
    stopping = plain.but(stop=("=", "b", "c1"))
    two = [prompt(chat), Prompt("p/1", "p", "a longer one", tuple(chat.tokenizer.encode("a longer one")), "")]
    long, short = plain.sample(requests(two, 16), 0), stopping.sample(requests(two, 16), 0)
    completed = 0
    for a, b in zip(long, short, strict=True):
        at = min((a.text.find(text) + len(text) for text in stopping.rules.stop if text in a.text), default=None)
        assert b.token_ids == a.token_ids[: len(b.token_ids)]
        if at is None:
            assert (b.token_ids, b.finish) == (a.token_ids, a.finish)
        else:
            completed += 1
            assert b.text == a.text[:at] and b.finish == "stop" and b.ended_by == b.token_ids[-1]
    said = lambda rollouts: [(r.token_ids, r.finish, r.text) for r in rollouts]
    assert completed > 8 and said(stopping.sample(requests(two[1:], 16), 0)) == said(short[16:])
    assert HFSampler(chat, stopping.rules).identity != plain.identity


def experiment(folder, tmp_path, **changes):
    """A short run of the model in `folder`, random rewards."""
    from cegppo import config
    from cegppo.state import build

    rows = "".join(f'{{"problem": "{i}+{i}=", "answer": "{2 * i}"}}\n' for i in range(20))
    (tmp_path / "sums.jsonl").write_text(rows)
    words = [
        f"model.path={folder}", "model.device=cpu", f"data.train=[{{file: {tmp_path}/sums.jsonl}}]", "reward=random",
        "prompts_per_step=4", "group_size=4", "updates_per_step=2", "eval.benchmarks=[]", "diagnostics.every=1",
        "rollout.max_tokens=12", "update.lr=1e-3", *(f"{key}={value}" for key, value in changes.items()),
    ]  # fmt: skip
    return build(config.load("experiments/testbed.yaml", words)[0])


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_5_text", "mamba", "gemma3"])
def test_a_step_of_models_of_other_kinds(kind, folder, tmp_path):
    """Convolution and linear attention beside full attention, a state-space model, and the text of
    a multimodal one: the sampler's log-probabilities are the trainer's, and the text learns."""
    trainer = experiment(folder(kind), tmp_path)
    named = dict(trainer.policy.model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    row = steps.step(trainer)
    assert (
        row["mismatch/max"] < 2e-5 and "old_logprobs/recomputed" not in row and row["ledger/gradient_residual"] < 1e-3
    )
    moved = {name for name, p in named.items() if not torch.equal(p, before[name])}
    assert moved <= {name for name, p in named.items() if p.requires_grad}
    assert any("layers.1." in name for name in moved) and not any("vision" in name for name in moved)


def test_more_tokens_than_positions(folder, tmp_path):
    """64 positions: the default of data.max_prompt_tokens gives way, what is asked for does not."""
    assert experiment(folder("gpt2"), tmp_path).stream.max_tokens == 64 - 12
    for changes in ({"rollout.max_tokens": 64}, {"data.max_prompt_tokens": 60}):
        with pytest.raises(
            BadInput, match="data.max_prompt_tokens=.* is more than the 64 positions of GPT2LMHeadModel"
        ):
            experiment(folder("gpt2"), tmp_path, **changes)
    policy = Policy.load(folder("gpt2"), "cpu")
    with pytest.raises(BadInput, match="p/0 has 60 tokens; with 12 more it exceeds 64"):
        HFSampler(policy, Sampling(0, max_tokens=12)).sample(requests([prompt(policy, "1" * 60)], 1), 0)


def test_lora_without_a_linear_layer(folder, tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(BadInput, match="model.lora.rank: GPT2LMHeadModel has no linear layer besides its head"):
        experiment(folder("gpt2"), tmp_path, **{"model.lora.rank": 4})


@pytest.mark.parametrize(
    ("version", "driver"), [("Kernel Module  570.86.10  Wed", "driver 570.86.10"), (None, "unknown")]
)
def test_a_gpu_that_torch_cannot_use_is_no_cpu(tmp_path, monkeypatch, version, driver):
    """The driver of a machine is read from below a folder that stands for its root."""
    monkeypatch.setattr(policy_module, "NVIDIA", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert policy_module.choose_device("auto").type == "cpu"  # no GPU at all
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    if version:
        (tmp_path / "proc" / "driver" / "nvidia").mkdir(parents=True)
        (tmp_path / "proc" / "driver" / "nvidia" / "version").write_text(
            f"NVRM version: NVIDIA UNIX x86_64 {version}\n"
        )
    for name in ("auto", "cuda", "cuda:1"):
        with pytest.raises(BadInput, match=f"model.device={name}: .*{driver}.*CUDA 13.0 needs 580 or newer"):
            policy_module.choose_device(name)
    assert policy_module.choose_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert policy_module.choose_device("auto").type == "cpu"  # hidden on purpose


def test_an_engine_that_sleeps_is_handed_weights_before_its_cache_wakes(chat, monkeypatch):
    """Once a draw, and nothing is kept asleep. The engine that does so needs a GPU; this one
    records what it is told."""
    told = []
    engine = SimpleNamespace(
        sleep=lambda level: told.append(f"sleep {level}"),
        wake_up=lambda tags: told.append(f"wake {' '.join(tags)}"),
        collective_rpc=lambda receive, args: told.append(f"{len(list(args[0]))} tensors"),
        reset_prefix_cache=lambda: told.append("clear"),
    )
    monkeypatch.setattr(VLLMSampler, "_start", lambda self, settings: engine)
    monkeypatch.setattr(VLLMSampler, "_generate", lambda self, asked: told.append("generate") or [1 / fine[0]])
    monkeypatch.setattr(VLLMSampler, "_rollout", lambda *_: "a response")
    fine, tensors = [1], f"{len(list(chat.weights()))} tensors"
    monkeypatch.setattr(chat, "device", torch.device("cuda"))
    sampler = VLLMSampler(chat, Sampling(0, max_tokens=20), settings=VLLM())
    sampler.load(chat)
    assert told == ["sleep 2"], "until it draws there is nothing to wake for"
    draw = ["wake weights", tensors, "clear", "wake kv_cache", "generate", "sleep 2"]
    assert sampler.sample(requests([prompt(chat)], 1), 0) == ["a response"] and told[1:] == draw
    fine[0] = 0
    with pytest.raises(ZeroDivisionError):
        sampler.sample(requests([prompt(chat)], 1), 0)
    assert told[7:] == draw, "asleep again after an error"
    told.clear()
    VLLMSampler(chat, Sampling(0), settings=VLLM(sleep=False)).load(chat)
    assert told == 2 * [tensors, "clear"]
