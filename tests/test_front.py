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
from cegppo.record.read import read_meta, read_metrics
from cegppo.sweep import command, estimate
from cegppo.train import run_training
from cegppo.types import BadInput

from .test_config import run
from .test_sweep import demo
from .test_train import Silent

__all__ = ["demo"]  # a fixture
ROOT = Path(__file__).resolve().parent.parent


def trained(tiny, results, *overrides):
    loaded, _ = config.load(tiny, [f"results={results}", "steps=2", *overrides])
    run_training(loaded, Silent())
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
    assert read_lines(there / "metrics.jsonl") == rows and (there / "checkpoints").is_dir()
    assert read_metrics(folder) == [] and [path.name for path in folder.iterdir()] == ["meta.json"]


def test_a_packed_run_is_begun_anew(tiny, tmp_path):
    """By the command itself; and again, while the pack still has the line of the first."""
    folder = trained(tiny, tmp_path)
    list(keep(tmp_path / "tiny"))
    command = ["train", str(tiny), "--fresh", f"results={tmp_path}", "arm=grpo", f"seed={folder.name[4:]}", "steps=2"]
    for number in (1, 2):
        assert front_door.main(command) == 0
        assert len(read_metrics(folder)) == 2 and read_meta(folder)["status"] == "finished"
        assert len(list(folder.parent.glob("aside-*"))) == number


def test_a_folder_that_brings_a_rule_runs_it_only_when_asked(tiny, tmp_path, capsys):
    rules = tmp_path / "rules.py"
    rules.write_text("def short(prompt, text):\n    return 1 / (1 + len(text))\n")
    folder = trained(tiny, tmp_path, f"reward={rules}:short", "arm=ruled", "eval.benchmarks=[]")
    assert front_door.main(["train", "--from", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "rules.py:short, which is code that would run; say reward=… yourself" in error and error.count("\n") == 1
    assert front_door.main(["train", "--from", str(folder), f"reward={rules}:short"]) == 0
    assert "2 of 2 lines are the same, bit for bit" in capsys.readouterr().out


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


# -------------------------------------------------------------------------- again, from a record


def again(folder, capsys, *words):
    """(exit code, stdout, stderr) of `train --from`."""
    code = front_door.main(["train", "--from", str(folder), *words])
    return code, *capsys.readouterr()


def test_a_run_is_made_again_from_its_record_alone(tiny, tmp_path, capsys):
    folder = trained(tiny, tmp_path / "r", "method=cegppo", "diagnostics.every=2", "diagnostics.probe=4")
    tiny.unlink()  # nothing but the record
    shutil.rmtree(folder / "checkpoints")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = again(folder, capsys)
    made = folder.parent / "again-seed0-1"
    assert code == 0 and f"finished: {made}" in out
    assert "metrics.jsonl: 2 of 2 lines are the same, bit for bit" in out
    assert "eval.jsonl: 2 of 2 lines are the same, bit for bit" in out
    without_times = lambda root: [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in read_lines(root / "metrics.jsonl")
    ]
    assert without_times(made) == without_times(folder)
    assert kept == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert load.run_folders(tmp_path / "r" / "tiny") == [folder]  # no sweep counts it
    assert again(folder, capsys)[0] == 0 and (folder.parent / "again-seed0-2" / "metrics.jsonl").is_file()


def test_made_again_it_says_what_differs(tiny, tmp_path, capsys):
    folder = trained(tiny, tmp_path / "r")
    meta = json.loads((folder / "meta.json").read_text())
    session = meta["sessions"][-1]
    session |= {"commit": "0" * 40, "diff": "abc", "host": "elsewhere"}
    session["versions"]["torch"] = "1.0"
    (folder / "meta.json").write_text(json.dumps(meta))
    rows = read_lines(folder / "metrics.jsonl")
    rows[1]["entropy/mean"] += 1e-9
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = again(folder, capsys)
    assert (
        code == 0 and f"the code is not what it was: commit {'0' * 12} → " in err and "uncommitted changes abc" in err
    )
    assert "torch was 1.0, is now 2" in err and "host was elsewhere, is now" in err and err.count("\n") == 3
    assert f"metrics.jsonl: first difference at step 2: entropy/mean was {rows[1]['entropy/mean']}, is now" in out


def test_made_again_it_goes_on_after_a_stop(tiny, tmp_path, capsys):
    folder = trained(tiny, tmp_path / "r")
    assert again(folder, capsys, "steps=1")[0] == 0
    made = folder.parent / "again-seed0-1"
    (made / "meta.json").write_text((made / "meta.json").read_text().replace("finished", "stopped"))
    code, out, _ = again(folder, capsys)
    assert code == 0 and "2 of 2 lines are the same" in out and not (folder.parent / "again-seed0-2").exists()


def test_a_packed_run_is_made_again(tiny, tmp_path, capsys):
    folder = trained(tiny, tmp_path / "r")
    assert list(keep(tmp_path / "r" / "tiny"))
    code, out, _ = again(folder, capsys, f"run_dir={tmp_path / 'new'}")
    assert code == 0 and "metrics.jsonl: 2 of 2 lines are the same, bit for bit" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (["seed=1"], "with another seed it is another run"),
        (["update.lr=0.5"], "with another update.lr it is another run"),
        (["run_dir={folder}"], "is the run itself"),
        (["--fresh"], "--from takes neither --print nor --fresh"),
        (["stepps=1"], "did you mean"),
    ],
)
def test_made_again_as_another_run_is_refused(tiny, tmp_path, capsys, words, said):
    folder = trained(tiny, tmp_path / "r", "steps=1")
    before = (folder / "meta.json").read_bytes()
    code, _, err = again(folder, capsys, *(word.format(folder=folder) for word in words))
    assert code == 2 and said in err and err.count("\n") == 1 and (folder / "meta.json").read_bytes() == before
    assert not list(folder.parent.glob("again-*"))


def test_again_needs_a_run(tmp_path, capsys):
    assert again(tmp_path, capsys)[0] == 2 and again(tmp_path / "nothing", capsys)[0] == 2
    assert front_door.main(["train"]) == 2
    assert "name an experiment, or --from RUN_FOLDER" in capsys.readouterr().err
