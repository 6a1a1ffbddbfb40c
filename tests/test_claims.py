"""Claims, tables and other frameworks' runs, on small hand-made run folders."""

import csv
import json
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

from analysis import claims, fig_claims, fig_table1, load, stats
from cegppo.sweep import description

ROOT = Path(__file__).resolve().parent.parent
STATED = datetime(2026, 1, 1, tzinfo=UTC)
NOISE = np.array([0.0, 0.02, -0.01, 0.01, -0.02])
HEAD = (
    "seeds: 5\nclaims:\n  one:\n    claim: c\n    source: s\n    stated: 2026-01-01T00:00:00Z\n    experiment: e\n"
    "    metric: entropy/mean\n    window: last\n"
)


def record(folder: Path, series: dict[str, list], accuracy: dict[int, float] | None = None) -> None:
    """A run folder: metrics by step, and the accuracy of two benchmarks of ten problems at some
    steps."""
    folder.mkdir(parents=True)
    steps = range(len(next(iter(series.values()))))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1} | {k: v[i] for k, v in series.items()}) + "\n" for i in steps)
    )
    rows = [
        {"step": step, "benchmark": name, "n": 10, "k": 10, "correct": [round(10 * mean) + shift] * 10}
        for step, mean in (accuracy or {}).items()
        for name, shift in (("easy", 1), ("hard", -1))
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def arm(
    results: Path, name: str, level: float, slope: float = 0.0, noise: np.ndarray = NOISE, key: str = "entropy/mean"
) -> None:
    for seed, shift in enumerate(noise):
        record(results / "e" / name / f"seed{seed}", {key: [level + shift + slope * i for i in range(12)]})


def claim(text: str, tmp_path: Path) -> claims.Claim:
    path = tmp_path / "claims.yaml"
    path.write_text(HEAD + "".join(f"    {line}\n" for line in text.split("; ")))
    return claims.read(path)[0]


def test_difference(tmp_path):
    arm(tmp_path, "high", 1.0, noise=2 * NOISE)
    arm(tmp_path, "low", 0.9)
    stated = claim("test: difference; arm: high; than: low; expect: above", tmp_path)
    found = claims.decide(tmp_path, stated)
    theirs = scipy.stats.ttest_rel(1.0 + 2 * NOISE, 0.9 + NOISE).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, theirs.low, theirs.high)) and (
        found.verdict,
        found.n,
    ) == ("held", 5)
    assert (
        claims.decide(tmp_path, claim("test: difference; arm: low; than: high; expect: above", tmp_path)).verdict
        == "not held"
    )
    assert (
        claims.decide(tmp_path, claim("test: difference; arm: low; than: high; expect: below", tmp_path)).verdict
        == "held"
    )
    arm(tmp_path, "same", 0.9, noise=-NOISE)
    assert (
        claims.decide(tmp_path, claim("test: difference; arm: same; than: low; expect: above", tmp_path)).verdict
        == "undecided"
    )
    assert "e: high − low; entropy/mean, last 5 steps; > 0" == claims.describe(stated)


def test_windows(tmp_path):
    record(tmp_path / "e" / "a" / "seed0", {"entropy/mean": list(range(12))}, {0: 0.9, 6: 0.8, 9: 0.8, 12: 0.3})
    number = lambda metric, window: claims.statistic(
        (load.evaluations if metric == "benchmarks" else load.metrics)(tmp_path, "e", ["a"]),
        claims.Claim("n", "c", "s", STATED, "e", "bound", metric, window, 2),
    )[0]
    assert [number("entropy/mean", w) for w in ("last", "whole", "rise", "max")] == [9, 5.5, 7, 11]
    assert number("benchmarks", "last") == pytest.approx(0.3) and number("benchmarks", "best") == pytest.approx(0.8)
    tests = load.evaluations(tmp_path, "e", ["a"])
    assert set(load.at_checkpoint(tests, "best")["step"]) == {6}  # the earlier of equals, and never the start


def test_trend(tmp_path):
    for name, x in (("a", 0.0), ("b", 0.25), ("c", 1.0)):
        arm(tmp_path, name, 1 - 0.4 * x)
    found = claims.decide(tmp_path, claim("test: trend; over: {a: 0.0, b: 0.25, c: 1.0}; expect: below", tmp_path))
    assert found.verdict == "held" and found.mean == pytest.approx(-0.4) and found.high == pytest.approx(-0.4)


