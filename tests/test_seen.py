"""What the model wrote is kept, stays small, and is text for whoever looks at it."""

import json

from analysis import load, report
from cegppo import config, evaluate
from cegppo.record import seen
from cegppo.record.files import read_lines
from cegppo.train import run_training

from .pages import data_of
from .test_train import Silent


def test_every_evaluation_of_a_run_leaves_completions(tiny, tmp_path):
    """The samples that eval.jsonl counts; a continued run has each once."""
    for steps in (2, 3):
        loaded, _ = config.load(tiny, [f"run_dir={tmp_path / 'run'}", f"steps={steps}", "eval.k=6"])
        run_training(loaded, Silent())
    rows = read_lines(tmp_path / "run" / seen.NAME)
    tests = {row["step"]: row for row in read_lines(tmp_path / "run" / "eval.jsonl")}
    assert [row["step"] for row in rows] == [step for step in tests for _ in range(3)] and len(tests) == 3
    for row in rows:
        assert row["benchmark"] == "sums" and row["id"].startswith("sums/") and row["prompt"].strip() and row["answer"]
        lengths = {len(row[key]) for key in ("completions", "verdicts", "finish", "tokens")}
        assert lengths == {seen.COMPLETIONS} and set(row["verdicts"]) <= set(tests[row["step"]]["verdicts"])
    assert rows[0]["id"] == rows[3]["id"] and rows[0]["completions"] != rows[6]["completions"]
    shown = load.seen(tmp_path / "run")
    assert shown["step"].tolist() == [row["step"] for row in rows]


def test_few_prompts_of_each_benchmark(tiny, monkeypatch):
    monkeypatch.setattr(evaluate, "SEEN_PROMPTS", 2)

    class Sampler:
        def but(self, **_):
            return self

        def sample(self, requests, step):
            from cegppo.types import Rollout

            return [Rollout(r.prompt, r.index, (1,), (0.0,), "stop", f"{r.prompt.id} {r.index}") for r in requests]

    from cegppo.types import Prompt

    prompts = [Prompt(f"b/{n}", "b", "q", (1,), "1", None, {}) for n in range(5)]
    for count, few in ((1, 2), (2, 1), (3, 1)):
        made = [evaluate.Benchmark(f"b{n}", prompts, 2, {}) for n in range(count)]
        _, seen = evaluate.Evaluator(Sampler(), made).run(7)
        kept = [row for of_one in seen for row in of_one]
        assert [row["id"] for row in kept] == [f"b/{n}" for n in range(few)] * count
        assert kept[0]["completions"] == ["b/0 0", "b/0 1"] and kept[0]["step"] == 7


def row(step, text="x"):
    one = {"step": step, "benchmark": "b", "id": "b/0", "prompt": text, "answer": "1", "completions": [text] * 9}
    return one | {"verdicts": ["wrong"] * 9, "finish": ["stop"] * 9, "tokens": [3] * 9}


def test_the_file_stays_small(tmp_path, monkeypatch):
    seen.log_seen(tmp_path, [row(0, "ab" * 5000 + "\ud800")])
    (kept,) = read_lines(tmp_path / seen.NAME)
    assert len(kept["completions"]) == 4 and all(len(t) < 2100 for t in (kept["prompt"], *kept["completions"]))
    assert kept["prompt"].startswith("abab") and "[…8001 characters left out…]" in kept["prompt"]
    monkeypatch.setattr(seen, "LARGEST", 3000)
    (tmp_path / seen.NAME).unlink()
    for step in range(0, 400, 5):
        seen.log_seen(tmp_path, [row(step)])
        steps = [r["step"] for r in read_lines(tmp_path / seen.NAME)]
        assert steps[0] == 0 and steps[-1] == step and steps == sorted(set(steps))
        assert (tmp_path / seen.NAME).stat().st_size <= 3000
    assert len(steps) > 4
    seen.rewind_seen(tmp_path, steps[2])
    assert [r["step"] for r in read_lines(tmp_path / seen.NAME)] == steps[:3]


def test_the_report_shows_them_as_text(tiny, tmp_path):
    """A completion with a script tag stays text, and so do prompts, answers and names."""
    loaded, _ = config.load(tiny, [f"run_dir={tmp_path / 'run'}", "steps=1"])
    run_training(loaded, Silent())
    evil = '</pre><script>alert("x")</script><img src=x onerror=alert(1)>&amp;'
    line = row(1, evil) | {
        "id": f"b/{evil}",
        "answer": evil,
        "verdicts": ["correct", "no_answer", "wrong", "truncated"],
    }
    with open(tmp_path / "run" / seen.NAME, "a") as file:
        file.write(json.dumps(line) + "\n")
    path = report.write(tmp_path / "run")
    page, shown = path.read_text(), data_of(path)
    assert page.count("<script") == page.count("</script") == 2 and "onerror=alert(1)>" in page and "<img" not in page
    (kept,) = [one for one in shown["seen"] if one["id"].startswith("b/<")]
    assert set(kept["completions"]) == {evil} and kept["prompt"] == kept["answer"] == evil and kept["step"] == 1
    assert {one["step"] for one in shown["seen"]} == {0, 1} and shown["thinned"] == []
    (tmp_path / "run" / seen.NAME).unlink()
    assert data_of(report.write(tmp_path / "run"))["seen"] == []
