"""`run.py list` and `run.py diff`: what there is, and in what two configurations differ."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import run as front_door
from analysis import listing

ROOT = Path(__file__).resolve().parent.parent


def said(capsys, *words):
    """The lines of a verb that ends well, each in its cells."""
    assert front_door.main([str(word) for word in words]) == 0
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


def cells(row):
    return [cell.strip() for cell in row if cell.strip()]


@pytest.fixture
def results(tmp_path):
    """A pack, and three live runs: one finished, one that says it runs, one that failed at once."""
    root = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "one_side_random", root / "deep" / "coin")
    ended = {"finished": "2026-01-01T00:00:00+00:00", "failed": "2026-01-02T00:00:00+00:00"}
    for seed, (state, steps) in enumerate([("finished", 4), ("running", 2), ("failed", 0)]):
        folder = root / "mine" / "grpo" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"steps": 4, "seed": seed, "loss": {"name": "ppo_clip"}}))
        meta = {"status": state} | ({"end": ended[state]} if state in ended else {})
        (folder / "meta.json").write_text(json.dumps(meta))
        lines = [json.dumps({"step": n + 1, "time/step": 2.0, "entropy/mean": 0.5}) for n in range(steps)]
        (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    row = {"step": 4, "benchmark": "b", "n": 2, "k": 2, "correct": [1, 2]}
    (root / "mine" / "grpo" / "seed0" / "eval.jsonl").write_text(
        json.dumps({**row, "step": 0, "correct": [0, 0]}) + "\n"
    )
    with open(root / "mine" / "grpo" / "seed0" / "eval.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    return root


def test_what_there_is(results, capsys):
    head, *rows = said(capsys, "list", results)
    assert cells(head) == ["arm", "runs", "state", "step", "score", "age", "kept"]
    packed, live = cells(rows[0]), cells(rows[-1])
    assert packed[:4] == ["deep/coin/both", "5", "finished", "60/60"] and packed[-1] == "packed"
    assert live[:5] == ["mine/grpo", "3", "1 finished, 1 running, 1 failed", "0–4/4", "0.750"] and live[-1] == "live"
    rows = said(capsys, "list", results / "mine")[1:]
    assert [cells(row)[1:3] for row in rows] == [["finished", "4/4"], ["running", "2/4"], ["failed", "0/4"]]
    assert cells(rows[0])[3] == "0.750" and cells(rows[0])[4].endswith(" d") and cells(rows[1])[3].endswith(" s")
    assert cells(said(capsys, "list", results / "mine" / "grpo" / "seed1")[1])[1:3] == ["running", "2/4"]
    for path in (results / "mine" / "grpo" / "seed1").iterdir():  # two seconds a step, and nothing for five minutes
        os.utime(path, (time.time() - 300,) * 2)
    assert cells(said(capsys, "list", results / "mine" / "grpo" / "seed1")[1])[1:5] == [
        "silent",
        "2/4",
        "5 min",
        "live",
    ]
    assert front_door.main(["list", str(results / "nothing")]) == 2
    assert "nothing: no runs there" in capsys.readouterr().err


def test_ages():
    assert [listing.ago(s) for s in (0.2, 59, 61, 7300, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]


def test_only_what_differs(results, tmp_path, capsys):
    one = {"steps": 4, "method": "grpo", "loss": {"name": "ppo_clip", "eps": 0.2}, "new": {"a": 1, "b": None}}
    one["data"] = [{"name": "x", "task": "t", "split": "s"}, {"name": "y", "split": "s"}]
    other = {"steps": 5, "method": "grpo", "loss": {"name": "cegppo", "eps": 0.2, "beta1": 0.5}, "empty": None}
    other["data"] = [{"name": "z", "k": 3, "task": None}, {"name": "y"}, {"name": "x", "task": "t"}]
    lines = listing.difference(("A", "B"), (one, other)).splitlines()
    assert [cells(line.split("  ")) for line in lines] == [
        ["key", "A", "B"],
        ["steps", "4", "5"],
        ["loss.name", '"ppo_clip"', '"cegppo"'],
        ["loss.beta1", "—", "0.5"],
        ["new", '{"a": 1}', "—"],
        ["data[*].split", '"s"', "—"],  # of both that both have
        ["data[z]", "—", '{"name": "z", "k": 3}'],
    ]
    assert listing.difference(("A", "B"), (one, one)) == "no difference"
    rows = said(capsys, "diff", results / "mine" / "grpo" / "seed0", results / "mine" / "grpo" / "seed1")
    assert [cells(row) for row in rows[1:]] == [["seed", "0", "1"]]
    rows = said(capsys, "diff", results / "deep" / "coin" / "high", results / "deep" / "coin" / "low")
    assert {cells(row)[0] for row in rows[1:]} == {"arm", "loss.beta1", "loss.beta2"}
    for a, b, line in [
        (results / "mine", results / "deep" / "coin", "holds several arms; name one of both, high, low, none"),
        (results / "none", results / "mine", "none: no run there with a configuration"),
        (tmp_path / "x.yaml", results / "mine", "x.yaml: no such file"),
    ]:
        assert front_door.main(["diff", str(a), str(b)]) == 2
        assert line in capsys.readouterr().err


def test_experiments_differ_as_they_resolve(tiny, capsys):
    other = tiny.with_name("other.yaml")
    other.write_text(f"include: {tiny.name}\nsteps: 7\nmethod: cegppo\n")
    rows = {cells(row)[0]: cells(row)[1:] for row in said(capsys, "diff", tiny, other)}
    assert rows["steps"] == ["3", "7"] and rows["loss.beta1"] == ["—", "0.5"] and "group_size" not in rows


def test_two_runs_are_compared_without_torch():
    block = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path('run.py', run_name='__main__')"
    pack = "results/one_side_random"
    for words in (["list", pack], ["diff", f"{pack}/high", f"{pack}/low"]):
        done = subprocess.run([sys.executable, "-c", block, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
