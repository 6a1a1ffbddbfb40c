"""The front door's smaller promises: begin anew, evaluate a step, ask fewer problems, say how long,
stop quietly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run as front_door
from analysis import load
from cegppo import config
from cegppo.problems import testbed
from cegppo.problems.data import benchmarks
from cegppo.record.aside import move_aside
from cegppo.record.files import lock, read_lines
from cegppo.record.keep import keep
from cegppo.record.read import read_metrics
from cegppo.sweep import command, estimate
from cegppo.train import train
from cegppo.types import BadInput

from .test_config import run
from .test_sweep import demo
from .test_train import Silent

__all__ = ["demo"]  # a fixture
ROOT = Path(__file__).resolve().parent.parent


def trained(tiny, results, *overrides):
    loaded, _ = config.load(tiny, [f"results={results}", "steps=2", *overrides])
    train(loaded, Silent())
    return loaded.folder


def test_fresh_moves_the_old_run_aside(tiny, tmp_path, capsys):
    folder = trained(tiny, tmp_path)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.jsonl")}
    command = ["train", str(tiny), f"results={tmp_path}", "steps=1", "update.lr=0.5", "arm=grpo"]
    assert front_door.main([*command]) == 2 and "holds another run" in capsys.readouterr().err
    for n in (1, 2):
        assert front_door.main([*command, "--fresh"]) == 0
        assert f"moved aside: {folder.parent / f'aside-seed0-{n}'}" in capsys.readouterr().err
        assert [row["step"] for row in read_lines(folder / "metrics.jsonl")] == [1]
    aside = folder.parent / "aside-seed0-1"
    assert {p.relative_to(aside): p.read_bytes() for p in aside.rglob("*.jsonl")} == before
    assert (aside / "checkpoints" / "latest" / "state.json").is_file()
    assert load.run_folders(tmp_path / "tiny") == [folder]  # no sweep counts what was moved
    held = lock(folder / ".lock", "")
    with pytest.raises(BadInput, match="another live process is writing"):
        move_aside(folder)
    held.close()
    assert move_aside(tmp_path / "tiny" / "grpo" / "seed5") is None


def test_fresh_leaves_the_record_of_a_packed_run(tiny, tmp_path):
    folder = trained(tiny, tmp_path)
    rows = read_metrics(folder)
    list(keep(tmp_path / "tiny"))
    assert not (folder / "metrics.jsonl").is_file()
    there = move_aside(folder)
    assert read_lines(there / "metrics.jsonl") == rows and (there / "checkpoints").is_dir() and not folder.exists()


def test_a_checkpoint_by_its_step(tiny, tmp_path, capsys):
    folder = trained(tiny, tmp_path)
    for name in (folder / "checkpoints").glob("step*"):
        shutil.copytree(name, folder / "checkpoints" / "step000001", dirs_exist_ok=True)
    assert front_door.main(["eval", str(folder), "eval.k=2", "--checkpoint", "2"]) == 0
    assert front_door.main(["eval", str(folder), "--checkpoint", "latest", "eval.k=2"]) == 0
    by_step, latest = (read_lines(folder / f"eval-{name}.jsonl")[0] for name in ("step000002", "latest"))
    assert by_step["step"] == latest["step"] == 2 and by_step["correct"] == latest["correct"]
    capsys.readouterr()
    assert front_door.main(["eval", str(folder), "--checkpoint", "7"]) == 2
    assert "no checkpoint of step 7; there are: 1, 2 (a run keeps its latest and its best)" in capsys.readouterr().err
    assert front_door.main(["eval", str(tiny), "--checkpoint", "7"]) == 2
    assert "an experiment's starting model has no checkpoint '7'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        front_door.main(["eval", str(folder), "--checkpoint", "lastest"])
    assert "'lastest' is neither latest nor best nor a step" in capsys.readouterr().err


def test_a_limit_for_any_benchmark(tiny, tmp_path):
    """Of a file's problems and of generated ones the first; all of them stay out of training."""
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + {i} =", "answer": str(2 * i)}) + "\n" for i in range(5)))
    sources = f"eval.benchmarks=[{{name: file, file: {path}}}, {{name: made, task: gcd}}]"
    for limit, asked in ((2, {"file": 2, "made": 2}), (4, {"file": 4, "made": 3}), ("null", {"file": 5, "made": 3})):
        out = tmp_path / str(limit)
        assert (
            front_door.main(["eval", str(tiny), sources, "eval.size=3", f"eval.limit={limit}", f"run_dir={out}"]) == 0
        )
        assert {row["benchmark"]: row["n"] for row in read_lines(out / "eval-base.jsonl")} == asked
    loaded, _ = config.load(tiny, [sources, "eval.limit=2"])
    assert len(benchmarks(loaded.eval, loaded.data, testbed.make_tokenizer())["file"]) == 5


def test_how_long_a_sweep_will_take(demo, tmp_path):
    results = tmp_path / "results"
    said = lambda *overrides: command.plan(str(demo), [f"results={results}", *overrides]).splitlines()[-1]
    assert said() == "time: unknown; no finished run of demo or tiny is recorded"

    def recorded(arm, seconds, *overrides):
        loaded, _ = config.load(demo.parent / "tiny.yaml", [f"results={results}", "experiment=demo", *overrides])
        folder = results / "demo" / arm / "seed9"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.as_yaml(loaded))
        span = {
            "start": "2026-01-01T00:00:00+00:00",
            "end": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00",
        }
        session = span | {"machine": "a machine"}
        (folder / "meta.json").write_text(json.dumps({"status": "finished", "steps": 3, "sessions": [session]}))

    recorded("grpo", 30)  # 10 s a step
    assert said() == "time: about 90 s with 2 at a time, by 1 recorded runs (a machine)".replace("90 s", "2 min")
    recorded(
        "cegppo", 90, "method=cegppo"
    )  # its own arm's, 30 s a step: 2 × (30 + 20 + 90) / 2 with the others' median
    assert (
        said("sweep.seeds=[0]", "sweep.workers=1")
        == "time: about 3 min with 1 at a time, by 2 recorded runs (a machine)"
    )
    assert said("eval.k=1").endswith("recorded runs (a machine), which have another eval.k")
    assert estimate.text([], ["demo"], 2) == "nothing to run"


def test_a_reader_that_has_seen_enough(demo, tmp_path):
    """`| head`, with more to say than a pipe holds."""
    demo.write_text(demo.read_text().replace("seeds: [0, 1]", f"seeds: {list(range(120))}"))
    for words in (["sweep", str(demo), "--dry-run"], ["train", str(demo.parent / "tiny.yaml"), "--print"], ["list"]):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()  # at once
        error = process.stderr.read().decode()
        assert process.wait() in (0, 141) and error == "", error


def test_a_training_whose_output_was_closed_says_so(tiny, tmp_path):
    words = ["train", str(tiny), "steps=2", f"results={tmp_path}", "wandb.mode=disabled"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 141 and error == "error: standard output was closed; the same command continues\n"
    again = run(*words)
    assert again.returncode == 0, again.stderr
