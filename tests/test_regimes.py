"""The calibration of the regimes: the table is what the files say, and the document has it."""

import json
from pathlib import Path

import pytest

from analysis import load, regimes

ROOT = Path(__file__).resolve().parent.parent


def record(results: Path, name: str, rows: list[dict]) -> None:
    folder = results / "calibration" / name / "grpo" / "seed0"
    folder.mkdir(parents=True)
    lines = (json.dumps({"step": i + 1, **row}) + "\n" for i, row in enumerate(rows))
    (folder / "metrics.jsonl").write_text("".join(lines))


def made_up(entropy_end: float, high: float) -> list[dict]:
    """Twenty steps; the first five are wild and count for nothing but the start."""
    rows = []
    for i in range(20):
        wild = i < regimes.SETTLED
        rows.append(
            {
                "entropy/mean": 0.6 if wild else entropy_end, "accuracy/mean": 0.4 if wild else 0.7,
                "clip/low": 0.5 if wild else 0.002, "clip/high": 0.5 if wild else high * (1 + i % 2),
                "clip/prob_low_q50": 0.9 if wild else 0.1, "clip/prob_high_q50": 0.9 if wild else 0.1 * (1 + i % 2),
                "reward/mean": 0.5, "kl/old_k3": 1.0 if wild else 5e-4, "ratio/min": 0.5, "ratio/max": 2.0,
                "time/step": 1.0,
            }
        )  # fmt: skip
    return rows


def test_observables_by_hand(tmp_path):
    record(tmp_path, "a", made_up(0.2, 0.002))
    seen = regimes.observables(load.run(tmp_path / "calibration" / "a" / "grpo" / "seed0"))
    assert seen["low"] == pytest.approx(0.002) and seen["kl"] == pytest.approx(5e-4)
    odd, even = 8, 7  # steps 6 … 20: the even index clips 0.002 at 0.1, the odd one 0.004 at 0.2
    assert seen["high"] == pytest.approx((even * 0.002 + odd * 0.004) / 15)
    wanted = (even * 0.002 * 0.1 + odd * 0.004 * 0.2) / (even * 0.002 + odd * 0.004)
    assert seen["p_high"] == pytest.approx(wanted)
    assert (seen["entropy_start"], seen["entropy_end"]) == pytest.approx((0.6, 0.2))
    assert regimes.met(seen) == [True, True, True, True] and regimes.trend(seen) == "collapses"


def test_the_table_orders_by_aims_and_names_what_is_missing(tmp_path):
    with pytest.raises(load.Missing, match="calibration"):
        regimes.table(tmp_path)
    record(tmp_path, "a", made_up(0.58, 0.0001))  # hardly anything on the high side
    record(tmp_path, "b", made_up(0.8, 0.002))
    head, _, first, second = regimes.table(tmp_path).splitlines()
    assert first.startswith("| b | 20 |") and "| rises |" in first and first.endswith("| yes | yes | yes | yes |")
    assert "| holds |" in second and second.endswith("| yes | no | yes | no |")
    doc = tmp_path / "doc.md"
    doc.write_text(f"before\n{regimes.MARKS[0]}\nstale\n{regimes.MARKS[1]}\nafter\n")
    regimes.write(tmp_path, doc)
    text = doc.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text and head in text


def test_the_document_has_the_table_and_every_regime():
    text = regimes.DOC.read_text(encoding="utf-8")
    assert regimes.table(ROOT / "results") in text
    for path in (ROOT / "experiments" / "regimes").glob("*.yaml"):
        assert f"`{path.stem}`" in text, f"docs/regimes.md does not say what {path.stem} is"
