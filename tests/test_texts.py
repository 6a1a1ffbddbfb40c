"""Texts that others wrote: an answer never stops a run, a name never reaches a terminal as a code,
a secret never reaches a record."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import reasoning_gym
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import tables
from cegppo import config, masking
from cegppo.cli import main
from cegppo.config import Limits
from cegppo.model.policy import Policy
from cegppo.problems import data, grader, instructions, reward
from cegppo.problems.harmless import harmless
from cegppo.problems.programs import program_of
from cegppo.types import BadInput, Prompt, Rollout, Verdict, printable

LIMITS = Limits(timeout=2.0, memory_mb=512, workers=1)
SLOW = 2 * LIMITS.timeout + 5  # a worker is asked twice at most; the rest is this machine's own business


@pytest.fixture(scope="module", autouse=True)
def _started():
    """A worker takes seconds to load its libraries, once."""
    grader.ask("task", [("chain_sum", "1", {"answer": "1"})], LIMITS)


def entry_of(task: str) -> dict:
    return reasoning_gym.create_dataset(task, seed=1, size=1)[0]


def verdict(task: str, answer: str) -> Verdict:
    prompt = Prompt("s/1", "s", "q", (1,), "x", task, entry_of(task))
    start = time.perf_counter()
    (found,) = reward.verdicts([Rollout(prompt, 0, (2,), (0.0,), "stop", f"\\boxed{{{answer}}}")], LIMITS)
    assert time.perf_counter() - start < SLOW
    return found


HANGS = [("coin_flip", "1e300000000"), *((task, "10**(99*99*99*99*99)") for task in (
    "simple_integration", "intermediate_integration", "polynomial_multiplication"))]  # fmt: skip


@pytest.mark.parametrize("task, answer", HANGS)
def test_an_answer_does_not_stop_a_run(task, answer):
    assert verdict(task, answer) in (Verdict.WRONG, Verdict.GRADER_ERROR)


@pytest.mark.parametrize("answer", ["10**(99*99*99*99*99)", "x**(99*2)", "2**(50*(1+2))", "9**9**9"])
def test_a_power_of_products_is_no_small_one(answer):
    assert not harmless("simple_integration", answer)
    assert harmless("simple_integration", "x**(3/2) + 2*x**4/3")


def test_a_scorer_that_hangs_costs_its_own_answer():
    """Asked together with others, which get their verdicts all the same."""
    entries = [entry_of("chain_sum"), entry_of("coin_flip")]
    asked = [("chain_sum", entries[0]["answer"], entries[0]), ("coin_flip", "1e300000000", entries[1]),
             ("chain_sum", "no number", entries[0])]  # fmt: skip
    assert grader.ask("task", asked, LIMITS) == [b"1", b"?", b"0"]


TASKS = sorted(reasoning_gym.factory.DATASETS)
PIECES = st.sampled_from(["(", "[", "9" * 9, "**", "e9", "1e300000000", "x", "\n", "{", "}", "*", "+", "'", "lambda:",
                          "\\frac", "^", " " * 50, "import os", "a", ",", "/", "0", "-", "Integral(", ")"])  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(TASKS), st.text(max_size=30) | st.lists(PIECES, max_size=20).map("".join))
def test_any_text_as_an_answer_to_any_task_ends(task, answer):
    assert verdict(task, answer) in set(Verdict)


def test_scorers_are_asked_in_workers_alone():
    """Each task's scorer gets its own right answer there."""
    known = ("chain_sum", "countdown", "spiral_matrix", "knights_knaves", "gcd", "polynomial_equations")
    asked = [(task, entry["answer"], entry) for task in known if (entry := entry_of(task))]
    assert grader.ask("task", asked, LIMITS) == [b"1"] * len(known)
    code = "import cegppo.problems.reward, sys; sys.exit('reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


