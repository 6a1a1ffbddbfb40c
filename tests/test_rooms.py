"""Rewards, advantages, data, evaluation and the testbed's own making, by hand-worked numbers."""

import itertools
import json
import re
import subprocess
import sys
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch

from cegppo import advantage, config, evaluate
from cegppo.config import Source
from cegppo.config.recipe import Recipe
from cegppo.problems import answers, notation, reward, testbed
from cegppo.problems.data import Problems, PromptStream, benchmarks
from cegppo.types import BadInput, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent

# --------------------------------------------------------------------------------------------------


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
    assert answers.final_answer(text) == answer


@pytest.mark.parametrize(
    "text, line, number",
    [
        ("3 + 4\nis 7.", "is 7.", "7"),
        ("No, 3-4 = -1\n\n", "No, 3-4 = -1", "-1"),
        ("so 1,234.5, 2", "so 1,234.5, 2", "2"),
        ("half: 1/2 (x)", "half: 1/2 (x)", "1/2"),
        ("none", "none", None),
        ("", None, None),
    ],
)
def test_final_answer_elsewhere(text, line, number):
    assert answers.final_answer(text, "last_line") == line
    assert answers.final_answer(text, "last_number") == number
    prompt = Prompt("s/1", "s", "q", (1,), number or "0", final="last_number")
    verdicts = reward.verdicts([Rollout(prompt, 0, (2,), (0.0,), "stop", text)])
    assert verdicts == [Verdict.NO_ANSWER if number is None else Verdict.CORRECT]


@pytest.mark.parametrize(
    "answer, reference, same",
    [("12", "12", True), ("12.0", "12", True), ("1/2", "0.5", True), ("1,234", "1234", True), ("+7", "7", True),
    ("-7", "7", False),
     ("", "0", False), ("1/0", "1", False), ("x + 1", "x+1", True), ("1e5", "100000", True), ("9" * 5000, "1", False),
     ("..", "0", False)],
)  # fmt: skip
def test_matches(answer, reference, same):
    assert notation.matches(answer, reference) is same


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


def test_a_share_of_the_answers_is_told_the_truth():
    """Nested: who is told at a share of 0.3 is told at 0.5; at 0 it is the coin, at 1 the task."""
    rules = dict(seed=0, step=1, values=(0.0, 1.0), max_tokens=10, overlong_buffer=0)
    good = rollout("\\boxed{5}")
    many = [Rollout(good.prompt, i, (1,), (0.0,), "stop", good.text) for i in range(4000)]
    rewards = {
        s: np.array([x.reward for x in reward.grade(many, source="task", signal=s, **rules)]) for s in (0, 0.3, 0.5, 1)
    }
    assert (rewards[0] == [s.reward for s in reward.grade(many, source="random", **rules)]).all()
    assert (rewards[1] == 1).all() and (rewards[0] <= rewards[0.3]).all() and (rewards[0.3] <= rewards[0.5]).all()
    for s in (0.3, 0.5):  # a correct answer earns 1 when told, else as the coin falls
        assert rewards[s].mean() == pytest.approx(s + (1 - s) / 2, abs=0.02)
    assert all(s.verdict is Verdict.CORRECT for s in reward.grade(many, source="task", signal=0.3, **rules))


RULES = """
def length(prompt, text):
    return len(text) / 10 if prompt.answer == "5" else 0

def broken(prompt, text):
    return text.no_such_thing
"""


def test_a_rule_of_the_users_own(tmp_path, tiny):
    (tmp_path / "rules.py").write_text(RULES)
    rules = dict(seed=0, step=1, values=(-1.0, 1.0), max_tokens=10, overlong_buffer=0)
    grade = lambda function, text: reward.grade([rollout(text)], source=f"{tmp_path / 'rules.py'}:{function}", **rules)
    (score,) = grade("length", "abcd")
    assert score.reward == pytest.approx(-0.2) and score.verdict is Verdict.NO_ANSWER
    for function, text, said in [
        ("length", "twelve chars", r"length returned 1\.2, not a number in \[0, 1\], for 'twelve chars'"),
        ("broken", "x", "broken failed on the response 'x': AttributeError"),
        ("lenght", "x", "no function 'lenght'; did you mean 'length'?"),
    ]:
        with pytest.raises(BadInput, match=said):
            grade(function, text)
    with pytest.raises(BadInput, match="none.py: no such file"):
        reward.rule(f"{tmp_path / 'none.py'}:length")
    (tmp_path / "bad.py").write_text("import no_such_module")
    with pytest.raises(BadInput, match="bad.py cannot be imported: ModuleNotFoundError"):
        reward.rule(f"{tmp_path / 'bad.py'}:length")
    loaded, _ = config.load(tiny, [f"reward={tmp_path / 'rules.py'}:length"])
    assert loaded.reward.endswith("rules.py:length")


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["reward=tsak"], "reward: unknown value 'tsak'; did you mean 'task'?"),
        (["reward_signal=1.5"], "reward_signal must be in"),
        (["reward=random", "reward_signal=0.3"], "reward=random is reward_signal=0"),
    ],
)
def test_bad_rewards(tiny, overrides, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        config.load(tiny, overrides)


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
    testbed.make_model(Recipe(), tokenizer).save_pretrained(tmp_path)
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
