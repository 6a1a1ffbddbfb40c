"""torchrun with two processes (gloo, CPU) does what one process does; killed, stopped, and
continued on another number of ranks."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch

import run
from cegppo import config
from cegppo.ranks import _agreed, shares
from cegppo.record.files import read_lines
from cegppo.train import run_training
from cegppo.types import BadInput

from . import ranks
from .test_train import Silent

ROOT = Path(__file__).resolve().parent.parent


def torchrun(*arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *map(str, arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def children(process):
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def wait_for_steps(folder, count, process):
    while len(read_lines(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def assert_same_run(folder, other):
    """Metrics within 1e-5, but for times; the same answers in every evaluation."""
    left, right = read_lines(folder / "metrics.jsonl"), read_lines(other / "metrics.jsonl")
    assert [row["step"] for row in left] == [row["step"] for row in right]
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for key, value in a.items():
            # What only rounding and differences make is not the same on two ranks; shards have no
            # exact derivative, so the ledger takes differences there.
            made_of_them = key.endswith("_residual") or key in ("ledger/stride", "ledger/influence_disagreement")
            if not key.startswith("time/") and not made_of_them and value is not None:
                assert value == pytest.approx(b[key], rel=1e-5, abs=1e-5), (a["step"], key)
    assert read_lines(folder / "eval.jsonl") == read_lines(other / "eval.jsonl")


def test_shares_by_hand():
    assert shares([5, 3, 3, 1], 2) == [[0, 3], [1, 2]]
    assert shares([7], 3) == [[0], [], []]
    assert shares([2, 9, 4], 1) == [[0, 1, 2]]


@pytest.mark.slow
def test_killed_and_stopped_on_two_ranks_and_finished_on_one(tiny, tmp_path):
    options = ["method=cegppo", "steps=9", "checkpoint_every=2"]
    options += ["diagnostics.every=3", "diagnostics.probe=5", "diagnostics.parts=true"]
    run_training(config.load(tiny, [*options, f"run_dir={tmp_path / 'whole'}"])[0], Silent())
    folder = tmp_path / "divided"
    command = [ROOT / "run.py", "train", tiny, *options, f"run_dir={folder}"]
    process = torchrun(*command)
    wait_for_steps(folder, 3, process)
    for pid in [*children(process), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    process = torchrun(*command)
    wait_for_steps(folder, 5, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["status"] == "stopped", said
    assert said.count(f"stopped: {folder}") == 1, said
    assert run_training(config.load(tiny, [*options, f"run_dir={folder}"])[0], Silent()) == "finished"
    assert_same_run(folder, tmp_path / "whole")
    assert [s["ranks"] for s in json.loads((folder / "meta.json").read_text())["sessions"]] == [2, 2, 1]
    for name in ("step000003.parquet", "step000006.parquet"):
        ours, theirs = (pd.read_parquet(root / "tokens" / name) for root in (folder, tmp_path / "whole"))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_begun_on_one_rank_and_finished_on_two(tiny, tmp_path):
    """With a critic and a KL reference; then its evaluation, and the gradient of a mini-batch
    however few rows it has."""
    run_training(config.load(tiny, [*ranks.PPO, "steps=4", f"run_dir={tmp_path / 'one'}"])[0], Silent())
    run_training(config.load(tiny, [*ranks.PPO, "steps=2", f"run_dir={tmp_path / 'two'}"])[0], Silent())
    process = torchrun(ROOT / "tests" / "ranks.py", tiny, tmp_path / "two")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert run.main(["eval", str(tmp_path / "one"), *ranks.EVAL]) == 0
    rows = [read_lines(tmp_path / name / "eval-latest.jsonl") for name in ("one", "two")]
    one, two = ([{**row, "completions": ""} for row in mine] for mine in rows)  # files named after their checkpoint
    assert one == two
    made = torch.load(tmp_path / "two" / "made.pt")
    assert made.pop("said") == ["only here"] * 2
    for name, value in ranks.gradients(tiny).items():
        assert value.norm() > 0 and (made[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uec_rl", "improper"])
def test_exploration_on_two_ranks_is_that_of_one(tiny, tiny_model, tmp_path, name):
    """With a buffer that is replayed and a stop between, and with a sampler of other weights."""
    knobs = {
        "uec_rl": ["retries=6", "keep_retried=0.1", "drop_truncated=false", "replay_every=2", "replay_least=0.0"],
        "improper": [f"samplers='{tiny_model},1.3'"],
    }
    options = [f"method={name}", "prompts_per_step=8", "group_size=2", "eval_every=3", "arm=x"]
    options += [f"explore.{item}" for item in knobs[name]]
    run_training(config.load(tiny, [*options, "steps=4", f"run_dir={tmp_path / 'one'}"])[0], Silent())
    run_training(config.load(tiny, [*options, "steps=3", f"run_dir={tmp_path / 'two'}"])[0], Silent())
    process = torchrun(ROOT / "run.py", "train", tiny, *options, "steps=4", f"run_dir={tmp_path / 'two'}")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert_same_run(tmp_path / "two", tmp_path / "one")
    last = read_lines(tmp_path / "one" / "metrics.jsonl")[-1]
    assert last["origin/replay" if name == "uec_rl" else "origin/checkpoint"] > 0


def test_adapters_on_two_ranks_are_those_of_one(tiny, tmp_path):
    options = ["model.lora.rank=2", "update.kl_coef=0.1", "diagnostics.every=2", "diagnostics.probe=5"]
    run_training(config.load(tiny, [*options, f"run_dir={tmp_path / 'one'}"])[0], Silent())
    process = torchrun(ROOT / "run.py", "train", tiny, *options, f"run_dir={tmp_path / 'two'}")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_bad_input_is_said_once_and_ends_every_rank(tiny, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = torchrun(ROOT / "run.py", "train", tiny, f"run_dir={folder}")
        said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count(f"error: {folder}: another live process is writing to it") == 1
    # torchrun ends the second rank itself when the first was quicker to say why it exits.
    assert said.count("error: ") == 1 and said.count("exitcode  : 2") >= 1, said


SCARCE = """
import sys, torch, run
from cegppo import ranks
from cegppo.model.policy import Policy

