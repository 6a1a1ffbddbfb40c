"""Other domains without a fork: verifiers of sources, reward functions of other trainers, what a
scorer may see, and the second shipped experiment."""

import json
import re
from pathlib import Path

import pytest

from cegppo import config
from cegppo.config import Limits, Source
from cegppo.problems import data, grader, instructions, logic, programs, reward, sandbox, testbed
from cegppo.problems.harmless import EVALUATED, harmless
from cegppo.types import BadInput, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent
HEAD = 'def double(x):\n    """Twice x."""\n'
CODE = {"task_id": "t/0", "prompt": HEAD, "entry_point": "double", "test": "def check(f):\n    assert f(3) == 6\n"}
FOLLOW = {
    "key": 1,
    "prompt": "Three sentences at least, two bullets, no commas.",
    "instruction_id_list": [
        "punctuation:no_comma", "length_constraints:number_sentences", "detectable_format:number_bullet_lists",
    ],
    "kwargs": [{"num_words": None}, {"num_sentences": 3, "relation": "at least"}, {"num_bullets": 2}],
}  # fmt: skip


def rollout(text: str, finish: str = "stop", **prompt) -> Rollout:
    return Rollout(Prompt("p/0", "p", "a question", (), prompt.pop("answer", ""), **prompt), 0, (), (), finish, text)


def written(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def punkt(tmp_path, monkeypatch):
    """nltk's sentence splitter, which is data that has to be downloaded, with nothing learnt."""
    import nltk

    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).touch()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))  # for the workers, which are begun anew
    grader._pool.cache_clear()


# ---------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    "text, program",
    [
        ("    return 2 * x\n\nprint(double(2))", HEAD + "    return 2 * x\n"),
        ("First.\n```python\nx = 1\n```\nThen\n```py\ndef double(x):\n    return 2 * x\n```",
         HEAD + "\n\ndef double(x):\n    return 2 * x"),
        ("```\n    return 2 * x\n```", HEAD + "    return 2 * x"),
        ("```python\ndef double(x):\n    return 2 * x", HEAD + "\n\ndef double(x):\n    return 2 * x"),
        ("double = lambda x: 2 * x", HEAD + "\n\ndouble = lambda x: 2 * x"),
        ("", None),
    ],
    ids=["continued", "last that defines it", "continued in a block", "not closed", "assigned", "empty"],
)  # fmt: skip
def test_the_program_in_a_response(text, program):
    assert programs.program_of(text, HEAD, "double") == program


def test_words_before_a_program_stay_out():
    assert programs.program_of("def double(x): return 2", "Write a function!", "double") == "def double(x): return 2"


@pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing() or "there")
def test_code_is_graded_by_its_tests(monkeypatch):
    monkeypatch.setenv(sandbox.FLAG, "1")
    texts = ["    return 2 * x", "<think>```\nno\n```</think>```python\ndef double(x):\n    return x + x\n```"]
    texts += ["    return x", "<think>it is", "(((", "twice"]
    rollouts = [rollout(text, verifier="code", entry=CODE) for text in texts]
    rollouts.append(rollout("", "length", verifier="code", entry=CODE))
    rollouts.append(rollout("    return 2 * x", verifier="code", entry={**CODE, "test": "assert nothing(double)"}))
    assert reward.verdicts(rollouts, Limits(timeout=2)) == [
        "correct", "correct", "wrong", "no_answer", "wrong", "wrong", "truncated", "grader_error",
    ]  # fmt: skip


@pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing() or "there")
def test_code_is_off_until_it_is_allowed(tmp_path, monkeypatch):
    file = written(tmp_path / "h.jsonl", CODE)
    monkeypatch.delenv(sandbox.FLAG, raising=False)
    with pytest.raises(BadInput, match=r"'h': verifier=code runs programs that a model wrote; set CEGPPO_RUN_CODE=1"):
        data.Problems(Source(name="h", file=file, verifier="code"), 0)
    monkeypatch.setenv(sandbox.FLAG, "1")
    question, answer, row = data.Problems(Source(name="h", file=file, verifier="code"), 0).problem(0)
    assert (question, answer, row) == (HEAD, CODE["test"].rstrip("\n") + "\n", CODE)
    written(tmp_path / "h.jsonl", CODE, {**CODE, "entry_point": None})
    with pytest.raises(BadInput, match="row 2 lacks 'entry_point'"):
        data.Problems(Source(name="h", file=file, verifier="code"), 0)


# -------------------------------------------------------------------------------- instructions


