"""Answers that need algebra, answers that attack the grader, and saved generations graded
without a model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run
from cegppo import config
from cegppo.config import Limits
from cegppo.problems import answers, comparison, completions, counts, grader, reward
from cegppo.types import BadInput, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent
LIMITS = Limits(timeout=2.0, memory_mb=512, workers=1)  # one worker: a second would only cost its start


def rollout(text, answer, task=None, entry=None, finish="stop"):
    return Rollout(Prompt("s/1", "s", "q", (), answer, task, entry or {}), 0, (), (), finish, text)


SAME = [
    ("\\frac{1}{2}", "\\frac{2}{4}"), ("3\\sqrt{13}", "\\sqrt{117}"), ("x^2+2x+1", "(x+1)^2"), ("p - q", "-q+p"),
    ("y=2x+3", "2x+3"),
    ("50\\%", "50"), ("50\\%", "0.5"), ("90^\\circ", "90"), ("10\\text{ cm}^2", "10"), ("42", "42 apples"),
    ("\\$18.90", "18.9"),
    ("\\text{east}", "east"), ("\\text{(C)}", "C"), ("\\text{Yes}", "Yes."),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
    ("1,2", "2,1"), ("1,2", "\\{2, 1\\}"), ("1 \\pm \\sqrt{2}", "1-\\sqrt{2}, 1+\\sqrt{2}"),
    ("x \\in [-2,7]", "[-2,7]"),
    ("(-\\infty,2)\\cup(3,\\infty)", "(3,\\infty)\\cup(-\\infty,2)"), ("\\frac{1}{3}", "0.333333"), ("6+9i", "9i+6"),
    ("\\begin{pmatrix}1/2\\\\2\\end{pmatrix}", "\\begin{bmatrix}0.5\\\\2\\end{bmatrix}"),
    ("1\\frac{1}{2}", "\\frac{3}{2}"),
]  # fmt: skip
DIFFERENT = [
    ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[1,2)", "[1,2]"), ("\\frac{1}{3}", "0.333"), ("\\pi", "3.14"),
    ("3", "3x"), ("3", "1,2,3"),
    ("1,2,3", "3"), ("\\text{east}", "west"), ("\\text{(C)}", "D"), ("5", "\\text{five}"), ("42", "abc \\foo 42"),
    ("12", "1 2"),
    ("42", "15 apples and 42 pears"), ("\\infty", "-\\infty"), ("0", "10^{-9}"), ("5", "???"), ("5", ""),
    ("x+1", "y+1"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
]  # fmt: skip


def test_pairs_that_match_and_pairs_that_do_not():
    pairs = SAME + DIFFERENT
    found = reward.verdicts([rollout(f"so \\boxed{{{answer}}}", reference) for reference, answer in pairs], LIMITS)
    expected = [Verdict.CORRECT] * len(SAME) + [Verdict.WRONG] * len(DIFFERENT)
    assert [(p, f) for p, f, e in zip(pairs, found, expected) if f is not e] == []


@pytest.mark.parametrize(
    "answer, reference, settled",
    [("1,234", "1234", True), ("10,\\! 000", "10{,}000", True), ("\\dfrac{7}{2}", "3.5", True),
    ("-\\frac{7}{2}", "3.5", False),
     ("12", "13", False), ("12", "1 2", None), ("1  2", "12", False), ("(1,234)", "(1234)", None),
     ("0.3333333", "1/3", True),
     ("\\left(1, 2\\right)", "(1,2)", True), ("\\leftarrow", "arrow", None), ("$5$.", "5", True), ("", "5", False),
     ("x", "5", None)],
)  # fmt: skip
def test_what_is_settled_without_sympy(answer, reference, settled):
    assert comparison.quick(answer, reference) is settled


def test_hostile_answers_cost_their_own_time_and_nothing_else():
    hostile = [
        "10^{10^{10}}",
        "{" * 500_000 + "}" * 500_000,
        "\\sum_{k=1}^{10000000} \\frac{1}{k^2}",
        "\\gcd(2^{34359738368},3)",
    ]
    fair = [
        ("\\frac{1}{2}", "\\frac{2}{4}"),
        ("x+1", "1+x"),
        ("x+1", "x+2"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("\\sqrt{8}", "4"),
    ]
    pairs = [fair[0]]
    for bomb, pair in zip(hostile, fair[1:]):
        pairs += [("5", bomb), pair, ("5", bomb)]  # the second time is known from the first
    start = time.monotonic()
    found = grader.grade(pairs, Limits(timeout=1.0, memory_mb=512, workers=1))
    assert found == [True, None, True, None, None, False, None, None, True, None, None, False, None]
    assert time.monotonic() - start < 60  # four times a second, and what a busy machine adds; without a limit: years


def test_an_allocation_over_the_limit_is_no_wrong_answer():
    """math-verify swallows the MemoryError; at once, so that the time limit has no part in it."""
    pool = grader.Pool(timeout=60.0, memory_mb=512, workers=1)
    assert pool.grade([("5", "\\gcd(2^{34359738368},3)"), ("5", "\\gcd(4,3)"), ("1", "\\gcd(4,3)")]) == [
        None,
        False,
        True,
    ]
    assert len(pool.started) == 1  # the nurse outlives her children


def test_an_unreadable_reference_is_an_error_and_an_equal_text_is_not():
    r = [
        rollout("\\boxed{5}", "???"),
        rollout("\\boxed{???}", "? ??"),
        rollout("none", "???"),
        rollout("on", "5", finish="length"),
    ]
    assert reward.verdicts(r, LIMITS) == [Verdict.GRADER_ERROR, Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.TRUNCATED]


def children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def gone(pid: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = re.search(r"^State:\s*(\w)", _status(pid), re.M)
        if state is None or state[1] == "Z":
            return True
        time.sleep(0.05)
    return False


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def test_killed_workers_are_replaced_and_die_with_their_parent():
    pool = grader.Pool(timeout=5.0, memory_mb=512, workers=1)
    pair = ("\\frac{1}{2}", "\\frac{2}{4}")
    assert pool.grade([pair]) == [True]
    (child,) = children(pool.started[0])
    os.kill(child, signal.SIGKILL)
    assert gone(child) and pool.grade([pair, ("1", "x")]) == [True, False] and len(pool.started) == 1
    (child,) = children(pool.started[0])
    os.kill(pool.started[0], signal.SIGKILL)
    assert gone(child) and pool.grade([pair]) == [True] and len(pool.started) == 2


@pytest.mark.parametrize("kind, request_", [("instructions", ("a", "p", ["punctuation:no_comma"], [{}])),
                                            ("task", ("chain_sum", "1", {"answer": "1"}))])  # fmt: skip
def test_other_workers_end_with_the_asking_process(kind, request_):
    """Libraries that they load keep threads and references, and a child ignores SIGTERM."""
    code = "import sys; from cegppo.problems import grader; from cegppo.config import Limits; "
    code += (
        f"print(grader.ask({kind!r}, [{request_!r}], Limits(workers=1)), grader._pool({kind!r}, 5.0, 1024, 1).started)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("[b'") and "?" not in done.stdout, done.stderr
    (nurse,) = json.loads(done.stdout[done.stdout.rindex("[") :])
    for _ in range(100):
        if not Path(f"/proc/{nurse}").exists() or "Z" in Path(f"/proc/{nurse}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {nurse} is still there")


def test_workers_die_when_the_asking_process_is_killed():
    code = (
        "from cegppo.problems import grader; p = grader.Pool(2.0, 512, 1); p.grade([('1', 'x')]); print(p.started[0],"
        " flush=True); p.grade([('1', '10^{10^{10}}')] * 1000)"
    )
    asking = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    nurse = int(asking.stdout.readline())
    (child,) = children(nurse)
    asking.kill()
    asking.wait()
    assert gone(child) and gone(nurse)


def test_order_and_worker_count_do_not_matter():
    pairs = [(f"{i}x+{i}", f"{i}(1+x)" if i % 3 else f"{i}x") for i in range(1, 31)]
    one, two = (grader.Pool(10.0, 512, workers).grade(pairs) for workers in (1, 2))
    assert one == two == [bool(i % 3) for i in range(1, 31)]


def test_nothing_starts_where_nothing_needs_algebra():
    """A run on generated tasks, or with plain numbers, must not pay for sympy."""
    code = """
