"""Every benchmark runs, at a size that says nothing: what is measured has a meaning only where it
is run by hand."""

import csv
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cegppo import config

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark(name, CONSTANT=value): the module, with other constants."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()

    def load(name, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            assert hasattr(module, constant), constant
            monkeypatch.setattr(module, constant, value)
        return module

    yield load
    torch.set_num_threads(threads)


def rows(text: str) -> list[str]:
    """The rows of the tables in `text`, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line for line, after in zip(lines, [*lines[1:], ""]) if "---" not in line and "---" not in after]


def test_every_benchmark_is_named_here():
    """A new one gets a test of its own."""
    named = Path(__file__).read_text()
    for path in FOLDER.glob("*.py"):
        assert path.stem == "common" or f'"{path.stem}"' in named or f"{path.name}" in named, path.name


def test_decode(benchmark, capsys):
    benchmark("decode", ROWS=(4,), ROUNDS=1).main()
    assert len(rows(capsys.readouterr().out)) == 1


def test_step(benchmark):
    times, plain, length = benchmark("step", PROMPTS=2, GROUP=2, UPDATES=2).ours(fixed=True)
    assert len(times) == 10 and len(plain) == 9 and length == 32
    pytest.importorskip("trl")
    times, length = benchmark("step", STEPS=1).theirs(fixed=True)
    assert len(times) == 1 and length == 32


def test_instrument(benchmark, capsys, monkeypatch):
    made = benchmark("instrument", ROUNDS=1)
    assert made.per_update(made.OFTEN).count("|") == 5
    assert made.at_vocabulary(tokens=8, width=16, vocabulary=64).count("|") == 5
    assert made.looked_at(made.OFTEN, parts=True, rounds=1).count("|") == 5


def test_mirror(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mirror.py", "tensorboard"])
    benchmark("mirror", TURN=1, TURNS=1).main()
    assert len(rows(capsys.readouterr().out)) == 2


def test_grader(benchmark, capsys, tmp_path):
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in ("3", "\\frac{1}{2}", "x+1")))
    benchmark("grader", ROUNDS=1).main([str(file)])
    assert rows(capsys.readouterr().out)[-1].endswith("| 3 of 3 |")


def test_head(benchmark):
    made = benchmark("head", TOKENS=16, WIDTH=8, VOCABULARY=64, ROWS=4)
    plain, blocks = made.once("plain"), made.once("blocks")
    assert blocks["weight"] == pytest.approx(plain["weight"], rel=1e-4)
    pytest.importorskip("trl")
    assert made.once("TRL")["weight"] == pytest.approx(plain["weight"], rel=1e-4)


def test_collate(benchmark, capsys):
    benchmark("collate", ROWS=3, TOKENS=100, PROMPT=5, DISTINCT=2).main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3 × 100 tokens laid out: ") and float(said[-1].rsplit(" ", 1)[1]) > 0


def test_growth(benchmark, tmp_path):
    made = benchmark(
        "growth", AXES={"tokens": (2,), "updates": (1,)}, BASE=dict(tokens=2, answers=8, vocabulary=32, updates=1)
    )
    found = made.measure(made.BASE)
    assert found["rollout"] > 0 and found["update"] > 0
    made.subprocess = type("", (), {"run": staticmethod(_once(found)), "PIPE": None})
    made.main(tmp_path / "growth.csv")
    made.subprocess = subprocess
    assert [row["axis"] for row in csv.DictReader((tmp_path / "growth.csv").open())] == ["tokens", "updates"]


def _once(found):
    """A process that measured `found`."""
    return lambda words, **_: subprocess.CompletedProcess(words, 0, stdout=json.dumps(found) + "\n")


def test_soak(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"tokens/total": 10, "time/step": 0.5}) + "\n")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    words = ["--pid", sleeper.pid, "--folder", tmp_path, "--out", tmp_path / "out.csv", "--every", "0.3"]
    watcher = subprocess.Popen([sys.executable, FOLDER / "soak.py", *map(str, words)])
    sleeper.wait()
    assert watcher.wait(30) == 0
    made = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert made and made[0]["steps"] == "1" and float(made[0]["rss_mib"]) > 1


def test_smollm2_names_settings_that_exist(benchmark):
    loaded = config.load(ROOT / "experiments" / "smollm2.yaml", benchmark("smollm2").SMALL)[0]
    assert loaded.steps == 3


@pytest.mark.slow
def test_sweep(benchmark, capsys):
    benchmark("sweep", RUNS=2, ROUNDS=1, STEPS=1).main()
    assert len(rows(capsys.readouterr().out)) == 1


@pytest.mark.slow
def test_gpu_at_its_small_size():
    """gpu.py of a machine without one: every part runs."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU it is measured: make gpu")
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "failed:" not in done.stdout and "not run" not in done.stdout, done.stdout


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not here")
def test_sandbox(benchmark, capsys):
    benchmark("sandbox").main(2)
    assert capsys.readouterr().out.startswith("2 programs: ")


@pytest.mark.slow
def test_influence(benchmark, capsys):
    """Whether its numbers are right is asked in test_influence.py."""
    benchmark("influence").main(["testbed"])
    assert len(rows(capsys.readouterr().out)) == 4  # tied and untied, first update and eighth


def test_trl_runs(benchmark):
    pytest.importorskip("trl")
    made = benchmark("trl_runs", ROLLOUTS=1)
    small = ["prompts_per_step=4", "group_size=2", "updates_per_step=2", "seed=1"]
    c = config.load(ROOT / "experiments" / "regimes" / "coin_updates16.yaml", small)[0]
    assert set(made.COLUMNS) <= set(made.run(c, "cegppo")[0])