def test_no_worse(tmp_path):
    for name, level in (("grpo", 0.5), ("equal", 0.5), ("worse", 0.3)):
        for seed in range(5):
            record(tmp_path / "e" / name / f"seed{seed}", {"entropy/mean": [1.0] * 12}, {12: level})
    text = "test: no_worse; arm: {}; than: grpo; margin: 0.01"
    stated = [claim(text.format(name), tmp_path) for name in ("equal", "worse")]
    stated = [claims.Claim(**{**vars(c), "metric": "benchmarks"}) for c in stated]
    assert [claims.decide(tmp_path, c).verdict for c in stated] == ["held", "not held"]


def test_p_value_is_the_level_at_which_the_verdict_turns():
    values = 0.05 + NOISE
    assert stats.p_value(values) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    for bound, inside in ((0.0, False), (0.03, False), (0.08, True), (0.03, True)):
        p = stats.p_value(values, bound, inside)
        for level, decided in ((1 - p - 1e-6, True), (1 - p + 1e-6, False)):
            low, high = stats.mean_over_seeds(values, level)[1:]
            side = stats.band(low, high, bound) if inside else stats.side(low, high, bound)
            assert (side != "undecided") == decided
    assert np.isnan(stats.p_value(np.array([0.1]))) and np.isnan(stats.p_value(np.array([0.1, np.inf])))


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert stats.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    rng = np.random.default_rng(0)  # five true nulls: at most one family in twenty with a false verdict
    families = [any(stats.holm(rng.uniform(size=5)) < 0.05) for _ in range(2000)]
    assert 0.035 < np.mean(families) < 0.06


def test_a_family_is_corrected_together(tmp_path):
    verdicts = [claims.Verdict("held", 0.1, 0.0, 0.2, 5, p) for p in (0.001, 0.03)]
    one = claim("test: difference; arm: a; than: b; expect: above", tmp_path)
    other = claims.Claim(**{**vars(one), "family": "map"})
    assert claims.corrected([one, one, other], [*verdicts, verdicts[1]]) == ["held", "held", "held"]
    assert claims.corrected([one] * 3, [*verdicts, verdicts[1]]) == ["held", "undecided", "undecided"]
    assert claims.corrected([one, one], [verdicts[1], None]) == ["held", ""]


def test_seeds_that_were_run_after_the_claim_was_stated_stand_alone(tmp_path):
    arm(tmp_path, "high", 1.0, noise=2 * NOISE)
    arm(tmp_path, "low", 0.9)
    stated = claim("test: difference; arm: high; than: low; expect: above", tmp_path)
    year = {0: 2025, 1: 2027, 2: 2027, 3: 2027, 4: 2027}
    for folder in (tmp_path / "e").glob("*/seed*"):
        seed = int(folder.name[4:])
        if (folder.parent.name, seed) != ("low", 4):  # one run that does not say when it ended
            (folder / "meta.json").write_text(json.dumps({"end": f"{year[seed]}-01-01T00:00:00+00:00"}))
    found = claims.decide_on_record(tmp_path, stated)
    assert (found.runs, found.before) == (10, 3) and found.all == claims.decide(tmp_path, stated)
    assert found.fresh.n == 3 and found.fresh.mean == pytest.approx(np.mean([0.12, 0.09, 0.11]))
    # Started over after the claim, it had still been seen before it.
    sessions = [{"end": f"{year}-01-01T00:00:00+00:00"} for year in (2025, 2027)]
    again = {"sessions": sessions, "end": sessions[-1]["end"]}
    (tmp_path / "e" / "high" / "seed1" / "meta.json").write_text(json.dumps(again))
    assert claims.decide_on_record(tmp_path, stated).before == 4


def test_a_reference_that_broke_decides_nothing(tmp_path):
    arm(tmp_path, "a", 1.5, key="grad/norm")
    arm(tmp_path, "b", 1.0, key="grad/norm")
    one = claim("test: bound; arm: a; than: b; at_most: 2.0", tmp_path)
    one = claims.Claim(**{**vars(one), "metric": "grad/norm", "window": "max"})
    broken = tmp_path / "e" / "b" / "seed3" / "metrics.jsonl"
    broken.write_text(broken.read_text().replace('"step": 4, "grad/norm": 1.01', '"step": 4, "grad/norm": null'))
    assert np.isinf(claims.by_seed(tmp_path, one)["b"][3])
    assert claims.decide(tmp_path, one).verdict == "undecided"


