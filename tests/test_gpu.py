"""What needs a GPU: training there is training on the CPU, to a stated tolerance. `make gpu` runs
this, `benchmarks/gpu.py` and a few steps of the third rung."""

import pytest
import torch

from cegppo import config
from cegppo.state import build

from . import steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
STEPS = 10
# Rounding alone, ten steps of Adam later; another micro-batch on the CPU makes 1e-5 in entropy.
TOLERANCE = 1e-3
SAME = ("entropy/mean", "accuracy/mean", "length/mean", "clip/low", "clip/high", "kl/old_k3", "grad/norm")


def metrics(tiny, where, *overrides):
    given = ["method=cegppo", f"run_dir={where}", f"steps={STEPS}", "diagnostics.every=0", *overrides]
    state = build(config.load(tiny, given)[0])
    return [steps.step(state) for _ in range(STEPS)]


def test_ten_steps_are_the_cpus(tiny, tmp_path):
    here = metrics(tiny, tmp_path / "cpu", "model.device=cpu")
    there = metrics(tiny, tmp_path / "cuda", "model.device=cuda")
    for a, b in zip(here, there):
        wanted, found = ({name: row[name] for name in SAME} for row in (a, b))
        assert found == pytest.approx(wanted, abs=TOLERANCE, rel=TOLERANCE)


def test_offloaded_moments_make_the_same_steps_there(tiny, tmp_path):
    offload = lambda name: metrics(tiny, tmp_path / name, "model.device=cuda", f"update.offload_optimizer={name}")
    plain, waiting = offload("false"), offload("true")
    assert [row["grad/norm"] for row in plain] == [row["grad/norm"] for row in waiting]
