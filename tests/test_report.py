"""What the page of `run.py report` is made of, on made-up runs; tests/test_page.py opens it."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import run as front_door
from analysis import curves, defaults, embed, health, load, microscope, report, run_page
from cegppo.verbs.sweep import print_comparison

from .pages import data_of, write_run

ROOT = Path(__file__).resolve().parent.parent
FINE = {"entropy/mean": 0.5, "updates": 8.0, "clip/low": 0.01, "clip/high": 0.01, "ratio/min": 0.5, "ratio/max": 2.0}


def back(column: dict) -> np.ndarray:
    """A column as the page's script reads it (values.js)."""
    forms = {"half": "<f2", "single": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4"}
    made = np.frombuffer(base64.b64decode(column["data"]), forms[column["kind"]])
    return made.astype(float) * column["scale"] if column["kind"] == "half" else made


def test_columns_come_back():
    values = np.array([0.0, -1.5, 3e-8, 2.0, np.nan, 1e-3])
    assert back(embed.column(values, "single")) == pytest.approx(values, rel=1e-6, nan_ok=True)
    assert back(embed.column(values * 1e-4, "half")) == pytest.approx(values * 1e-4, rel=1e-3, nan_ok=True)
    assert back(embed.column(np.zeros(3), "half")).tolist() == [0, 0, 0]
    for most, kind in ((3, "u1"), (300, "u2"), (70_000, "u4")):
        column = embed.column(np.array([0, most]), "index")
        assert column["kind"] == kind and back(column).tolist() == [0, most]


def test_thinned_curves_keep_every_extreme():
    values = np.random.default_rng(0).normal(size=1001)
    values[[137, 802]], values[300:340] = [50.0, -50.0], np.nan
    made = curves.thinned(values, 20)
    assert len(made) == len(range(0, 1001, 10)) and {50.0, -50.0} <= set(made)
    assert list(made).index(50.0) in (12, 13) and np.isnan(made[30:34]).all() and not np.isnan(made[:30]).any()
    steps = pd.DataFrame({"step": range(1, 5002), "entropy/mean": np.sin(np.arange(5001))})
    made, note = curves.columns({"": curves.Lines("", steps, pd.DataFrame())})
    (column,) = made["metrics"]["entropy/mean"]
    assert len(back(column)) == len(made["x"]) <= curves.POINTS and "5,001 steps" in note
    assert (
        made["x"] == sorted(made["x"]) and curves.columns({"": curves.Lines("", steps[:900], pd.DataFrame())})[1] == ""
    )


def test_tokens_come_whole_and_as_recorded(tmp_path):
    folder = write_run(tmp_path / "arm" / "seed0")
    made = microscope.gather({"a": folder}, 10**6)
    assert made["recorded"] == made["shown"] == 3 * 4 * 4 * 9 and made["runs"][0]["bounds"] == [0.8, 1.2]
    r, t = made["responses"], {name: back(column) for name, column in made["tokens"].items()}
    record = load.tokens(folder, 20)
    for n in (0, 17, 30):
        at = slice(r["start"][n], r["start"][n] + r["length"][n])
        name = made["prompts"][r["prompt"][n]]["id"]
        if r["step"][n] != 20:
            continue
        mine = record[(record["prompt_id"] == name) & (record["rollout"] == r["rollout"][n])].sort_values("position")
        assert [made["words"][w] for w in t["word"][at]] == list(mine["text"])
        assert np.exp(t["logp"][at]) == pytest.approx(mine["prob"], rel=5e-3)
        assert np.exp(t["logr"][at]) == pytest.approx(mine["ratio"], rel=1e-3)
        assert t["dentropy_exact"][at] == pytest.approx(mine["dentropy_exact"], rel=1e-3, abs=1e-9)
        assert [microscope.CLASSES[k // 3] for k in t["kind"][at]] == list(mine["class"])
        assert [microscope.SIDES[k % 3] for k in t["kind"][at]] == list(mine["side"])
    assert 20 in {r["step"][n] for n in (17, 30)}


def test_what_does_not_fit_is_left_out_whole_and_said(tmp_path):
    folder = write_run(tmp_path / "arm" / "seed0", looked=6)
    few = microscope.gather({"a": folder}, 6 * 50)
    assert few["recorded"] == 6 * 144 and 0 < few["shown"] <= 300 and set(few["responses"]["length"]) == {9}
    assert len(few["runs"][0]["steps"]) == 2  # too few for every step
    kept = {few["prompts"][p]["id"] for p in few["responses"]["prompt"]}
    assert "sums/first" in kept  # which comes in every step
    (folder / "tokens" / "step000005.parquet").write_bytes(b"no parquet")
    page = data_of(report.write(folder))
    assert any("step000005.parquet: damaged" in line for line in page["thinned"]) and page["tokens"]["shown"] == 5 * 144
    whole = (folder / "report.html").stat().st_size
    path = report.write(folder, largest=whole - 10_000)
    assert path.stat().st_size <= whole - 10_000
    said = data_of(path)["thinned"][0]
    assert "of 720 recorded tokens are in this page: whole responses" in said and not said.startswith("720")
    with pytest.raises(load.Missing, match="bytes without tokens, more than 50,000"):
        report.write(folder, largest=50_000)
    assert path.stat().st_size <= whole - 10_000  # the old page stays


def test_records_of_another_kind(tmp_path):
    """No text, no influence, a prompt drawn twice, ε that the loss does not state."""
    folder = write_run(tmp_path / "arm" / "seed0", looked=1, loss={"name": "reinforce"})
    frame = load.tokens(folder).drop(columns=["text", "dentropy_exact", "verdict", "prompt", "answer"])
    frame = pd.concat([frame.assign(token="Ġso"), frame[frame["prompt_id"] == "sums/first"].assign(token="Ċ")])
    frame.to_parquet(folder / "tokens" / "step000030.parquet")
    made = microscope.gather({"a": folder}, 10**6)
    assert made["words"] == [" so", "\n"] and set(made["responses"]["length"]) == {9}
    assert len(made["responses"]["start"]) == 20 and "dentropy_exact" not in made["tokens"]
    assert made["runs"][0]["bounds"] == [0.8, 1.2]
    frame["side"] = "inside"
    frame.to_parquet(folder / "tokens" / "step000030.parquet")
    assert microscope.gather({"a": folder}, 10**6)["runs"][0]["bounds"] is None


@pytest.mark.parametrize(
    "change, level, what, number",
    [
        ({"entropy/mean": [0.6] * 10 + [0.02] * 10}, "bad", "entropy collapsed", "0.600 → 0.020"),
        ({"entropy/mean": [0.6] * 10 + [1.9] * 10}, "bad", "entropy exploded", "0.600 → 1.900"),
        ({"clip/low": 0.0, "clip/high": 0.0, "updates": 1.0}, "look", "clip is zero: one update a step", "0.00% low"),
        ({"clip/low": 0.0, "clip/high": 0.0}, "look", "clip never acts", "ratio 0.500 to 2.000"),
        ({"rollout/constant_groups": 0.8}, "look", "constant groups", "80% of the groups"),
        ({"mismatch/mean": 0.5}, "bad", "sampler and trainer differ", "0.5 nats (worst step; bound 0.1)"),
        ({"verdict/truncated": 0.1}, "look", "truncated answers", "10.0%"),
        ({"verdict/truncated": 0.9}, "bad", "truncated answers", "90.0%"),
        ({"verdict/grader_error": [0.0] * 19 + [0.01]}, "look", "grader failed", "1.0%"),
        ({"ledger/updates": 8.0, "ledger/empty_updates": 4.0}, "look", "empty updates", "50% of the updates in 20"),
        ({"kl/old_k3": [0.001] * 19 + [0.4]}, "look", "large steps", "KL 0.4 nats"),
        ({"grad/norm": [1.0] * 19 + [50.0]}, "look", "gradient spike", "50 at step 20, 50.0 times the median"),
        ({"update/skipped": [0.0] * 18 + [1.0] * 2}, "bad", "updates left out", "2 updates"),
        ({"critic/explained_variance": -0.5}, "look", "critic", "-0.50"),
    ],
)
def test_a_practised_eye(change, level, what, number):
    steps = pd.DataFrame({"step": range(1, 21), **FINE})
    settings = {"diagnostics": {"every": 0}, "steps": 20}
    raised = lambda frame: [
        n for n in health.notes(frame, settings, {"status": "finished"}, EMPTY) if n.level != "fine"
    ]
    assert raised(steps) == []
    (note,) = raised(steps.assign(**change))
    assert (note.level, note.what) == (level, what) and number in note.number and note.why


def test_where_nobody_says_what_is_right_no_answer_is_missing():
    steps = pd.DataFrame({"step": range(1, 21), **FINE, "verdict/truncated": 1.0})
    seen = lambda verifier: {
        note.level
        for note in health.notes(steps, {"data": {"train": [{"verifier": verifier}]}}, {"status": "finished"}, EMPTY)
        if note.what == "truncated answers"
    }
    assert seen("answer") == {"bad"} and seen("none") == set()


EMPTY = pd.DataFrame(columns=["step", "accuracy"])


def test_an_eye_on_ledger_benchmarks_and_end():
    steps = pd.DataFrame({"step": range(1, 21), **FINE})
    scores = pd.DataFrame({"step": [0, 0, 20, 20], "accuracy": [0.5, 0.5, 0.5, 0.3]})
    found = health.notes(steps, {"diagnostics": {"every": 5}, "steps": 40}, {"status": "failed"}, scores)
    assert [(n.level, n.what) for n in found if n.level != "fine"] == [
        ("bad", "not finished: failed"), ("look", "empty ledger"), ("look", "benchmarks fell"),
    ]  # fmt: skip
    assert found[0].number == "step 20 of 40" and "0.500 → 0.400" in found[2].number


def test_what_was_asked_beyond_the_defaults():
    from cegppo.config import load as configured

    loaded, _ = configured(ROOT / "experiments" / "testbed.yaml", ["method=clip_higher", "update.lr=0.5", "seed=3"])
    asked = {row["key"]: row for row in defaults.asked(loaded.to_dict())}
    assert asked["update.lr"] | {"doc": ""} == {"key": "update.lr", "value": "0.5", "default": "1e-06", "doc": ""}
    assert asked["loss.eps_high"]["value"] == "0.28" and asked["loss.eps_high"]["default"] == "0.2"
    assert asked["data.train"]["value"] == "sum3, sum4, sum5, sum6, equations, gcd"
    assert not {"seed", "results", "group_size", "testbed.tasks.gcd", "update.beta1"} & asked.keys()
    assert all(row["doc"] for key, row in asked.items() if key != "loss.name")


def test_a_sweep_by_folder_name_and_arm(tmp_path, capsys):
    for arm in ("grpo", "cegppo"):
        for seed in (0, 1):
            write_run(tmp_path / "made" / arm / f"seed{seed}", looked=0, method=arm)
    for asked in (tmp_path / "made", "made"):
        assert front_door.main(["report", str(asked), "--results", str(tmp_path)]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "made" / "report.html")
    page = data_of(tmp_path / "made" / "report.html")
    assert [arm["arm"] for arm in page["arms"]] == ["cegppo", "grpo"] and len(page["curves"]["runs"]) == 4
    assert page["tables"][-1]["title"] == "Runs" and len(page["tables"][-1]["rows"]) == 4
    assert page["tokens"] == {} and {row["run"] for row in page["seen"]} == {"CE-GPPO (0.5, 1), seed 0", "GRPO, seed 0"}
    before = (tmp_path / "made" / "report.html").read_bytes()
    assert front_door.main(["report", str(tmp_path / "made" / "grpo")]) == 0
    assert (tmp_path / "made" / "report.html").read_bytes() == before
    assert len(data_of(tmp_path / "made" / "grpo" / "report.html")["curves"]["runs"]) == 2
    assert front_door.main(["report", "mode", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: mode: no such folder")


def test_a_run_writes_its_page_when_asked(tiny, tmp_path, capsys):
    words = ["train", str(tiny), "steps=1", "diagnostics.every=1", "diagnostics.probe=4", "reward=task"]
    for report_it in (False, True):
        folder = tmp_path / f"run{report_it}"
        assert front_door.main([*words, f"run_dir={folder}", f"report={json.dumps(report_it)}"]) == 0
        assert (f"page: {folder / 'report.html'}" in capsys.readouterr().out) == report_it
        assert (folder / "report.html").is_file() == report_it
    page = data_of(folder / "report.html")
    assert page["tokens"]["shown"] == len(load.tokens(folder)) and "dentropy_exact" in page["tokens"]["tokens"]


def test_a_sweep_writes_its_page_when_asked(tmp_path, capsys):
    folders = [write_run(tmp_path / "made" / "grpo" / f"seed{seed}", looked=0, report=True) for seed in (0, 1)]
    print_comparison("made", folders)
    assert f"page: {tmp_path / 'made' / 'report.html'}" in capsys.readouterr().out
    (folders[0] / "config.yaml").write_text(yaml.safe_dump({"report": False}))
    (tmp_path / "made" / "report.html").unlink()
    print_comparison("made", folders)
    assert "page:" not in capsys.readouterr().out and not (tmp_path / "made" / "report.html").exists()


def test_completions_are_thinned_by_whole_evaluations(tmp_path):
    folder = write_run(tmp_path / "arm" / "seed0")
    lines = [json.dumps(row) for row in load.seen(folder).to_dict("records")[:2]]
    rows = [json.dumps(json.loads(line) | {"step": step}) for step in range(40) for line in lines]
    (folder / "completions" / "seen.jsonl").write_text("".join(row + "\n" for row in rows))
    every, none = run_page.completions(folder, 10**6)
    few, left = run_page.completions(folder, 2000)
    assert (len(every), none) == (80, 0) and len(few) == 2 * (40 - left) < 30
    assert (few[0]["step"], few[-1]["step"]) == (0, 39)
    (folder / "completions" / "seen.jsonl").write_text('{"step": 1, "prompt": "p"}\n')
    with pytest.raises(load.Unreadable, match="seen.jsonl: a line without 'id'"):
        report.write(folder)


def test_another_framework_s_run(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    log = [{"step": n, "data": {"actor/entropy": 0.5 - n / 100, "val/acc": 0.1 * n}} for n in range(1, 5)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    spec = {"format": "verl-jsonl", "file": "log.jsonl", "columns": {"entropy/mean": "actor/entropy"}}
    (folder / "foreign.yaml").write_text(yaml.safe_dump(spec | {"evaluations": {"math": "val/acc"}, "n": 10, "k": 1}))
    page = data_of(report.write(folder))
    assert ["recorded by", "another framework, read through foreign.yaml"] in page["facts"]
    assert page["tables"][0]["rows"] == [["math", "10", "1", "0.100", "0.400", "+0.300"]]
    assert [note["what"] for note in page["notes"]] == ["entropy", "benchmarks"]
    assert back(page["curves"]["metrics"]["eval/math"][0]) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_script_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    script = (ROOT / "docs" / "page.md").read_text().partition("```python\n")[2].partition("```")[0]
    write_run(tmp_path / "results" / "testbed" / "cegppo" / "seed0")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "page.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.count("pa_hp") == 2 and "low" in said and script.count("\n") <= 12