def test_within(tmp_path):
    arm(tmp_path, "grpo", 0.5)
    for name, level, noise in (
        ("near", 0.52, NOISE),
        ("edge", 0.52, -NOISE),
        ("far", 0.6, NOISE),
        ("below", 0.4, NOISE),
    ):
        arm(tmp_path, name, level, noise=noise)
    verdict = lambda name, margin: (
        claims.decide(tmp_path, claim(f"test: within; arm: {name}; than: grpo; margin: {margin}", tmp_path)).verdict
    )
    assert [verdict(name, 0.03) for name in ("near", "far", "below")] == ["held", "not held", "not held"]
    assert verdict("edge", 0.021) == "undecided" and verdict("edge", 0.3) == "held"


def test_bound(tmp_path):
    arm(tmp_path, "a", 1.5, key="grad/norm")
    arm(tmp_path, "b", 1.0, key="grad/norm")
    text = "test: bound; arm: a; than: b; at_most: {}"
    stated = [
        claims.Claim(**{**vars(claim(text.format(b), tmp_path)), "metric": "grad/norm", "window": "max"})
        for b in (2.0, 1.2)
    ]
    found = [claims.decide(tmp_path, c) for c in stated]
    assert [f.verdict for f in found] == ["held", "not held"] and found[0].mean == pytest.approx(
        np.exp(np.mean(np.log((1.5 + NOISE) / (1 + NOISE))))
    )
    spiked = tmp_path / "e" / "a" / "seed3" / "metrics.jsonl"
    spiked.write_text(spiked.read_text().replace('"step": 4, "grad/norm": 1.51', '"step": 4, "grad/norm": null'))
    assert claims.decide(tmp_path, stated[0]).verdict == "not held"  # a gradient that was not finite
    arm(tmp_path, "rising", 0.2, slope=0.1)
    assert (
        claims.decide(
            tmp_path,
            claims.Claim("n", "c", "s", STATED, "e", "bound", "entropy/mean", "rise", 5, arm="rising", at_least=0.0),
        ).verdict
        == "held"
    )


def test_a_value_that_is_not_a_number_decides_no_difference(tmp_path):
    arm(tmp_path, "a", 1.0)
    arm(tmp_path, "b", 0.5)
    path = tmp_path / "e" / "a" / "seed0" / "metrics.jsonl"
    path.write_text(re.sub(r'"step": 3, "entropy/mean": [\d.]+', '"step": 3, "entropy/mean": null', path.read_text()))
    assert (
        claims.decide(tmp_path, claim("test: difference; arm: a; than: b; expect: above", tmp_path)).verdict
        == "undecided"
    )


def test_missing_runs(tmp_path):
    arm(tmp_path, "a", 1.0)
    arm(tmp_path, "b", 0.5, noise=NOISE[:4])
    stated = claim("test: difference; arm: a; than: b; expect: above", tmp_path)
    with pytest.raises(load.Missing, match="4 of 5 seeds of a, b"):
        claims.decide(tmp_path, stated)
    record(tmp_path / "e" / "b" / "seed4", {"entropy/mean": [0.5] * 7})
    with pytest.raises(load.Missing, match="b/seed4 ends at step 7 of 12"):
        claims.decide(tmp_path, stated)
    with pytest.raises(load.Unreadable, match=r"no metric 'entropy/maen'.*did you mean 'entropy/mean'"):
        claims.by_seed(tmp_path, claims.Claim(**{**vars(stated), "metric": "entropy/maen"}))


@pytest.mark.parametrize(
    "text, part",
    [
        ("test: diference; arm: a; than: b; expect: above", "not 'diference'; did you mean 'difference'?"),
        (
            "test: difference; arm: a; than: b; expects: above",
            "unknown key 'expects' of test 'difference'; did you mean 'expect'?",
        ),
        ("test: difference; arm: a; than: b", "'expect' is missing"),
        ("test: difference; arm: a; than: b; expect: higher", "'expect' must be above or below, not 'higher'"),
        ("test: difference; arm: a; than: 3; expect: above", "'than' cannot be 3"),
        ("test: no_worse; arm: a; than: b; margin: -0.1", "a margin of at least 0"),
        ("test: trend; over: {a: 1.0, b: 1.0}; expect: above", "at least two different numbers"),
        ("test: bound; arm: a", "takes at_most or at_least, one of them"),
        ("test: bound; arm: a; at_most: true", "'at_most' cannot be True"),
        ("test: bound; arm: a; at_most: 1; seeds: 1", "needs at least 2 seeds"),
    ],
)
def test_bad_claims(tmp_path, text, part):
    with pytest.raises(load.Unreadable) as error:
        claim(text, tmp_path)
    assert "claim 'one'" in str(error.value) and part in str(error.value)


