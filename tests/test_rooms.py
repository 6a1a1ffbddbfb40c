"""Rewards, advantages, data, evaluation and the testbed's own making, by hand-worked numbers."""

import itertools
import json
import subprocess
import sys
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch

from cegppo import advantage, config, evaluate
from cegppo.config import Source
from cegppo.problems import reward, testbed
from cegppo.problems.data import Problems, PromptStream, benchmarks
from cegppo.types import BadInput, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so \\boxed{12}", "12"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}} done", "\\frac{1}{2}"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("\\boxed{}", ""),
        ("no box", None),
        ("\\boxed{open", None),
    ],
)
def test_final_answer(text, answer):
    assert reward.final_answer(text) == answer


@pytest.mark.parametrize(
    "answer, reference, same",
    [("12", "12", True), ("12.0", "12", True), ("1/2", "0.5", True), ("1,234", "1234", True), ("+7", "7", True),
    ("-7", "7", False),
     ("", "0", False), ("1/0", "1", False), ("x + 1", "x+1", True), ("1e5", "100000", False), ("9" * 5000, "1", False),
     ("..", "0", False)],
)  # fmt: skip
def test_matches(answer, reference, same):
    assert reward.matches(answer, reference) is same


def rollout(text, finish="stop", task=None, answer="5", entry=None, tokens=3):
    return Rollout(
        Prompt("s/1", "s", "q", (1,), answer, task, entry or {}), 0, (2,) * tokens, (0.0,) * tokens, finish, text
    )


def test_verdicts():
    entry = {"question": "2 + 3 =", "answer": "5", "metadata": {}}
    for r, wanted in [
        (rollout("\\boxed{5}"), Verdict.CORRECT),
        (rollout("\\boxed{05.0}", task="chain_sum", entry=entry), Verdict.CORRECT),  # the library's own tolerance
        (rollout("\\boxed{6}", task="chain_sum", entry=entry), Verdict.WRONG),
        (rollout("\\boxed{five}", task="chain_sum", entry=entry), Verdict.WRONG),
        (rollout("no idea"), Verdict.NO_ANSWER),
        (rollout("still thinking", finish="length"), Verdict.TRUNCATED),
        (rollout("\\boxed{5} and on", finish="length"), Verdict.CORRECT),
        (
            rollout("\\boxed{5}", task="chain_sum", entry={}),
            Verdict.GRADER_ERROR,
        ),  # the grader raises: not a wrong answer
    ]:
        assert reward.verdicts([r]) == [wanted]


def test_grade():
    rules = dict(seed=0, step=1, values=(-1.0, 1.0), max_tokens=10, overlong_buffer=0)
    good, bad = rollout("\\boxed{5}"), rollout("\\boxed{4}")
    assert [s.reward for s in reward.grade([good, bad], source="task", **rules)] == [1.0, -1.0]
    long = rollout("\\boxed{5}", tokens=9)
    assert reward.grade([long], source="task", **{**rules, "overlong_buffer": 4})[0].reward == pytest.approx(1 - 0.75)
    many = [Rollout(good.prompt, i, (1,), (0.0,), "stop", good.text) for i in range(2000)]
    tossed = reward.grade(many, source="random", **rules)
    assert abs(np.mean([s.reward for s in tossed])) < 0.1 and all(s.verdict is Verdict.CORRECT for s in tossed)
    assert (
        tossed
        == reward.grade(many, source="random", **rules)
        != reward.grade(many, source="random", **{**rules, "step": 2})
    )


def test_overlong_penalty_is_zero_then_linear_then_minus_one():
    assert [reward.overlong_penalty(n, 20, 10) for n in (5, 10, 15, 20)] == [0, 0, -0.5, -1]


# --------------------------------------------------------------------------------------------------


def test_group_and_centred():
    r = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    std = np.sqrt(((0.75**2) + 3 * 0.25**2) / 3)  # unbiased
    np.testing.assert_allclose(advantage.group(r)[0], np.array([0.75, -0.25, -0.25, -0.25]) / (std + 1e-6), rtol=1e-12)
    np.testing.assert_allclose(advantage.centred(r)[0], [0.75, -0.25, -0.25, -0.25], rtol=1e-12)
    assert (advantage.group(np.full((1, 3), 0.7)) == 0).all()  # although the mean of three 0.7 is not 0.7
    assert (advantage.group(r)[1] == 0).all() and advantage.constant_groups(r).tolist() == [False, True]


