"""LoRA on a tiny model: only adapters train, everything else sees merged weights, runs resume bit
for bit, the instrument looks at what trains."""

import json

import pytest
import torch
from peft import PeftModel

import run as front_door
from cegppo.model import memory
from cegppo.model.policy import Policy
from cegppo.record.files import read_lines
from cegppo.record.run import checkpoint
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import BadInput

from . import steps
from .test_train import Silent, load, without_times

LORA = ("model.lora.rank=3", "model.lora.alpha=6", "update.lr=0.01")


def adapted(tiny, *overrides):
    return build(load(tiny, *LORA, *overrides))


def plain(state):
    """The model that a run starts from, with its own weights."""
    return Policy.load(state.config.model.path, "cpu")


def batch(state):
    return steps.batch(state)


def test_only_adapters_train_and_they_start_as_nothing(tiny):
    state = adapted(tiny, "diagnostics.every=0")
    x, base = batch(state), plain(state)
    for name, value_BT in base.evaluate(x).items():
        assert torch.equal(value_BT, state.policy.evaluate(x)[name])
    names = {name for name, p in state.policy.model.named_parameters() if p.requires_grad}
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    before = {name: p.detach().clone() for name, p in state.policy.model.named_parameters()}
    for _ in range(2):  # B is 0 in the first, and A has no gradient
        steps.step(state)
    moved = {name for name, p in state.policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names
    assert sum(p.numel() for p in state.optimizer.param_groups[0]["params"]) == sum(before[n].numel() for n in names)


def test_the_estimate_of_memory_counts_what_trains(tiny):
    state = adapted(tiny, "update.kl_coef=0.1")
    many = sum(p.numel() for p in state.policy.trained())
    whole = plain(state).model
    found = memory.estimate(state.config, whole, "cpu")
    assert found["gradients"] == found["adapters"] == 4 * many and found["optimizer"] == 8 * many
    assert found["weights"] == found["merged"] == 4 * sum(p.numel() for p in whole.parameters())
    assert "reference" not in found


def test_samplers_get_merged_weights(tiny):
    state = adapted(tiny, "diagnostics.every=0")
    for _ in range(2):
        steps.step(state)
    base, model = plain(state).model, state.policy.model
    given = dict(state.policy.weights())
    assert list(given) == [name for name, _ in base.named_parameters()]
    for name, p in base.named_parameters():
        layer = model.get_submodule(name.removesuffix(".weight"))
        if not hasattr(layer, "lora_A"):
            assert torch.equal(given[name], p)
            continue
        wanted = p + 6 / 3 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        assert torch.equal(given[name], wanted) and not torch.equal(wanted, p)
    row = steps.step(state)  # what the sampler says of its tokens is what the trainer says
    assert row["mismatch/mean"] < 1e-5


def test_resumed_is_bit_for_bit_the_same_and_checkpoints_hold_adapters(tiny, tmp_path):
    go = lambda name, steps: run_training(load(tiny, *LORA, f"steps={steps}", f"run_dir={tmp_path / name}"), Silent())
    go("whole", 4)
    go("twice", 2)
    kept = checkpoint(tmp_path / "twice")
    sizes = {path.name for path in kept.iterdir()}
    assert "adapter_model.safetensors" in sizes and "model.safetensors" not in sizes
    go("twice", 4)
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert without_times(tmp_path / "twice" / name) == without_times(tmp_path / "whole" / name)
    one, two = (checkpoint(tmp_path / name) / "adapter_model.safetensors" for name in ("whole", "twice"))
    assert one.read_bytes() == two.read_bytes()


def test_a_checkpoint_is_read_by_others_by_eval_and_as_a_start(tiny, tmp_path):
    state = adapted(tiny, "diagnostics.every=0")
    steps.step(state)
    steps.step(state)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    state.save(folder)
    x = batch(state)
    wanted = state.policy.evaluate(x)["logprob_BT"]
    own = Policy.load(folder, "cpu")
    assert torch.allclose(own.evaluate(x)["logprob_BT"], wanted, atol=1e-5)
    for (name, p), (_, given) in zip(own.model.named_parameters(), state.policy.weights()):
        assert torch.equal(p, given), name
    theirs = Policy(PeftModel.from_pretrained(plain(state).model, folder).merge_and_unload(), own.tokenizer)
    assert torch.allclose(theirs.evaluate(x)["logprob_BT"], wanted, atol=1e-5)
    again = adapted(tiny, f"model.path={folder}", "diagnostics.every=0")  # adapters upon adapters
    steps.step(again)
    steps.step(again)
    (tmp_path / "second").mkdir()
    again.save(tmp_path / "second")
    own = Policy.load(tmp_path / "second", "cpu")
    assert all(torch.equal(p, w) for p, (_, w) in zip(own.model.parameters(), again.policy.weights()))


def test_the_reference_is_the_base_in_the_same_memory(tiny):
    state = adapted(tiny, "update.kl_coef=0.1", "diagnostics.every=0")
    assert state.reference.model is state.policy.model
    for _ in range(2):
        steps.step(state)
    x, base = batch(state), plain(state)
    assert torch.equal(x.ref_logprob_BT, base.evaluate(x)["logprob_BT"])
    assert not torch.allclose(x.ref_logprob_BT, x.old_logprob_BT)
    assert all(p.requires_grad for p in state.optimizer.param_groups[0]["params"])


def test_the_ledger_is_of_what_trains(tiny):
    """Its parts sum to the step that was taken, and to the change that was measured."""
    state = adapted(tiny, "diagnostics.every=1", "method=cegppo", "update.lr=1e-3")
    steps.step(state)
    row = steps.step(state)
    assert row["ledger/step_residual"] < 1e-3 and row["ledger/influence_residual"] < 0.05
    assert row["dentropy/measured"] == pytest.approx(row["ledger/predicted"], rel=0.2, abs=1e-4)
    assert abs(row["ledger/predicted"]) > 1e-5


def test_a_critic_learns_with_all_its_weights(tiny, tmp_path):
    state = adapted(tiny, "method=ppo", "diagnostics.every=0")
    assert all(p.requires_grad for p in state.critic.parameters())
    assert not [name for name, _ in state.critic.named_parameters() if "lora" in name]
    steps.step(state)


def test_layers_by_name(tiny):
    state = adapted(tiny, "model.lora.targets=[q_proj,v_proj]")
    names = [name for name, m in state.policy.model.named_modules() if hasattr(m, "lora_A")]
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"} and len(names) == 4
    with pytest.raises(BadInput, match="model.lora.targets: no linear layer 'q_pro'; did you mean 'q_proj'?"):
        adapted(tiny, "model.lora.targets=[q_pro]")


def test_without_peft_one_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert front_door.main(["train", str(tiny), *LORA, f"run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == "error: model.lora.rank: peft is not installed: pip install -e '.[lora]'\n"


def test_eval_of_a_run_with_adapters(tiny, tmp_path):
    folder = tmp_path / "run"
    run_training(load(tiny, *LORA, "steps=1", "eval.k=2", f"run_dir={folder}"), Silent())
    assert front_door.main(["eval", str(folder), "eval.k=2"]) == 0
    (row,) = read_lines(folder / "eval-latest.jsonl")
    assert row["step"] == 1 and row["n"] == 3
    said = json.loads((checkpoint(folder) / "adapter_config.json").read_text())
    assert said["r"] == 3
