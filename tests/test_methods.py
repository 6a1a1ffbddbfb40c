"""Every preset of experiments/method trains, and what it logs has no holes."""

import math
import re
from pathlib import Path

import pytest
import torch

from cegppo import config, losses
from cegppo.record.files import read_lines
from cegppo.train import run_training

from .losses.batches import evaluated, ragged
from .test_train import Silent, without_times

ROOT = Path(__file__).resolve().parent.parent
# A mean over no token is left out of a line; everything else is there in every step.
MAY_LACK = re.compile(r"entropy/([pn]a_[hl]p|q_low|q_high|policy|replay|teacher|tempered|checkpoint)|clip/prob_.*")


def test_every_method_has_a_row():
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
    missing = set(config.methods()) - named
    assert not missing, missing


@pytest.mark.parametrize("method", config.methods())
def test_three_steps(tiny, tmp_path, method):
    """Every step has every value, and the same seed gives the same again, bit for bit."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    settings = ["updates_per_step=4", "update.lr=5e-3", "eval_every=0", f"run_dir={tmp_path / 'run'}"]
    loaded, _ = config.load(tiny, [f"method={method}", *settings])
    run_training(loaded, Silent())
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 3
    always = {key for key in lines[0] if not MAY_LACK.fullmatch(key)}
    for line in lines:
        assert all(value is not None and math.isfinite(value) for value in line.values())
        assert {key for key in line if not MAY_LACK.fullmatch(key)} == always
        assert line["ratio/max"] > line["ratio/min"] and line["grad/norm"] > 0
    run_training(config.load(tiny, [f"method={method}", *settings, f"run_dir={tmp_path / 'again'}"])[0], Silent())
    assert without_times(tmp_path / "again" / "metrics.jsonl") == without_times(tmp_path / "run" / "metrics.jsonl")
    own = {key for key in always if key.startswith("fact/")}
    assert all(f"`{key}`" in text for key in own), own


def test_the_loss_that_the_docs_show_runs_as_it_stands(tiny, tmp_path, monkeypatch):
    """Pasted into a file of cegppo/losses/, which here lies elsewhere; of under 40 lines."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)[1]
    assert "token_loss" in block and len(block.splitlines()) < 40
    (tmp_path / "tapered.py").write_text(block)
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    settings = ["updates_per_step=4", "update.lr=5e-3", "eval_every=0", f"run_dir={tmp_path / 'run'}"]
    loaded, _ = config.load(tiny, ["loss.name=tapered", "loss.tau=[[0, 0.2], [2, 0.05]]", *settings])
    run_training(loaded, Silent())
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["knob/tau"] for line in lines] == [0.2, 0.2, 0.05] and any(line["fact/tapered"] for line in lines)
    # Its limits, as its docstring says.
    x, name = ragged(), "tapered"
    for tau, other in ((1e-9, evaluated("ppo_clip", x)[1]), (1e9, x.advantage_BT * x.ratio_BT.detach())):
        torch.testing.assert_close(evaluated(name, x, tau=tau)[1], other, rtol=1e-6, atol=1e-9)