def test_bad_claim_files(tmp_path):
    path = tmp_path / "claims.yaml"
    for text, part in (
        ("seeds: 5", "needs 'seeds'"),
        ("a: [", "not YAML"),
        (HEAD.replace("last", "lats") + "    test: trend\n", "'over' is missing"),
    ):
        path.write_text(text)
        with pytest.raises(load.Unreadable, match=part):
            claims.read(path)
    path.write_text(HEAD.replace("window: last", "window: best") + "    test: bound\n    arm: a\n    at_most: 1\n")
    with pytest.raises(
        load.Unreadable, match="'window' of entropy/mean must be one of last, whole, rise, max, not 'best'"
    ):
        claims.read(path)


def test_the_shipped_claims_name_runs_and_metrics_that_exist():
    """Every claim reads; its metric is in the glossary, its arms are those of the sweep of its
    experiment's name."""
    glossary = (ROOT / "docs" / "metrics.md").read_text()
    stated = claims.read()
    assert len(stated) >= 20
    arms = {}
    for c in stated:
        assert c.metric == "benchmarks" or f"`{c.metric}`" in glossary, c.name
        path = ROOT / "sweeps" / f"{c.experiment}.yaml"
        if path not in arms:
            arms[path] = set(description.describe(path).tree["arms"])
        assert set(c.arms) <= arms[path], c.name


def test_the_table_of_claims(tmp_path, capsys):
    stated = tmp_path / "claims.yaml"
    stated.write_text(HEAD + "    test: difference\n    arm: a\n    than: b\n    expect: above\n    seen: true\n")
    arm(tmp_path, "a", 1.0)
    with pytest.raises(load.Missing, match="no run of b"):
        fig_claims.draw(tmp_path, stated)
    assert "1 missing" in (tmp_path / "figures" / "claims.md").read_text()  # written all the same
    arm(tmp_path, "b", 0.5, noise=-NOISE)
    fig_claims.draw(tmp_path, stated)
    assert "1 held" in capsys.readouterr().out
    row = next(csv.DictReader((tmp_path / "figures" / "claims.csv").open()))
    assert (
        row["verdict"] == "held"
        and float(row["mean"]) == pytest.approx(0.5)
        and float(row["low"]) < 0.5
        and row["seeds"] == "5"
    )
    assert (
        "| c † | one | held | held | +0.5 [+0.461, +0.539] | 5 | 10 of 10 |"
        in (tmp_path / "figures" / "claims.md").read_text()
    )


# --------------------------------------------------------------------------------------------------


