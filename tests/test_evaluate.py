"""An evaluation that keeps its completions: killed and continued, equal to one that was not;
settings never mix."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import run
from cegppo import evaluate
from cegppo.model.policy import Policy
from cegppo.problems import counts
from cegppo.record.files import Completions, read_lines
from cegppo.rollout import Sampling
from cegppo.rollout.hf import HFSampler
from cegppo.types import BadInput

ROOT = Path(__file__).resolve().parent.parent


def test_maj_at_k_by_hand():
    answers = [["5", "5", "6", None], ["1", "2", "3", "3"], [None] * 4, ["1/2", "7", "0.5", "7"]]
    correct = [[True, True, False, False], [True, False, False, False], [False] * 4, [True, False, True, False]]
    majority = [counts.maj_at_k([a], [c], 4) for a, c in zip(answers, correct)]
    assert majority == [1.0, 0.0, 0.0, 0.0] and counts.maj_at_k(answers, correct, 4) == 0.25
    assert counts.maj_at_k(answers, correct, 3) == pytest.approx((1 + 1 / 3 + 0 + 2 / 3) / 4)  # ties share
    assert counts.maj_at_k(answers, correct, 1) == (0.5 + 0.25 + 0 + 0.5) / 4  # blocks of one: avg@1


def test_maj_at_k_over_blocks():
    answers = [["1", "2", "2", None], ["a", "b", "b", "a"], [None, None, None, "5"]]
    correct = [[False, True, True, False], [True, False, False, True], [False, False, False, True]]
    # blocks of two: {1, 2} tie, {2, -} right; {a, b} tie, {b, a} tie; {-, -} without a vote, {-, 5}
    # right
    assert counts.maj_at_k(answers, correct, 2) == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    assert counts.maj_at_k(answers, correct, 3) == pytest.approx((1 + 0 + 0) / 3)  # the fourth sample is in no block


def test_what_computes_the_samples_is_part_of_what_their_file_is_called(tiny_model):
    names = set()
    for dtype in ("float32", "bfloat16"):
        sampler = HFSampler(Policy.load(tiny_model, "cpu", dtype=dtype), Sampling(seed=0))
        benchmark = evaluate.Benchmark("b", [], 2, {"temperature": 1.0})
        names.add(evaluate.Evaluator(sampler, [benchmark]).identity(benchmark, 0, ["model"]))
    assert len(names) == 2


def test_per_problem_values_have_the_estimates_as_means():
    row = evaluate.summary("b", 6, [0, 6, 3], {}) | {"majority": [0.0, 1.0, 0.5]}
    values = evaluate.per_problem(row)
    assert list(values) == ["avg@6", *(f"pass@{j}" for j in range(1, 7)), "maj@6"]
    assert all(values[name].mean() == pytest.approx(row[name]) for name in ("avg@6", "pass@1", "pass@4", "pass@6"))
    np.testing.assert_allclose(values["pass@2"], [0, 1, 1 - 3 / 15])


def test_a_half_written_batch_is_cut_off(tmp_path):
    path = tmp_path / "completions" / "a.jsonl.gz"
    kept = Completions(path)
    kept.append([{"id": 1}, {"id": 2}])
    with pytest.raises(BadInput, match="another live process"):
        Completions(path)
    whole = path.stat().st_size
    kept.append([{"id": 3, "completions": ["π\u2028"] * 50}])
    kept.close()
    data = path.read_bytes()
    for cut in (data[:-1], data[: whole + 3], data[:whole] + b"\0" * 9, data[:whole]):
        path.write_bytes(cut)
        again = Completions(path)
        assert again.rows == [{"id": 1}, {"id": 2}]
        again.append([{"id": 3}])
        again.close()
        assert [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")] == [
            {"id": 1},
            {"id": 2},
            {"id": 3},
        ]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + {i} =", "answer": str(i % 3)}) + "\n" for i in range(400)))
    return path


def stored(folder):
    """(rows of eval-base.jsonl, {file: lines})."""
    files = {p.name: gzip.open(p, "rt", encoding="utf-8").read() for p in (folder / "completions").iterdir()}
    return read_lines(folder / "eval-base.jsonl"), files


@pytest.mark.slow
def test_killed_and_continued_equals_uninterrupted(tiny, tmp_path, problems):
    command = [
        "eval",
        str(tiny),
        f"eval.benchmarks=[{{name: doubles, file: {problems}, k: 8, max_tokens: 24, temperature: 0.7}}]",
    ]
    assert run.main([*command, f"run_dir={tmp_path / 'whole'}"]) == 0
    rows, files = stored(tmp_path / "whole")
    (row,), ((name, text),) = rows, files.items()
    lines = [json.loads(line) for line in text.splitlines()]
    assert (row["n"], row["k"], len(row["pass"]), row["completions"]) == (400, 8, 8, name)
    assert row["correct"] == [line["verdicts"].count("correct") for line in lines] and row["avg@8"] == row["pass"][0]
    low, high = row["interval"]["avg@8"]
    assert low <= row["avg@8"] <= high and set(row["interval"]) == {
        "avg@8",
        "maj@8",
        *(f"pass@{j}" for j in range(1, 9)),
    }
    assert row["rules"] == {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 24, "seed": 1000}
    assert all(len(line["completions"]) == len(line["finish"]) == 8 and max(line["tokens"]) <= 24 for line in lines)

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *command, f"run_dir={tmp_path / 'killed'}"], stdout=subprocess.DEVNULL
    )
    path = tmp_path / "killed" / "completions" / name
    deadline = time.time() + 120
    while not (path.is_file() and path.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = Completions(path)
    assert 0 < len(kept.rows) < 400 and not (tmp_path / "killed" / "eval-base.jsonl").exists()
    kept.close()
    assert run.main([*command, f"run_dir={tmp_path / 'killed'}"]) == 0
    assert stored(tmp_path / "killed") == (rows, files)


def test_settings_never_mix_and_nothing_recorded_is_lost(tiny, tmp_path, problems):
    command = ["eval", str(tiny), f"run_dir={tmp_path / 'run'}", "eval.max_tokens=8"]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(problems.read_text().splitlines(keepends=True)[:6]))
    settings = [
        [f"eval.benchmarks=[math500={few}]", f"eval.k={k}", f"data.suffix='{suffix}'"]
        for k, suffix in ((2, ""), (3, ""), (2, "?"))
    ]
    for setting in [*settings, settings[0]]:
        assert run.main([*command, *setting]) == 0
    rows, files = stored(tmp_path / "run")
    assert (
        [row["k"] for row in rows] == [3, 2, 2]
        and {row["completions"] for row in rows} == set(files)
        and len(files) == 3
    )
    assert {row["rules"]["temperature"] for row in rows} == {0.6}  # math500's own
    few.write_text(few.read_text().replace('"answer": "0"', '"answer": "9"'))  # the same questions with other answers
    assert run.main([*command, *settings[0]]) == 0
    assert len(stored(tmp_path / "run")[1]) == 4