def test_instructions_are_strict_and_loose(punkt):
    followed = "One. Two. Three.\n* a\n* b"
    texts = [followed, "Sure, here it is:\n" + followed, "One. Two.", "", "<think>a, b</think>" + followed]
    rollouts = [rollout(text, verifier="instructions", entry=FOLLOW) for text in texts]
    assert reward.verdicts(rollouts) == ["correct", "wrong", "wrong", "no_answer", "correct"]
    found = instructions.measures((FOLLOW, text) for text in texts)
    # Of 5 responses 2 follow all as they stand, and one more without its first line. Of their 15
    # instructions the second breaks the comma's, the third those of sentences and bullets, the
    # fourth all three.
    strict = {"prompt_strict": 2 / 5, "instruction_strict": 9 / 15}
    assert found == pytest.approx({**strict, "prompt_loose": 3 / 5, "instruction_loose": 10 / 15})


@pytest.mark.parametrize(
    "damage, said",
    [
        ({"kwargs": [{}]}, "row 1: 'kwargs' takes one mapping for each"),
        ({"instruction_id_list": "punctuation:no_comma"}, "row 1 lacks 'prompt', 'instruction_id_list' or 'kwargs'"),
        ({"instruction_id_list": ["punctuation:no_coma"] * 3}, "needs nltk's averaged_perceptron_tagger_eng: python"),
    ],
)  # fmt: skip
def test_rows_of_instructions_are_checked(tmp_path, punkt, damage, said):
    file = written(tmp_path / "i.jsonl", {**FOLLOW, **damage})
    with pytest.raises(BadInput, match=re.escape(said)):
        data.Problems(Source(name="i", file=file, verifier="instructions"), 0)


def test_a_benchmark_of_instructions_says_four_accuracies(tiny, tmp_path, punkt, capsys):
    from cegppo.evaluate import evaluate_target
    from cegppo.screen import print_eval

    file = written(tmp_path / "i.jsonl", FOLLOW, {**FOLLOW, "prompt": "Again."})
    given = [f"eval.benchmarks=[ifeval={file}]", "eval.max_tokens=4", "eval.k=2", f"run_dir={tmp_path / 'run'}"]
    (row,), _ = evaluate_target(tiny, given, "latest", lambda values: {name: (0.0, 1.0) for name in values}, print)
    assert row["n"] == 2 and row["k"] == 2 and "maj@2" not in row and row["avg@2"] == row["measures"]["prompt_strict"]
    assert (
        row["measures"]["instruction_loose"] >= row["measures"]["instruction_strict"] > 0
    )  # it writes no comma, or so
    (again,), _ = evaluate_target(tiny, given, "latest", lambda values: {name: (0.0, 1.0) for name in values}, print)
    assert again == row
    print_eval([row])
    assert "ifeval: prompt strict" in capsys.readouterr().out


# ------------------------------------------------------------------------------ rules of one's own


def test_reward_functions_of_other_trainers_work_as_they_are(tmp_path):
    file = tmp_path / "rules.py"
    file.write_text(
        "def own(prompt, text):\n    return float(text == prompt.answer)\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': float(solution_str == ground_truth), 'source': data_source, 'l': extra_info['level']}\n"
        "def trl(completions, answer, **columns):\n"
        "    assert columns['prompts'] == ['a question'] and columns['level'] == [3]\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]\n"
        "def bare(completions, level):\n    return [len(c) / 10 / level[0] for c in completions]\n"
    )
    ask = lambda name, text: reward.ruled(f"{file}:{name}", rollout(text, answer="yes", entry={"level": 3}))
    assert [ask(name, text) for name in ("own", "compute_score", "trl") for text in ("yes", "no")] == [1, 0] * 3
    assert ask("bare", "xxx") == pytest.approx(0.1)


def test_a_rule_is_a_verifier_and_gives_a_benchmark(tiny, tmp_path, monkeypatch):
    from cegppo.evaluate import evaluate_target
    from cegppo.train import run_training

    from .test_train import Silent

    monkeypatch.delenv(sandbox.FLAG, raising=False)
    (tmp_path / "rules.py").write_text("def short(prompt, text):\n    return len(text) <= prompt.entry['most']\n")
    rows = [{"problem": f"{i}?", "answer": "none", "most": 100 * i} for i in range(6)]
    of = lambda file: f"{{name: own, file: {file}, verifier: '{tmp_path / 'rules.py'}:short'}}"
    trained = of(written(tmp_path / "train.jsonl", *rows[3:]))
    source = of(written(tmp_path / "own.jsonl", *rows[:3]))
    given = ["reward=task", f"data.train=[{trained}]", f"eval.benchmarks=[{source}]", "steps=1"]
    run = [*given, f"run_dir={tmp_path / 'run'}", "eval.limit=2"]
    assert run_training(config.load(tiny, run)[0], Silent()) == "finished"
    every = lambda values: {name: (0.0, 1.0) for name in values}
    (row,), _ = evaluate_target(tmp_path / "run", [f"eval.benchmarks=[{source}]"], "latest", every, print)
    assert row["n"] == 2 and row["avg@2"] >= 0.5  # the second problem's limit is above any response
    with pytest.raises(BadInput, match="names .*rules.py:short, which is code that would run; say eval.benchmarks"):
        evaluate_target(tmp_path / "run", [], "latest", every, print)


