"""A GPU that is not there (pretend.py): no method mixes its tensors with the CPU's, and the numbers
are the CPU's. `tests/test_gpu.py` asks a real one."""

import numpy as np
import pytest
import torch

from cegppo import config
from cegppo.instrument.ledger import UNSURE
from cegppo.model import memory
from cegppo.record.files import read_lines
from cegppo.record.run import newest
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import present

from . import steps
from .pretend import Pretend, mark
from .test_train import Silent

# A knob or two of each way through the code that no preset takes.
OTHERS = {
    "terms": ["update.kl_coef=0.1", "update.entropy_coef=0.01", "update.nll_coef=0.1", "update.dual_clip=3"],
    "packed": ["model.packing=always", "model.gradient_checkpointing=true"],
    "head in blocks": ["model.head_chunk=1", "rollout.max_tokens=100"],
    "offloaded": ["update.offload_optimizer=true"],
    "parts": ["diagnostics.parts=true", "diagnostics.influence_tokens=20"],
    "adapters": ["model.lora.rank=2"],
    "corrected": ["update.correction=truncate", "rollout.old_logprobs=recompute"],
    "sampling": ["rollout.top_k=20", "rollout.top_p=0.9"],
}


@pytest.fixture
def pretend(monkeypatch):
    """What PyTorch says of GPUs as such."""
    monkeypatch.setattr(memory, "available", lambda device: float("inf"))
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    return Pretend()


def lines(folder):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_lines(folder / "metrics.jsonl")]


WAYS = {method: [f"method={method}"] for method in ("grpo", "ppo", "cegppo")} | OTHERS


@pytest.mark.parametrize("given", WAYS.values(), ids=list(WAYS))
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_nothing_there_meets_what_is_here(tiny, tmp_path, pretend, given):
    """Two steps that are looked at, with an evaluation and a checkpoint, and one from it on."""
    given = ["model.packing=never", "diagnostics.every=1", "steps=2", *given]
    on = lambda device: config.load(tiny, [*given, f"model.device={device}", f"run_dir={tmp_path / device}"])[0]
    with pretend:
        assert run_training(on("cuda"), Silent()) == "finished"
        state = build(on("cuda"))
        state.restore(present(newest(tmp_path / "cuda")))
        steps.step(state)
    run_training(on("cpu"), Silent())
    there, here = lines(tmp_path / "cuda"), lines(tmp_path / "cpu")
    assert len(there) == 2 and [set(row) for row in there] == [set(row) for row in here]
    for a, b in zip(there, here):
        for name, value in b.items():
            # Another attention rounds otherwise, and the ledger's differences may be as far apart
            # as it allows those of two strides.
            rtol = UNSURE if name.startswith("ledger/") else 1e-3
            np.testing.assert_allclose(a[name], value, rtol=rtol, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({*config.methods()} - {*WAYS}))
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_every_other_method_steps_there(tiny, tmp_path, pretend, method):
    given = [f"method={method}", "diagnostics.every=1", "model.device=cuda", f"run_dir={tmp_path / 'run'}"]
    with pretend:
        state = build(config.load(tiny, given)[0])
        state.draw_probe()
        assert np.isfinite(list(steps.step(state).values())).all()


def test_it_refuses_what_a_gpu_refuses():
    here = torch.ones(2)
    with Pretend() as p:
        there, other = torch.ones(2, device="cuda"), torch.zeros(2)
        assert (there * 2).device.type == "cuda" and there[torch.tensor([1])].is_cuda
        assert (there + torch.tensor(1)).is_cuda  # a number is at home everywhere
        assert not other.is_cuda and there.cpu().device.type == "cpu" and mark(there) == "cuda"
        for mixed in (
            lambda: there + other,
            lambda: torch.cat([there, other]),
            lambda: other[there.long()],
            lambda: there.index_select(0, torch.tensor([0])),
            lambda: there.add_(there.new_zeros(2).cpu()),
            lambda: torch.nn.functional.linear(there, other[None]),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)
        p.waits.clear()
        assert float(there.sum()) == 2 and there.to(torch.float64).is_cuda and other.to("cuda").is_cuda
        assert sum(p.waits.values()) == 2  # the number, and the tensor on its way
    assert here.device.type == "cpu"
