"""What a new user met in the first hour and no longer meets; numbered as they were found."""

import shutil
import subprocess
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from analysis import evolution, health, tables
from cegppo.cli import main
from cegppo.config import Config, Source, load
from cegppo.config.schema import Data
from cegppo.model import hub
from cegppo.model.policy import Policy
from cegppo.record.run import weight
from cegppo.screen import score, who_grades
from cegppo.types import BadInput
from cegppo.verbs.train import last_lines

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("steps, width", [(1, 1), (2, 1), (5, 2), (9, 4), (10, 5), (60, 5)])
def test_01_the_first_and_the_last_steps_do_not_overlap(steps, width):
    values = np.arange(steps, dtype=float)
    runs = pd.DataFrame({"step": np.arange(steps) + 61, "seed": 0, "entropy/mean": values})  # a fork begins late
    start, end = (ends.item() for ends in evolution.ends(runs, "entropy/mean"))
    assert start == values[:width].mean() and end == values[-width:].mean()
    assert health._ends(runs, "entropy/mean") == (start, end) and evolution.window_of(runs) == width


def test_03_latex_is_ascii():
    for path in sorted((ROOT / "results" / "figures").glob("*.tex")):
        assert path.read_text().isascii(), path.name
    assert tables.tex("β₁ = 0.5 → 10⁻³ × é_x") == r"$\beta$$_{1}$ = 0.5 $\to$ 10$^{-3}$ $\times$ e\_x"
    assert tables.tex("a😀") == "a[U+1F600]"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here")
def test_03_latex_compiles(tmp_path):
    every = "\n".join(path.read_text() for path in sorted((ROOT / "results" / "figures").glob("*.tex")))
    names = tables.tex("β₁ = 0.5 → 10⁻³ × é_x & 50 % {a} $b$ \\c # ~ ^ < > | “q” ±0.1 a😀")
    text = "\\documentclass{article}\\usepackage{graphicx}\\begin{document}" + every + names + "\\end{document}"
    (tmp_path / "all.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_05_a_reward_of_ones_own_is_shown_and_is_no_failed_grade():
    m = {"reward/mean": 0.5123, "accuracy/mean": 0.0}
    config = lambda reward, verifier: Config(reward=reward, data=Data(train=[Source(verifier=verifier)]))
    assert score(config("task", "answer"), m) == "acc 0.000"
    assert score(config("mine.py:f", "answer"), m) == "reward 0.512  acc 0.000"
    assert score(config("mine.py:f", "none"), m) == "reward 0.512"
    assert who_grades(config("mine.py:f", "answer")) == "reward by mine.py:f; accuracy by the final answer"
    metrics = pd.DataFrame({"step": range(1, 11), "verdict/truncated": 0.9})
    notes = {reward: next(health._verdicts(metrics, {"reward": reward})) for reward in ("task", "mine.py:f")}
    assert notes["task"].level == "bad" and "graded as failed" in notes["task"].why
    assert notes["mine.py:f"].level == "look" and "graded as failed" not in notes["mine.py:f"].why


def test_02_a_dry_run_has_a_folder_of_its_own_and_a_refusal_names_what_matters_first(tmp_path):
    path = ROOT / "experiments" / "paper" / "1.5b_text.yaml"
    arm = lambda *words: load(path, list(words))[0].arm
    assert arm("method=cegppo", "model=testbed", "steps=2") == "cegppo,model=testbed" != arm("method=cegppo")
    keys = ["data.chat_template", "loss.beta1", "model.path", "eval.size", "update.lr"]
    assert sorted(keys, key=weight) == ["model.path", "loss.beta1", "update.lr", "data.chat_template", "eval.size"]


def test_06_a_folder_is_readable_and_safe_in_a_shell(tiny):
    schedule = "loss.beta1=[[0, 1.0], [2, 0.0, linear]]"
    arm = lambda *words: load(tiny, list(words))[0].arm
    assert arm("method=cegppo", schedule, "eval.size=8", "eval_every=1") == "cegppo,loss.beta1=1.0-0.0@2lin"
    name = arm("method=grpo", "data.suffix= Think $HOME 'twice'.", "data.final_answer=last_line")
    assert name == "grpo,data.final_answer=last_line,data.suffix=Think_HOME_twice_."


@pytest.mark.parametrize(
    "error, part",
    [
        (ConnectionError("Name or service not known"), "the hub cannot be asked (Name or service not known)"),
        (RepositoryNotFoundError("404", response=MagicMock()), "no such model on the hub"),
    ],
)
def test_08_a_misspelt_model_is_one_question(monkeypatch, capsys, error, part):
    asked = []

    def refuse(path, timeout):
        asked.append(timeout)
        raise error

    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(BadInput, match="model.path=owner/mdel: no such folder, and ") as found:
        Policy.load("owner/mdel")
    assert part in str(found.value) and asked == [hub.SECONDS]
    assert "asking the Hugging Face hub" in capsys.readouterr().err
    with pytest.raises(BadInput, match="model.path=results/testbed/x: no such folder"):
        Policy.load("results/testbed/x")
    assert len(asked) == 1


def test_07_a_failed_start_leaves_no_folder(tiny, tmp_path, capsys):
    words = ["train", str(tiny), f"results={tmp_path / 'results'}", "model.path=" + str(tmp_path / "nowhere")]
    assert main(words) == 2 and "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())


def test_12_the_last_lines_say_what_to_type_next(tiny, tmp_path):
    config, _ = load(tiny, [f"results={tmp_path}", "steps=60", "arm=a"])
    config.folder.mkdir(parents=True)
    (config.folder / "metrics.jsonl").write_text('{"step": 13}\n{"step": 14}\n')
    assert last_lines(config, "stopped") == [
        f"stopped: {config.folder}, after step 14 of 60; the same command goes on"
    ]
    finished = "\n".join(last_lines(config, "finished"))
    assert all(f"{verb} {config.folder}" in finished for verb in ("report", "sample"))
    assert f"compare {config.folder.parent.parent} " in finished