def test_table1(tmp_path, capsys):
    (tmp_path / "paper").symlink_to(ROOT / "results" / "paper")
    for name, end in (("grpo", 0.5), ("clip_higher", 0.6), ("cegppo", 0.7), ("cegppo_0.75", 0.5)):
        for seed in range(3):
            folder = tmp_path / "algorithms" / name / f"seed{seed}"
            record(folder, {"entropy/mean": [1.0] * 12}, {0: 0.3, 6: 0.8 if name == "grpo" else 0.4, 12: end})
    fig_table1.draw(tmp_path)
    text = (tmp_path / "figures" / "table1.md").read_text()
    titles = re.findall("^## (.*)", text, re.M)
    assert titles == [
        "The paper (arXiv 2509.20712 v5), Table 1", "Re-runs by others", "Ours, testbed: last checkpoint",
        "Ours, testbed: best checkpoint"
    ]  # fmt: skip
    paper, reruns, last, best = re.split("^## ", text, flags=re.M)[1:]
    assert "66.0 | 51.4 | 30.5" in paper and "easy" not in paper + reruns and "AIME24" not in last.split("\n\n")[1]
    assert "| base model | 1 | 40.0 | 20.0 | 30.0 | 30.0 | 100.0 |  |" in last
    assert "| GRPO | 3 | 60.0 [60.0, 60.0] | 40.0 [40.0, 40.0] | 50.0 [50.0, 50.0] |" in last and "3 seeds" in last
    assert "+20.0 [+20.0, +20.0] *" in last and "-10.0 [-10.0, -10.0] *" in best and "optimistic" in best
    rows = list(csv.DictReader((tmp_path / "figures" / "table1.csv").open()))
    found = [
        r for r in rows if (r["section"], r["method"], r["checkpoint"], r["column"]) == ("ours", "GRPO", "best", "mean")
    ]
    assert [float(r["value"]) for r in found] == [80.0] and {r["section"] for r in rows} == {"paper", "re-run", "ours"}
    tex = (tmp_path / "figures" / "table1.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 4 and r"95 \% t interval" in tex and "95 % t" not in tex
    assert "95 % t interval over 3 seeds" in capsys.readouterr().out


def test_the_papers_numbers_are_consistent():
    """The means that the paper prints, or that were worked out, are those of the columns; no
    value is out of range."""
    for name in ("table1", "table2"):
        table = load.paper(ROOT / "results", f"{name}.csv")
        means = table[["aime24", "aime25", "hmmt25", "math500", "amc23"]].mean(axis=1)
        assert np.allclose(means, table["avg_math"], atol=0.06)
    reruns = load.paper(ROOT / "results", "reruns.csv")
    parts = reruns[["aime24", "aime25", "hmmt25", "math500", "amc23", "olympiad", "minerva"]]
    known = parts.notna().sum(axis=1) == 6
    assert known.sum() == 6 and np.allclose(parts[known].mean(axis=1), reruns["avg"][known], atol=0.06)
    curve = load.paper(ROOT / "results", "fig2b_aime24_7b.csv").groupby("method")["aime24_avg32"]
    assert curve.max()["cegppo"] == pytest.approx(0.66, abs=0.002) and curve.last()["clip_higher"] == pytest.approx(
        0.597, abs=0.002
    )


# --------------------------------------------------------------------------------------------------


def shown(number: int) -> str:
    """The column map number `number` of docs/figures.md."""
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "figures.md").read_text(), re.S)[number]