ROW = {"prompt": "p", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["(x+x+)+y"]}]}
HOLES = {"prompt": "p", "instruction_id_list": ["detectable_content:number_placeholders"],
         "kwargs": [{"num_placeholders": 2}]}  # fmt: skip


def test_checks_of_instructions_are_timed():
    """Brackets that a pattern of the library's takes for ever over, and a pattern of the data's."""
    limits = Limits(timeout=2.0, memory_mb=512, workers=1)
    assert instructions.followed([(HOLES, "[a] [b]")], limits) == [[(True, True)]]
    start = time.perf_counter()
    found = instructions.followed([(HOLES, "[" * 300_000), (ROW, "x" * 40), (HOLES, "[a] [b]")], limits)
    assert found[1:] == [None, [(True, True)]] and time.perf_counter() - start < 3 * SLOW


@pytest.mark.parametrize("text", ["```" + " " * 10**6, "```python" + "\t" * 10**6, "```\n" * 10**5, "```" * 10**5])
def test_a_program_is_found_in_linear_time(text):
    start = time.perf_counter()
    program_of(text, "def f(x):\n", "f")
    assert time.perf_counter() - start < 5


# --------------------------------------------------------------------------------------- templates


class Endless:
    chat_template = "x"

    def apply_chat_template(self, *_, **__):
        import jinja2.sandbox

        loops = "".join(f"{{% for {c} in range(99999) %}}" for c in "abc") + "{% endfor %}" * 3
        return jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(loops).render()


def test_a_template_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(data, "TEMPLATE_SECONDS", 0.5)
    start = time.perf_counter()
    with pytest.raises(BadInput, match=r"refuses a prompt: took more than 0\.5 s"):
        data.encode("q", Endless(), config.Data(chat_template=True))
    assert time.perf_counter() - start < 5


# --------------------------------------------------------------------------------- what is printed

ESC = "\x1b]0;PWNED\x07\x1b[31mRED\x1b[2J\u202egnp.exe\u2066\r fake: finished"


def is_harmless(text: str) -> bool:
    return not [c for c in text if not c.isprintable() and c not in "\n\t"]


@given(st.text())
def test_what_is_printed_is_printable(text):
    shown = printable(text)
    assert all(c.isprintable() or c in "\n\t" or c.isspace() for c in shown) and "\x1b" not in shown
    assert printable(shown) == shown


