"""The ledger's tables and the advice of `run.py advise`, from made-up runs whose answers are
known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import advise, ledger, lever, load
from analysis.lever import Levers

ROOT = Path(__file__).resolve().parent.parent
CLASSES = list(ledger.CLASSES)
STEPS = 20
GAIN = STEPS / (1 - 0.8)  # of an effect at once, over the run
LOW, HIGH = -1e-3, 4e-4  # the levers: the low side lowers entropy, the high side raises it


def write_run(
    folder: Path, loss: dict, low: float = LOW, high: float = HIGH, spread: float = 1e-5, end: float = 0.5, **more
) -> Path:
    """A looked-at step in two; levers around `low` and `high`, as far apart as `spread`; entropy
    goes to `end`."""
    rows = []
    for step in range(1, STEPS + 1):
        sign = spread * (-1) ** (step // 2)
        row = {"step": step, "entropy/mean": 1.0 if step <= 5 else end, "lever/low": 40 * low + sign}
        row["lever/high"] = 40 * high - sign
        if step % 2 == 0:
            row |= {
                "ledger/updates": 4.0,
                "ledger/empty_updates": 1.0,
                "ledger/looked": 1.0,
                "ledger/carried_exact": 1.0,
            }
            row |= {"ledger/predicted": -5e-3, "dentropy/measured": -6e-3 + sign, "time/ledger": 0.1}
            row |= {"ledger/predicted_momentum": 1e-3, "ledger/predicted_decay": 0.0, "ledger/logit": -0.1 - sign}
            row |= {f"ledger/{name}_residual": 1e-4 for name in ("influence", "step")}
            for n, key in enumerate((*CLASSES, "other")):
                value = 0.0 if key == "other" else (n - 2) * 1e-3 + sign
                row |= {f"ledger/predicted_{key}": value, f"ledger/carried_{key}": 3 * value}
                row |= {} if key == "other" else {f"ledger/logit_{key}": 10 * value}
            row |= {"ledger/lever_low": low + sign, "ledger/lever_high": high - sign}
        rows.append(row | more)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text("{}")
    settings = {"seed": int(folder.name[4:]), "update": {"beta1": 0.8}, "steps": STEPS, "loss": loss}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def clip(**more) -> dict:
    return {"name": "ppo_clip", "eps_low": 0.2, "eps_high": 0.2} | more


def preserve(beta1: float, beta2: float) -> dict:
    return clip(name="cegppo", beta1=beta1, beta2=beta2)


@pytest.fixture
def results(tmp_path) -> Path:
    """Three seeds of an arm without β, which differ a little; of the arms with β one does what
    first order says, another the opposite."""
    for seed in range(3):
        shift = (seed - 1) * 1e-5
        levers = {"low": LOW + shift, "high": HIGH + shift}
        write_run(tmp_path / "sweep" / "grpo" / f"seed{seed}", clip(), **levers)
        told = GAIN * (0.5 * LOW + HIGH)
        write_run(tmp_path / "sweep" / "as_told" / f"seed{seed}", preserve(0.5, 1.0), end=0.5 + told + shift)
        write_run(tmp_path / "sweep" / "opposite" / f"seed{seed}", preserve(1.0, 1.0), end=0.5 + 0.1 + shift)
        other = preserve(0.5, 1.0) | {"eps_high": 0.28}
        write_run(tmp_path / "sweep" / "other_clip" / f"seed{seed}", other, end=0.9)
    return tmp_path


def run(results: Path, *words: str) -> subprocess.CompletedProcess:
    """The front door, without torch."""
    block = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv[0] = 'run.py'; runpy.run_path('run.py',"
        " run_name='__main__')"
    )
    command = [sys.executable, "-c", block, "advise", *words, "--results", str(results)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_table_by_hand(results):
    made = ledger.table(load.metrics(results, "sweep", ["grpo"]), 0.8).set_index(["part", "column"])["mean"]
    assert made["PA&HP", "at once"] == pytest.approx(-2e-3)
    assert made["PA&HP", "carried"] == pytest.approx(-6e-3)
    assert made["PA&HP", "eventual"] == pytest.approx(-10e-3)
    assert made["NA&LP", "at once"] == pytest.approx(1e-3)
    assert made["momentum from before", "at once"] == pytest.approx(1e-3)
    assert "weight decay" not in made and "other terms" not in made


def test_first_order_against_measured_is_left_out_where_it_was_not_taken(results):
    metrics = load.run(results / "sweep" / "grpo" / "seed0")
    made = ledger.agreements(metrics)
    assert set(made["part"]) == {*ledger.CLASSES.values(), "whole step"} and made["n"].isna()[:4].all()
    assert made["logit slope"][:4].to_numpy() == pytest.approx(0.1)
    parts = {f"ledger/first_order_{key}": np.nan for key in CLASSES}
    rows = metrics.assign(**parts, **{f"ledger/measured_{key}": np.nan for key in CLASSES})
    looked = rows["ledger/updates"].notna()
    rows.loc[looked, "ledger/first_order_pa_hp"] = np.arange(looked.sum(), dtype=float)
    rows.loc[looked, "ledger/measured_pa_hp"] = 2.0 * np.arange(looked.sum())
    made = ledger.agreements(rows).set_index("part")
    assert made.loc["PA&HP", "n"] == looked.sum() - 1  # 0 and 0: no token of the class
    assert made.loc["PA&HP", "slope"] == pytest.approx(2) and made.loc["PA&HP", "correlation"] == pytest.approx(1)


def test_the_check_of_the_eventual_effect(results):
    metrics = load.metrics(results, "sweep", ["grpo"])
    found = ledger.check(metrics, 0.8)
    assert found["eventual"][0] == pytest.approx((-2 - 1 + 0 + 1) * 1e-3 / 0.2)
    assert found["measured"][0] == pytest.approx(-6e-3)
    assert found["difference"][0] == pytest.approx(found["eventual"][0] - found["measured"][0])
    assert "updates without a class token: 25%" in ledger.facts(metrics)


def test_an_old_record_is_said_to_be_old_and_shows_nothing(results):
    path = results / "sweep" / "grpo" / "seed0" / "metrics.jsonl"
    path.write_text(path.read_text().replace("ledger/updates", "ledger/other"))
    said = ledger.of_run(path.parent, "a run")
    assert said == f"a run: {ledger.OLD}"
    done = run(results, str(path.parent))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "no entropy ledger of the kind that has levers is recorded there" in done.stderr
    path.write_text(path.read_text().replace("ledger/", "elsewhere/"))
    assert ledger.of_run(path.parent, "a run") == ""


def test_the_levers_of_an_arm(results):
    metrics = load.metrics(results, "sweep", ["grpo"])
    levers = lever.read(metrics, "ledger/lever")
    assert levers.unit == "seeds" and levers.values_U2.shape == (3, 2)
    assert (levers.of("low")[0], levers.of("high")[0]) == pytest.approx((LOW, HIGH))
    assert (levers.sign("low"), levers.sign("high")) == ("below", "above")
    mean, half = levers.spread(np.array([[1.0, 0.0], [0.3, 0.7]]))
    assert (mean[0], mean[0] - half[0]) == pytest.approx(levers.of("low")[:2])
    assert mean[1] + half[1] == pytest.approx(levers.moves((0.3, 0.7))[2])
    assert lever.read(metrics, "lever").of("low")[0] == pytest.approx(40 * LOW)
    one = lever.read(metrics[metrics["seed"] == 1], "ledger/lever")
    assert one.unit == "looked-at steps" and len(one.values_U2) == STEPS // 2
    assert lever.read(metrics.drop(columns="ledger/lever_low"), "ledger/lever") is None


def test_the_neutral_line_and_its_interval():
    rng = np.random.default_rng(0)
    values = np.array([LOW, HIGH]) + rng.normal(size=(20, 2)) * 2e-4
    levers = Levers(values, "seeds")
    slope, low, high = lever.neutral(levers)
    assert slope == pytest.approx(-values[:, 0].mean() / values[:, 1].mean()) and low < slope < high
    for edge in (low, high):  # Fieller: there the interval of what the line does touches 0
        assert min(abs(np.array(levers.moves((1.0, edge))[1:]))) == pytest.approx(0, abs=1e-12)
    other = lever.neutral(levers, "low")
    assert other[0] == pytest.approx(1 / slope) and other[1] == pytest.approx(1 / high)
    assert lever.neutral(Levers(values * [1, 0] + rng.normal(size=(20, 2)) * 1e-4, "seeds")) is None


EXACT = Levers(np.array([[LOW, HIGH]] * 3) + np.array([[1e-6], [0], [-1e-6]]), "seeds")
NONE = np.zeros(2)


@pytest.mark.parametrize(
    "own, target, wanted",
    [
        (NONE, 0.0, [0.4, 1.0]),  # the line β₂ = 2.5 β₁ leaves the square there
        (NONE, 2e-4, [0.2, 1.0]),
        (NONE, -4e-4, [0.5 + 0.3 / 1.16, 1 - 0.12 / 1.16]),  # the foot of the perpendicular
        (np.array([0.5, 1.0]), 0.0, [0.5, 1.0]),  # stay
        (np.array([1.0, 0.0]), -0.0, [1.0, 0.0]),  # the corner: no other β is on the line
        (np.array([1.0, 1.0]), 1e-4, [0.5 + 0.4 / 1.16, 1 - 0.16 / 1.16]),
    ],
)
def test_the_recommended_beta(own, target, wanted):
    found, decided = lever.recommend(EXACT, own, target)
    assert decided == ["low", "high"] and found == pytest.approx(np.array(wanted), abs=1e-9)
    assert (found - own) @ [LOW, HIGH] == pytest.approx(target, abs=1e-12)
    # No other β of the line in the square is nearer to (0.5, 1).
    line = np.array([[b1, (target + np.dot([LOW, HIGH], own) - b1 * LOW) / HIGH] for b1 in np.linspace(0, 1, 2001)])
    line = line[(line[:, 1] > -1e-9) & (line[:, 1] < 1 + 1e-9)]
    assert np.linalg.norm(found - [0.5, 1]) <= np.linalg.norm(line - [0.5, 1], axis=1).min() + 1e-9


@pytest.mark.parametrize("target", [5e-4, -1.1e-3])  # (0, 1) gives 4e-4, (1, 0) takes 1e-3
def test_a_target_out_of_reach(target):
    assert lever.recommend(EXACT, NONE, target) == (None, ["low", "high"])


def test_nothing_is_recommended_on_the_strength_of_an_undecided_lever():
    wide = np.array([[-1.0, 0.0, 1.0]]).T * 1e-2
    only_low = Levers(EXACT.values_U2 + wide * [0, 1], "seeds")
    found, decided = lever.recommend(only_low, np.array([0.0, 0.7]), -4e-4)
    assert decided == ["low"] and found == pytest.approx([0.4, 0.7])
    assert lever.recommend(only_low, NONE, 4e-4)[0] is None
    assert lever.recommend(Levers(EXACT.values_U2 + wide, "seeds"), NONE, 1e-4) == (None, [])


def test_advice_as_it_is_printed(results):
    said = run(results, str(results / "sweep" / "grpo"), "+0.02").stdout
    assert "3 runs of 20 steps, loss ppo_clip, β = (0, 0)" in said and "over 3 seeds" in said
    low, high = (line for line in said.splitlines() if "side, β" in line and "nats" not in line)
    assert "-1.000" in low and "-5.00" in low and "-0.100" in low and low.count("lowers entropy") == 2
    assert "+0.400" in high and "+0.040" in high and high.count("raises entropy") == 2
    assert "is eventual right in this run? No: read signs, not sizes." in said  # −10 · 10⁻³ foretold, −6 measured
    assert "parameter space: along β₂ = 2.5 β₁, slope [" in said and "a larger β₂ than that raises entropy" in said
    assert "target +0.02 nats at the end: β = (0.2, 1), the nearest to (0.5, 1)" in said
    told = [line for line in said.splitlines() if line.startswith("  sweep: ")]
    assert len(told) == 2  # the arm with another clip is no test of β
    assert "as_told (0.5, 1) from grpo: foretold -0.010" in told[0] and told[0].endswith("(3 seeds): signs agree")
    assert "opposite (1, 1)" in told[1] and "measured +0.100" in told[1] and told[1].endswith("signs differ")


def test_levers_of_the_wrong_sign_turn_the_advice_around(results):
    flipped = write_run(results / "other" / "grpo" / "seed0", clip(), low=-LOW, high=-HIGH)
    said = advise.text(flipped, results / "nowhere", 0.02)
    assert "a smaller β₂ than that raises entropy" in said and "over 10 looked-at steps" in said
    assert "none recorded yet" in said and "β = (0.4, 0.8)" not in said
    swapped = write_run(results / "swapped" / "grpo" / "seed0", clip(), low=HIGH, high=LOW)
    assert "β₂ = 0.4 β₁" in advise.text(swapped, results)


def test_the_line_goes_through_the_run_s_own_beta(results):
    own = write_run(results / "other" / "cegppo" / "seed0", preserve(0.5, 1.0))
    said = advise.text(own, results)
    assert "β = (0.5, 1)" in said and "along β₂ = -0.25 + 2.5 β₁" in said
    moved = write_run(
        results / "moved" / "cegppo" / "seed0", preserve([[0, 0.0], ["50%", 1.0]], 1.0), **{"knob/beta1": 0.25}
    )
    assert "β = (0.25, 1)" in advise.text(moved, results)


@pytest.mark.parametrize(
    "words, line",
    [
        (["sweep/grop"], "grop: no such folder; did you mean 'grpo'?"),
        (["sweep/grpo", "much"], "TARGET 'much' is not a number of nats, e.g. +0.1"),
        (["sweep/grpo", "nan"], "TARGET 'nan' is not a number of nats, e.g. +0.1"),
        (["blind/grpo"], "blind/grpo: no entropy ledger is recorded there (diagnostics.every)"),
    ],
)
def test_bad_input_is_one_line(results, words, line):
    blind = write_run(results / "blind" / "grpo" / "seed0", clip())
    path = blind / "metrics.jsonl"
    path.write_text(path.read_text().replace("ledger/", "x/").replace("lever/", "y/"))
    done = run(results, str(results / words[0]), *words[1:])
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_run_in_a_pack(results):
    from cegppo.record.keep import keep

    before = advise.text(results / "sweep" / "grpo", results)
    for path in results.glob("sweep/*/*/meta.json"):
        path.write_text(json.dumps({"status": "finished", "steps": STEPS}, indent=1) + "\n")
    kept = list(keep(results / "sweep"))
    assert not (results / "sweep" / "grpo").exists(), kept
    assert advise.text(results / "sweep" / "grpo", results) == before
    assert pd.notna(lever.foretold(results)[0].measured[0])


def test_runs_of_two_versions_are_the_same_but_for_beta():
    """What a later version alone records stands at its default; a controller would set β itself."""
    older = {"steps": 3, "update": {"lr": 1e-3}, "loss": {"name": "ppo_clip", "eps_low": 0.2}, "method": "grpo"}
    newer = {**older, "update": {"lr": 1e-3, "on_nonfinite": "stop"}, "controller": {"name": "none"}}
    newer |= {"loss": {"name": "cegppo", "eps_low": 0.2, "beta1": 0.5, "beta2": 1.0}}
    older["data"], newer["data"] = {"train": [{"task": "gcd"}]}, {"train": [{"task": "gcd", "verifier": "answer"}]}
    assert lever.same(older, newer) and lever.same(newer, older)
    assert not lever.same(older, {**newer, "steps": 4})
    assert not lever.same(older, {**newer, "data": {"train": [{"task": "lcm"}]}})
    assert not lever.same(older, {**newer, "data": {"train": [{"task": "gcd"}, {"task": "gcd"}]}})
    assert not lever.same(older, {**newer, "update": {"lr": 2e-3}})
    assert not lever.same(older, {**newer, "loss": {**newer["loss"], "eps_low": 0.3}})
    assert not lever.same(older, {**newer, "controller": {"name": "cegppo_auto"}})