VERL = {
    "actor/entropy": 0.5, "critic/rewards/mean": 0.25, "response_length/mean": 812.5, "actor/grad_norm": 0.07,
    "actor/ppo_kl": 1e-4, "actor/pg_loss": -0.01,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "e" / "verl" / "seed0"
    path.mkdir(parents=True)
    return path


def test_verl_file_logger(tmp_path, folder):
    (folder / "foreign.yaml").write_text(shown(0))
    log = [
        {"step": 0, "elapsed_seconds": 1.0, "data": {"val-core/aime24/acc/mean@32": 0.29}},
        {"step": 1, "data": VERL},
        {"step": 2, "data": VERL},  # logged, killed, and run again:
        {"step": 2, "data": {**VERL, "actor/entropy": 0.4, "val-core/aime24/acc/mean@32": 0.31}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    metrics, tests = load.metrics(tmp_path, "e", ["verl"]), load.evaluations(tmp_path, "e", ["verl"])
    assert (
        metrics["step"].tolist() == [1, 2]
        and metrics["entropy/mean"].tolist() == [0.5, 0.4]
        and metrics["seed"].tolist() == [0, 0]
    )
    assert (
        metrics["kl/old_k1"].tolist() == [1e-4] * 2
        and metrics["length/mean"][0] == 812.5
        and load.run(folder)["grad/norm"].max() == 0.07
    )
    assert tests[["step", "benchmark", "n", "k", "accuracy"]].to_numpy().tolist() == [
        [0, "aime24", 30, 32, 0.29],
        [2, "aime24", 30, 32, 0.31],
    ]


def test_verl_console_logger(tmp_path, folder):
    (folder / "foreign.yaml").write_text(
        shown(0).replace("verl-jsonl", "verl-console").replace("metrics.jsonl", "out.log").split("evaluations")[0]
    )
    pairs = " - ".join(f"{key}:{value}" for key, value in VERL.items())
    (folder / "out.log").write_text(
        "(TaskRunner pid=7) step:0 - val-core/aime24/acc/mean@32:0.29\nTraining Progress:  50%|##| 1/2 [00:49<1:53,"
        " 49.1s/it]\n"
        # The last line is of a response, and no line of the log.
        f"\x1b[36m(TaskRunner pid=7)\x1b[0m step:1 - {pairs}\nthe last step:9 - so the answer:seven\n"
        f"step:2 - {pairs.replace('0.5', 'np.float64(0.4)')}\n"
    )
    metrics = load.metrics(tmp_path, "e", ["verl"])
    assert (
        metrics["step"].tolist() == [1, 2]
        and metrics["entropy/mean"].tolist() == [0.5, 0.4]
        and metrics["kl/old_k1"][0] == 1e-4
    )


def test_trl(tmp_path, folder):
    (folder / "foreign.yaml").write_text(shown(1))
    row = {
        "entropy": 0.8,
        "reward": 0.1,
        "completions/mean_length": 60.0,
        "grad_norm": 0.3,
        "clip_ratio/low_mean": 0.01,
        "clip_ratio/high_mean": 0.002,
    }
    history = [row | {"step": 10}, row | {"step": 20, "entropy": 0.7}, {"step": 20, "train_runtime": 9.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 20, "log_history": history}))
    metrics = load.metrics(tmp_path, "e", ["verl"])
    assert (
        metrics["step"].tolist() == [10, 20]
        and metrics["entropy/mean"].tolist() == [0.8, 0.7]
        and metrics["clip/low"].tolist() == [0.01] * 2
    )


def test_wandb_charts(tmp_path, folder):
    (folder / "foreign.yaml").write_text(shown(2))
    for name, column, values in (("entropy", "actor/entropy", "0.6 0.5"), ("reward", "critic/rewards/mean", "0.1 0.2")):
        run_ = f"gppo-7b - {column}"
        one, two = values.split()
        (folder / f"{name}.csv").write_text(
            f'"Step","{run_}","{run_}__MIN","{run_}__MAX"\n1,{one},{one},{one}\n2,{two},{two},{two}\n'
        )
    metrics = load.metrics(tmp_path, "e", ["verl"])
    assert metrics["entropy/mean"].tolist() == [0.6, 0.5] and metrics["reward/mean"].tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"format": "verl-json"}, "unknown format 'verl-json'; did you mean 'verl-jsonl'?"),
        ({"file": "metric.jsonl"}, "no such file"),
        (
            {"columns": {"entropy/mean": "actor/entrpy"}},
            "metrics.jsonl has no 'actor/entrpy'; did you mean 'actor/entropy'?",
        ),
        ({"column": {}}, "unknown key 'column'; did you mean 'columns'?"),
        ({"columns": None}, "'columns' cannot be None"),
        ({"evaluations": {"aime24": "x"}}, "'k' is missing"),
        ({"format": "trl"}, "is not trl"),
    ],
)
def test_bad_column_maps(tmp_path, folder, change, part):
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "data": VERL}) + "\n" + json.dumps({"step": 2, "data": VERL}) + "\n"
    )
    spec = {"format": "verl-jsonl", "file": "metrics.jsonl", "columns": {"entropy/mean": "actor/entropy"}} | change
    (folder / "foreign.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(load.Unreadable) as error:
        load.metrics(tmp_path, "e", ["verl"])
    assert "foreign.yaml" in str(error.value) and part in str(error.value)


def test_a_foreign_run_stands_beside_ours(tmp_path, folder):
    """A claim between a run of ours and one of verl's; and a figure of both."""
    arm(tmp_path, "grpo", 0.3)
    for seed in range(5):
        other = tmp_path / "e" / "verl" / f"seed{seed}"
        other.mkdir(exist_ok=True)
        (other / "foreign.yaml").write_text(
            "format: verl-jsonl\nfile: metrics.jsonl\ncolumns: {entropy/mean: actor/entropy}\n"
        )
        rows = [{"step": i + 1, "data": {"actor/entropy": 0.6 + 0.01 * seed}} for i in range(12)]
        (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        claims.decide(tmp_path, claim("test: difference; arm: verl; than: grpo; expect: above", tmp_path)).verdict
        == "held"
    )


# Their first commit, of the minute that they name and before their seeds, was lost with the machine
# that held it; what is left was committed after the runs (results/LOG.md).
LOST = "phase_far_"


def test_no_claim_is_older_than_its_first_commit():
    """`stated` decides which runs are called later ones."""
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout
    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("no history here")
    first: dict[str, int] = {}
    for line in git("log", "--reverse", "--format=@%at", "-p", "--", "sweeps/claims.yaml").splitlines():
        if line.startswith("@") and line[1:].isdigit():
            when = int(line[1:])
        elif found := re.match(r"\+  (\w+):$", line):
            first.setdefault(found[1], when)
    for claim in claims.read():
        if claim.name.startswith(LOST):
            continue
        assert claim.stated.timestamp() >= first.get(claim.name, time.time()) - 300, claim.name