whole = Policy.states

def states(self, decoder, x):
    if ranks.rank() == 1 and x.sequence_BS.numel() > 50 and torch.is_grad_enabled():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return whole(self, decoder, x)

Policy.states = states
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_where_one_rank_ran_out_of_memory_all_begin_again_with_less(tiny, tmp_path):
    """The rank says it and leaves, torchrun ends the other, and starts both again by itself."""
    padded = ["steps=2", "model.packing=never"]  # so that a pass has the tokens that SCARCE counts
    run_training(config.load(tiny, [*padded, f"run_dir={tmp_path / 'whole'}"])[0], Silent())
    script, folder = tmp_path / "scarce.py", tmp_path / "divided"
    script.write_text(SCARCE)
    process = torchrun("--max-restarts", "3", script, "train", tiny, *padded, f"run_dir={folder}")
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    left = read_lines(folder / "memory.jsonl")
    assert left and {row["rank"] for row in left} == {1}
    assert f"error: {folder}: rank 1: memory ran out (CUDA out of memory) in a pass of" in said
    rows = read_lines(folder / "metrics.jsonl")
    assert {row.pop("memory/micro_batch_tokens") for row in rows} == {min(row["tokens"] for row in left)}
    assert {row.pop("memory/retries") for row in rows} == {0.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert_same_run(folder, tmp_path / "whole")


def test_ranks_that_start_again_do_not_meet_those_before():
    """The store of the first meeting is that of the second, with everything in it."""
    store = torch.distributed.HashStore()
    meetings = []
    for _ in range(20):
        with ThreadPoolExecutor(3) as pool:
            late = [pool.submit(_agreed, store, own, 3) for own in (2, 1)]
            names = {_agreed(store, 0, 3), *(each.result() for each in late)}
        assert len(names) == 1
        meetings += names
    assert len(set(meetings)) == 20


def test_a_rank_that_does_not_come_is_said(monkeypatch):
    monkeypatch.setattr("cegppo.ranks.MEETING", timedelta(seconds=0.1))
    with pytest.raises(BadInput, match=r"ranks \[1\] of 2 did not come within"):
        _agreed(torch.distributed.HashStore(), 0, 2)
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(BadInput, match="rank 0 of 2 did not answer rank 1 within"):
        _agreed(store, 1, 2)