def test_gae_by_hand():
    """Two rows of three and one tokens, γ = 0.5, λ = 0.8; padding holds nonsense that must not
    matter."""
    value = torch.tensor([[0.5, 0.2, 0.1], [0.4, 9.0, 9.0]], dtype=torch.float64)
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]], dtype=torch.float64)
    adv, ret = advantage.gae(rewards, value, mask, gamma=0.5, lam=0.8)
    d2, d1, d0 = 1 - 0.1, 0.5 * 0.1 - 0.2, 0.5 * 0.2 - 0.5
    a2 = d2
    a1 = d1 + 0.4 * a2
    a0 = d0 + 0.4 * a1
    torch.testing.assert_close(adv, torch.tensor([[a0, a1, a2], [0.6, 0, 0]], dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        ret, torch.tensor([[a0 + 0.5, a1 + 0.2, a2 + 0.1], [1.0, 0, 0]], dtype=torch.float64), rtol=1e-12, atol=0
    )
    monte_carlo, _ = advantage.gae(rewards, value, mask, gamma=1.0, lam=1.0)  # reward to go minus value
    torch.testing.assert_close(monte_carlo[0], 1 - value[0], rtol=1e-12, atol=1e-15)


def test_whiten():
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    white = advantage.whiten(torch.randn(2, 3) * mask, mask)
    inside = white[mask > 0]
    assert inside.mean().abs() < 1e-6 and (inside.std(correction=0) - 1).abs() < 1e-4 and white[0, 2] == 0
    assert advantage.whiten(torch.ones(1, 1), torch.ones(1, 1)).item() == 0


# --------------------------------------------------------------------------------------------------


def test_pass_at_k_against_enumeration():
    n, correct = 6, [0, 1, 3, 6]
    for k in range(1, n + 1):
        by_hand = [np.mean([any(i < c for i in draw) for draw in itertools.combinations(range(n), k)]) for c in correct]
        assert evaluate.pass_at_k(n, np.array(correct), k) == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert evaluate.pass_at_k(1000, np.array([1]), 500) == pytest.approx(1 - comb(999, 500) / comb(1000, 500))


def test_summary_stores_counts():
    row = evaluate.summary("b", 6, [0, 6, 3], {"correct": 9})
    assert (
        row["correct"] == [0, 6, 3]
        and row["avg@6"] == 0.5
        and [k for k in row if k.startswith("pass@")] == ["pass@1", "pass@2", "pass@4", "pass@6"]
    )
    assert row["pass@1"] == pytest.approx(0.5) and row["pass@6"] == pytest.approx(2 / 3)


# --------------------------------------------------------------------------------------------------


def test_stream_repeats_resumes_and_holds_out(tiny):
    loaded, _ = config.load(tiny)
    tokenizer = testbed.make_tokenizer()
    made = benchmarks(loaded.eval, loaded.data, tokenizer)
    assert len({p.text for p in made["sums"]}) == 3
    a, b = PromptStream(loaded.data, loaded.seed, tokenizer), PromptStream(loaded.data, loaded.seed, tokenizer)
    first = a.take(40)
    assert first[:10] + first[10:] == b.take(10) + b.take(30) and {p.source for p in first} == {"sums", "gcd"}
    state = json.loads(json.dumps(a.state()))
    ahead = a.take(20)
    b = PromptStream(loaded.data, loaded.seed, tokenizer)
    b.restore(state)
    assert b.take(20) == ahead
    c = PromptStream(loaded.data, loaded.seed, tokenizer, held_out={p.text for p in first[:7]})
    assert not {p.text for p in c.take(40)} & {p.text for p in first[:7]} and c.held_out_count >= 7
    other, _ = config.load(tiny, ["seed=1"])
    assert PromptStream(other.data, other.seed, tokenizer).take(40) != first


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_of_problems_serves_in_the_same_place(tiny, tmp_path, suffix):
    import pandas as pd

    rows = [{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(7)]
    path = tmp_path / f"problems.{suffix}"
    frame = pd.DataFrame(rows)
    frame.to_json(path, orient="records", lines=True) if suffix == "jsonl" else frame.to_parquet(path)
    loaded, _ = config.load(tiny, [f"data.train=[{{file: {path}}}]", f"eval.benchmarks=[{{file: {path}}}]"])
    tokenizer = testbed.make_tokenizer()
    taken = PromptStream(loaded.data, loaded.seed, tokenizer).take(14)
    for epoch in (taken[:7], taken[7:]):  # every row once an epoch, in another order each
        assert {p.text for p in epoch} == {row["problem"] + "\n" for row in rows}
    assert [p.text for p in taken[:7]] != [p.text for p in taken[7:]] and len({p.id for p in taken}) == 14
    (bench,) = benchmarks(loaded.eval, loaded.data, tokenizer).values()
    assert [p.answer for p in bench] == [row["answer"] for row in rows]
    with pytest.raises(BadInput, match="7 are|benchmark questions"):
        PromptStream(loaded.data, loaded.seed, tokenizer, held_out={p.text for p in bench}).take(1)


@pytest.mark.parametrize(
    "task", ["gsm_symbolic", "word_ladder", "pool_matrix", "polynomial_multiplication", "fraction_simplification"]
)
def test_tasks_of_every_make_can_be_streamed(task):
    problems = Problems(Source(name=task, task=task), 0, 1, 2)
    question, answer, entry = problems.problem(10_001)  # beyond the first block
    assert question and isinstance(answer, str) and problems.problem(10_001)[0] == question != problems.problem(3)[0]


def test_json_strings_may_hold_any_line_separator(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"problem": "a\u2028b\x85", "answer": "1"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert Problems(Source(name="p", file=str(path))).problem(0)[0] == "a\u2028b\x85"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        Problems(Source(name="p", file=str(path)))


def test_bad_problem_files(tmp_path):
    for name, text, part in [
        ("a.jsonl", '{"problem": 1}', "row 1 lacks"),
        ("b.jsonl", "{", "line 1 is not JSON"),
        ("c.txt", "", "ends in"),
        ("d.jsonl", "", "no problems"),
        ("e.parquet", "x", "not a readable parquet"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=part):
            Problems(Source(name="x", file=str(tmp_path / name)), 0)


# --------------------------------------------------------------------------------------------------


def test_the_tokenizer_survives_text_and_disk(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = testbed.make_tokenizer()
    testbed.make_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [
        "State the final answer to the following arithmetic problem: 12 - 9 =\n",
        "12-9=3 so \\boxed{3}",
        " two  spaces\n\nand lines ",
        "{x^2}",
    ]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.parametrize("which", range(len(testbed.WARMUP_SOURCES)))
def test_worked_solutions_are_right(which):
    """Without slips every step is a true equation and the answer is the library's."""
    task = testbed.WARMUP_SOURCES[which].task
    pool = testbed.warmup_pool(which)
    assert len(pool) > 0.95 * testbed.POOL
    for question, answer in pool[:400]:
        steps, found = testbed.work_out(task, question)
        assert found == answer, question
        for step in steps:
            left, right = step.split("=")
            assert eval(left.replace("/", "//")) == int(right), (question, step)


def test_careless_work_goes_on_from_its_slips():
    steps, answer = testbed.work_out(
        "chain_sum", "State the final answer to the following arithmetic problem: 4 - 9 + 3 =", lambda r: r + 1
    )
    assert steps == ["4-9=-4", "-4+3=0"] and answer == "0"
    rng = np.random.default_rng(0)
    question, right = testbed.warmup_pool(0)[0]
    texts = [testbed.worked_solution("chain_sum", question, 0.2, rng) for _ in range(600)]
    steps = len(testbed.work_out("chain_sum", question)[0])
    clean = np.mean([reward.final_answer(t) == right for t in texts])
    assert abs(clean - 0.8**steps) < 0.08  # slips may cancel, rarely


def test_warmup_texts_repeat():
    assert (
        testbed.warmup_texts(50, 0.5, 0.2, [1, 2])
        == testbed.warmup_texts(50, 0.5, 0.2, [1, 2])
        != testbed.warmup_texts(50, 0.5, 0.2, [1, 3])
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["train", "experiments/tesbed.yaml"], "experiments/tesbed.yaml: no such file; did you mean 'testbed.yaml'?"),
        (["eval", "results/algoritms"], "results/algoritms: no such folder; did you mean 'algorithms'?"),
        (["report", "results/algoritms"], "no such folder; did you mean 'algorithms'?"),
        (["eval"], "eval: name a run's folder, an experiment, or --completions FILE"),
    ],
)
def test_a_mistyped_name_is_refused_before_anything_slow_is_imported(words, said):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'omegaconf', 'pandas'));"
        " import run; sys.exit(run.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