import sys
from cegppo.problems import grader, reward
from cegppo.types import Prompt, Rollout
entry = {"question": "2 + 3 =", "answer": "5", "metadata": {}}
made = [Rollout(Prompt("s", "s", "q", (), "5", t, e), 0, (), (), "stop", f"\\\\boxed{{{a}}}")
        for t, e in (("chain_sum", entry), (None, {})) for a in ("5", "6", "5.0", "")]
started, pool = [], grader._pool
grader._pool = lambda kind, *limits: started.append(kind) or pool(kind, *limits)
found = [v.value for v in reward.verdicts(made)]
print(found, started, [m for m in ("math_verify",) if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == str(["correct", "wrong", "correct", "wrong"] * 2) + " ['task'] []"


def test_a_worker_that_cannot_start_is_said_and_not_counted(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(RuntimeError, match="did not start"):
        grader.Pool(1.0, 512, 1).grade([("1", "x")])


def test_final_answer_is_linear():
    start = time.monotonic()
    assert (
        answers.final_answer("\\boxed{" * 200_000) is None
        and answers.final_answer("\\boxed{7}" + "\\boxed{" * 200_000) == "7"
    )
    assert (
        comparison.quick("." * 1_000_000 + "x", "5") is None
        and comparison.quick("1" + " " * 1_000_000 + "2", "12") is False
    )
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "override, part",
    [("grader.timeout=0", "grader.timeout must be above 0"),
    ("grader.memory_mb=10", "grader.memory_mb must be at least 256"),
     ("grader.workers=-1", "grader.workers must be at least 0"), ("grader.time=1", "did you mean 'grader.timeout'?")],
)  # fmt: skip
def test_limits_are_checked(override, part):
    with pytest.raises(BadInput, match=re.escape(part)):
        config.of_overrides([override])


# --------------------------------------------------------------------------------------------------


def test_votes_are_counted_over_answers_written_alike():
    texts = [r"\boxed{0.50}", r"so \boxed{ \frac{1}{2} }", r"\boxed{7}", "none"]
    assert [counts.vote(text) for text in texts] == ["1/2", "1/2", "7", None]
    right = [True, True, False, False]
    assert counts.maj_at_k([[counts.vote(text) for text in texts]], [right], 4) == 1.0


def front_door(capsys, *arguments):
    """(exit code, what was printed, what was printed to stderr) of `run.py eval`."""
    code = run.main(["eval", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_eval_completions(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "saved.jsonl"
    rows = [
        {
            "id": "a",
            "answer": "\\frac{1}{2}",
            "completions": ["\\boxed{0.5}", "\\boxed{\\sin(\\pi/6)}", "\\boxed{3}", "I think 0.5"],
        },
        {"id": 7, "answer": 12, "completions": ["\\boxed{12}", "\\boxed{10^{10^{10}}}", "\\boxed{11}"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    code, said, complained = front_door(capsys, "--completions", file, "grader.timeout=1", "grader.workers=1")
    assert code == 0, complained
    graded = [json.loads(line) for line in (tmp_path / "saved.jsonl.graded.jsonl").read_text().splitlines()]
    assert graded == [
        {"id": "a", "n": 4, "correct": 2, "verdicts": ["correct", "correct", "wrong", "no_answer"]},
        {"id": 7, "n": 3, "correct": 1, "verdicts": ["correct", "grader_error", "wrong"]},
    ]
    assert "avg@k" in said and "maj@k" in said and "0.417" in said  # (2/4 + 1/3) / 2
    assert "correct 3, wrong 2, no_answer 1, truncated 0, grader_error 1" in said and "3 to 4 completions" in said


def test_summary_with_differing_counts():
    problems = [
        completions.Problem(1, "1", ["\\boxed{1}", "\\boxed{2}", "\\boxed{1}"]),
        completions.Problem(2, "1", ["\\boxed{1}", "x"]),
    ]
    row, values = completions.summary("name", problems, completions.grade(problems, LIMITS))
    assert (row["n"], row["k"], row["avg@2"]) == (2, 2, pytest.approx((2 / 3 + 1 / 2) / 2))
    assert values["avg@2"].tolist() == pytest.approx([2 / 3, 1 / 2]) and values["maj@2"].tolist() == [
        0.5,
        1.0,
    ]  # a tie; one vote
    assert row["pass@1"] == pytest.approx(row["avg@2"]) and row["pass@2"] == 1.0 and row["maj@2"] == 0.75


@pytest.mark.parametrize(
    "text, part",
    [
        ("{", "line 1 is not JSON"), ("\n[1]", "line 2 is not an object"),
        ('{"id": 1, "answer": "2"}', "line 1 lacks 'completions'"),
        ('{"id": null, "answer": "2", "completions": ["a"]}', "line 1: 'id' takes a string or an integer, not null"),
        ('{"id": 1, "answer": [2], "completions": ["a"]}', "line 1: 'answer' takes a string or a number, not [2]"),
        ('{"id": 1, "answer": "2", "completions": "a"}', "line 1: 'completions' takes a list of at least one text"),
        ('{"id": 1, "answer": "2", "completions": []}', "line 1: 'completions' takes a list of at least one text"),
        ('{"id": 1, "answer": "2", "completions": ["a"]}\n' * 2, "line 2: 'id' 1 is that of line 1 too"),
        ("\n", "holds no problems"),
    ],
)  # fmt: skip
def test_bad_completions(tmp_path, text, part):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        completions.read(file)
    assert str(error.value).startswith(f"{file}: ") and part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, part",
    [(["results/x", "--completions", "f.jsonl"], "stands for a run or an experiment"),
    (["--completions", "no.jsonl"], "no.jsonl: No such"),
     (["--completions", "f.jsonl", "eval.k=3"], "takes grader.* keys only"), ([], "name a run's folder"),
     (["--checkpoint", "best", "results/nowhere"], "results/nowhere: no such folder")],
)  # fmt: skip
def test_eval_says_what_it_takes(arguments, part, capsys):
    code, _, complained = front_door(capsys, *arguments)
    assert code == 2 and part in complained and complained.startswith("error: ") and complained.count("\n") == 1


def test_grading_saved_texts_needs_no_torch():
    code = (
        "import sys; from cegppo import config, screen; from cegppo.problems import completions;"
        " print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
        == "False\n"
    )


THINKS = "<|User|>What is 2+3?<|Assistant|><think>\n"  # as a template that opens the thinking itself ends


@pytest.mark.parametrize("prompt, opened", [(THINKS, ""), ("What is 2+3?", "<think>\n")])
@pytest.mark.parametrize("verifier", ["answer", "code", "instructions", "none", "rule"])
def test_what_is_cut_inside_its_thinking_is_truncated_for_every_verifier(verifier, prompt, opened, tmp_path):
    if verifier == "rule":
        (tmp_path / "always.py").write_text("def right(prompt, text):\n    return 1.0\n")
        verifier = f"{tmp_path}/always.py:right"
    rows = {
        "code": {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    pass\n"},
        "instructions": {"prompt": "", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "key": 1},
    }
    draft = "So \\boxed{5} or ```python\ndef f():\n    return 1\n``` maybe"
    asked = Prompt("s/1", "s", prompt, (), "5", None, rows.get(verifier, {}), verifier)
    cut = Rollout(asked, 0, (), (), "length", opened + draft)
    assert reward.verdicts([cut]) == [Verdict.TRUNCATED] and not cut.spoken
    through = Rollout(asked, 0, (), (), "length", opened + draft + "</think>So it is \\boxed{5}")
    assert through.spoken == "So it is \\boxed{5}"
    if verifier == "answer":
        assert reward.verdicts([through]) == [Verdict.CORRECT]


def test_a_prompt_that_closes_its_thinking_asks_for_an_answer():
    asked = Prompt("s/1", "s", "2+3?<think>\n\n</think>\n\n", (), "5")
    assert reward.verdicts([Rollout(asked, 0, (), (), "length", "\\boxed{5} because")]) == [Verdict.CORRECT]