@pytest.mark.parametrize(
    "source, said",
    [
        ("{file: x.jsonl, verifier: codes}", "unknown verifier 'codes'; did you mean 'code'?"),
        ("{task: gcd, verifier: code}", "verifier 'code' needs rows with tests, and a task has its own scorer"),
    ],
)
def test_bad_verifiers(tiny, source, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        config.load(tiny, [f"eval.benchmarks=[{source}]"])


# ------------------------------------------------------------------- reasoning-gym's scorers


@pytest.mark.parametrize("task", sorted(EVALUATED))
def test_right_answers_are_harmless(task):
    import reasoning_gym

    made = reasoning_gym.create_dataset(task, seed=0, size=8)
    answers = [str(entry["answer"]) for entry in made if entry["answer"] is not None]
    assert answers and all(harmless(task, answer) for answer in answers)


def test_a_text_within_a_formula_is_no_number():
    """sympy would read it as a formula, and run it."""
    assert not harmless("simple_integration", "sin('exit()')") and not harmless("countdown", "1+'1'")
    assert harmless("simple_integration", "sin(x)**2/3 + C") and not harmless("simple_integration", "x**101")


@pytest.mark.parametrize("task", sorted(EVALUATED))
@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')", "open('/etc/passwd').read()", "().__class__", "[1 for x in [1]]", "9**9**9",
        "exit()", "x.diff", "f'{exit()}'", "(lambda: 1)()", "[0]*10**10", "1" * 2000,
    ],
)  # fmt: skip
def test_what_could_run_is_wrong(task, answer):
    assert not harmless(task, answer)
    asked = rollout(f"\\boxed{{{answer}}}", task=task, entry={"answer": answer, "metadata": {}})
    assert reward.verdicts([asked]) == ["wrong"]


# --------------------------------------------------------------------- experiments/logic.yaml


@pytest.mark.parametrize("task", logic.SOURCES)
def test_worked_solutions_are_right_and_slips_are_not_always(task):
    import numpy as np
    import reasoning_gym

    made = reasoning_gym.create_dataset(task, seed=3, size=60, **logic.SOURCES[task].params)
    score, rng = reasoning_gym.get_score_answer_fn(task), np.random.default_rng(0)
    for entry in made:
        steps, answer = logic.work_out(task, entry, int, rng)
        assert steps and score(answer, entry) == 1, (entry["question"], steps, answer)
        assert harmless(task, answer)
    sloppy = [score(logic.work_out(task, entry, lambda n: n + 1, rng)[1], entry) == 1 for entry in made]
    assert sum(sloppy) < len(sloppy) / 2


def test_questions_of_the_tasks_are_short_for_the_tokenizer():
    loaded, _ = config.load(ROOT / "experiments" / "logic.yaml")
    tokenizer = testbed.make_tokenizer(loaded.testbed)
    for source in loaded.data.train:
        problems = data.Problems(source, 0)
        texts = [problems.problem(i)[0] + "\n" for i in range(40)]
        assert max(len(tokenizer.encode(text)) for text in texts) <= 80
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in source.params.items()} == logic.SOURCES[
            str(source.task)
        ].params, "the warm-up's problems are the experiment's"


def test_the_experiment_runs(tmp_path, monkeypatch):
    """As `run.py train experiments/logic.yaml steps=3` does, with everything small."""
    from cegppo.record.files import read_lines
    from cegppo.train import run_training

    from .test_train import Silent

    monkeypatch.setenv("CEGPPO_CACHE", str(tmp_path / "cache"))
    small = ["testbed.pool=20", "testbed.clean_steps=2", "testbed.careless_steps=1", "testbed.rows=4", "steps=3"]
    small += ["prompts_per_step=4", "group_size=2", "updates_per_step=2", "eval.size=2", "eval.k=2", "eval_every=0"]
    loaded, _ = config.load(ROOT / "experiments" / "logic.yaml", [*small, f"run_dir={tmp_path / 'run'}"])
    assert run_training(loaded, Silent()) == "finished"
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 3
    names = {row["benchmark"] for row in read_lines(tmp_path / "run" / "eval.jsonl")}
    assert names == {"knights", "letters", "palindromes", "countdown"}


def test_nobody_s_verdict_is_no_statement_about_the_answer():
    rollouts = [rollout("\\boxed{1}", verifier="none"), rollout("…", "length", verifier="none")]
    assert reward.verdicts(rollouts) == [Verdict.NO_ANSWER, Verdict.TRUNCATED]