def test_names_and_texts_do_not_reach_the_terminal_as_codes(tmp_path, monkeypatch, capsys):
    from .faults.inputs import folder

    for arm in ("a", ESC):
        there = tmp_path / "results" / "own" / arm / "seed0"
        there.mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", "eval.jsonl", "meta.json"):
            (there / name).write_bytes((folder() / name).read_bytes())
    (there / "config.yaml").write_text(
        (there / "config.yaml").read_text() + f"\n{json.dumps(ESC)}: {json.dumps(ESC)}\n"
    )
    meta = json.loads((there / "meta.json").read_text())
    (there / "meta.json").write_text(json.dumps(meta | {"status": ESC}))
    rows = [json.loads(line) for line in (there / "eval.jsonl").read_text().splitlines()]
    (there / "eval.jsonl").write_text("".join(json.dumps(row | {"benchmark": ESC}) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    run = f"results/own/{ESC}/seed0"
    for words in (["list", "results"], ["list", run], ["compare", "results/own"], ["diff", "results/own/a/seed0", run],
                  ["report", run], ["report", "results/own"], ["advise", run], ["keep", "results/own"],
                  ["eval", run], ["train", "--from", run], ["compare", run, "--to", ESC]):  # fmt: skip
        main(words)
        said = capsys.readouterr()
        assert said.out + said.err and is_harmless(said.out + said.err), words
    made = [path for path in (tmp_path / "results" / "figures").iterdir() if path.suffix in (".md", ".tex", ".csv")]
    assert len(made) >= 3 and all(is_harmless(path.read_text()) for path in made)


def test_cells_are_no_formulas_and_no_commands(tmp_path):
    names = [
        "=1+1",
        "+x",
        "-x",
        "@x",
        "\t=1",
        "-0.5",
        "plain",
        r"\input{/etc/passwd}",
        "$x_$",
        "a~b^c",
        "{",
        "é",
        "<b>",
    ]
    frame = pd.DataFrame({"arm": names, "value": [-1.0] * len(names)})
    section = tables.Section(r"a \title{}", "text", frame.astype(str))
    tables.save(tmp_path, "t", [section], frame)
    written = (tmp_path / "figures" / "t.csv").read_text().splitlines()[1:]
    cells = [line.rsplit(",", 1)[0].strip('"') for line in written]
    assert [c for c in cells if c[:1] in "=+-@"] == ["-0.5"] and all(line.endswith(",-1") for line in written)
    text = (tmp_path / "figures" / "t.tex").read_text()
    assert r"\input" not in text and r"\textbackslash{}input\{/etc/passwd\}" in text and r"\$x\_\$" in text
    assert r"\textasciitilde{}" in text and r"\textasciicircum{}" in text


# ----------------------------------------------------------------------------------------- secrets

TOKENS = {"hf_": "hf_" + "a1" * 17, "github_pat_": "github_pat_" + "1A_" * 20, "AKIA": "AKIA" + "Q" * 16,
          "glpat-": "glpat-" + "x" * 20, "xoxb-": "xoxb-" + "1234567890-" * 3 + "ab",
          "wandb_v1_": "wandb_v1_" + "q" * 40, "sk-": "sk-proj-" + "Z9" * 20, "ghp_": "ghp_" + "b" * 36,
          "address": "https://me:hunter2@host/x"}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENS)
def test_a_configuration_holds_no_secret(kind, tiny):
    token = TOKENS[kind]
    for word in (f"wandb.project={token}", f"model.path={token}", f"wandb.tags=[a, {token}]"):
        with pytest.raises(BadInput, match="holds a token or a password") as refused:
            config.load(tiny, [word])
        assert token not in str(refused.value)
    for text in (f"x={token}", f"run.py train notes={token} seed=1", f"[{token}]"):
        assert token not in masking.without_secrets(text) and "***" in masking.without_secrets(text)
    assert token not in json.dumps(masking.masked({"a": {"b": [token]}, "token": "short"}))


@pytest.mark.parametrize("words", ["models/hf_llama_v2", "sk-learn", "results/task-one/risk-averse-arm-of-forty",
                                   "rollout.max_tokens=64", "a:b@c", "https://host/path"])  # fmt: skip
def test_what_is_no_secret_is_taken(words):
    assert not masking.is_secret(words)


def test_wandb_is_told_no_secret(tmp_path, tiny):
    """Neither in its record, nor in its logs, nor in anything else that the command leaves."""
    secret = "hunter2hunter2"
    words = ["train", str(tiny), f"run_dir={tmp_path / 'run'}", "steps=1", "wandb.mode=offline",
             f"wandb.tags=[password:{secret}]"]  # fmt: skip
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, str(root / "run.py"), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = [path for path in (tmp_path / "run" / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in left)
    assert not [path for path in left if secret.encode() in path.read_bytes()]
    assert secret not in (tmp_path / "run" / "meta.json").read_text()


# ------------------------------------------------------------------------------------------ models


def test_pickled_weights_are_refused_in_a_line(tiny_model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match=r"its weights are pickled \(pytorch_model.bin\)") as refused:
        Policy.load(folder, "cpu")
    assert len(str(refused.value).splitlines()) == 1


def test_code_that_a_model_brings_is_not_run(tiny_model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    settings_ = json.loads((folder / "config.json").read_text())
    settings_ |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(settings_))
    with pytest.raises(BadInput, match="cannot be loaded"):
        Policy.load(folder, "cpu")
    assert not (tmp_path / "ran").exists()
