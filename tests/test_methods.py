"""Every preset of experiments/method trains, and what it logs has no holes."""

import math
import re
from pathlib import Path

import pytest

from cegppo import config
from cegppo.record.files import read_lines
from cegppo.train import train

from .test_train import Silent, without_times

ROOT = Path(__file__).resolve().parent.parent
# A mean over no token is left out of a line; everything else is there in every step.
MAY_LACK = re.compile(r"entropy/([pn]a_[hl]p|q_low|q_high)|clip/prob_.*")


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_every_method_has_a_row(page):
    rows = [line.split("|")[1] for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
    missing = set(config.methods()) - named
    assert not missing, missing


@pytest.mark.parametrize("method", config.methods())
def test_three_steps(tiny, tmp_path, method):
    """Every step has every value, and the same seed gives the same again, bit for bit."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    settings = ["updates_per_step=4", "update.lr=5e-3", "eval_every=0", f"run_dir={tmp_path / 'run'}"]
    loaded, _ = config.load(tiny, [f"method={method}", *settings])
    train(loaded, Silent())
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 3
    always = {key for key in lines[0] if not MAY_LACK.fullmatch(key)}
    for line in lines:
        assert all(value is not None and math.isfinite(value) for value in line.values())
        assert {key for key in line if not MAY_LACK.fullmatch(key)} == always
        assert line["ratio/max"] > line["ratio/min"] and line["grad/norm"] > 0
    train(config.load(tiny, [f"method={method}", *settings, f"run_dir={tmp_path / 'again'}"])[0], Silent())
    assert without_times(tmp_path / "again" / "metrics.jsonl") == without_times(tmp_path / "run" / "metrics.jsonl")
    own = {key for key in always if key.startswith("fact/")}
    assert all(f"`{key}`" in text for key in own), own
