"""Every figure, from a small made-up tree of runs: drawn without torch, the same twice over, and
loud about what is missing."""

import importlib
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from analysis import (
    claims,
    fig_again,
    fig_algorithms,
    fig_beta_map,
    fig_cliff,
    fig_demo,
    fig_fig1,
    fig_fig2,
    fig_fig3,
    fig_fig5,
    fig_fig6,
    fig_growth,
    fig_influence,
    fig_law,
    fig_length,
    fig_map,
    fig_phase,
    fig_soak,
    fig_stories,
    fig_trl,
    ledger,
    lever,
    load,
    numbers,
    style,
)

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {"claims", "faults", "table1", "table2"}  # tables
FIGURES = sorted({path.stem.removeprefix("fig_") for path in (ROOT / "analysis").glob("fig_*.py")} - ELSEWHERE)
AGAIN = [
    "beta_map",
    "clips",
    "fig1",
    "fig2",
    "gradients",
    "idea",
    "influence",
    "law",
    "ledger",
    "lever",
    "map",
]  # one of each way of drawing
SWEEPS = {
    "algorithms": fig_algorithms.ARMS,
    "algorithms_20": ["grpo", "clip_higher", "cegppo"],
    "ledger_20": ["grpo", "cegppo"],
    "clip_sides": ["both", "clip_low_only", "clip_high_only"],
    "beta_grid": fig_fig3.ARMS,
    "entropy_bonus": fig_fig5.ARMS,
    "beta_schedule": list(fig_fig6.ARMS),
    "one_side": list(fig_fig1.ARMS),
    "one_side_random": list(fig_fig1.ARMS),
    "map/coin": ["grpo", "cegppo", "high", "low", "clip_higher"],
    "map/task": ["grpo", "cegppo", "high", "clip_higher"],
    "map/easy": ["grpo", "cegppo"],
    "map/coin_updates16": ["grpo", "cegppo"],
    "family/coin": ["grpo", "cegppo", "aspo"],
    "family/task": ["grpo", "cegppo"],
    "auto/coin": ["grpo", "auto_above", "bonus_above"],
    "demo": list(fig_demo.ARMS),
    "cliff": fig_cliff.ARMS,
    "phase/u16_lr5e-4": list(fig_phase.ARMS),
    "phase/u8_lr5e-4": ["grpo", "cegppo", "high"],
    "phase/length_u8_lr5e-4": fig_length.ARMS,
    "again/coin_large_step": fig_again.ARMS,
    "again/coin_updates16": fig_again.ARMS[:3],
    "stories/coin": fig_stories.ARMS,
    "stories/happy": fig_stories.ARMS[:2],
}
CLASSES = list(ledger.CLASSES)
LINES = [
    "accuracy/mean",
    "entropy/mean",
    "length/mean",
    "kl/old_k1",
    "kl/old_k3",
    "grad/norm",
    "clip/low",
    "clip/high",
    "grad/share_clip_low",
    "grad/share_clip_high",
]
LINES += [f"{head}{key}" for head in ("clip/", "grad/share_") for key in CLASSES]
LINES += [f"clip/prob_{side}_{q}" for side in ("low", "high") for q in ("q10", "q50", "q90")]
LINES += ["lever/low", "lever/high"]
ENTRIES = ["ledger/predicted", "ledger/logit", "dentropy/measured", "time/ledger", "ledger/predicted_decay"]
ENTRIES += [f"ledger/{kind}_{key}" for kind in ("predicted", "carried") for key in (*CLASSES, "other")]
ENTRIES += [f"ledger/logit_{key}" for key in CLASSES] + ["ledger/lever_low", "ledger/lever_high"]
ENTRIES += ["ledger/predicted_momentum", "ledger/influence_residual", "ledger/step_residual"]
PARTS = [f"ledger/{kind}_{key}" for kind in ("first_order", "measured") for key in (*CLASSES, *ledger.REST)]
COUNTS = {"ledger/updates": 4.0, "ledger/empty_updates": 1.0, "ledger/looked": 1.0, "ledger/carried_exact": 1.0}


def write_run(folder: Path, rng: np.random.Generator) -> None:
    """Six steps, evaluated before, between and after, a ledger every second step."""
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, 7):
        row = {
            "step": step,
            "updates": 4.0,
            "knob/beta1": 0.0 if step <= 3 else 0.5,
            **({"controller/target": 0.5, "controller/reach": 0.9} if "_" in folder.parent.name else {}),
            **{key: float(rng.random()) for key in LINES},
        }
        looked = {key: float(rng.normal()) * 1e-5 for key in ENTRIES + PARTS} | COUNTS
        rows.append(row | (looked if step % 2 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = itertools.product((0, 3, 6), ("sums", "gcd"))
    tests = [
        {"step": s, "benchmark": b, "n": 3, "k": 4, "correct": rng.integers(0, 5, 3).tolist()} for s, b in evaluated
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    named = {"cegppo": "beta_0.5_1", "high": "beta_0_1", "low": "beta_1_0"}
    arm = named.get(folder.parent.name, folder.parent.name)
    loss = {"name": "ppo_clip", "eps_low": 0.2, "eps_high": 0.28}
    if arm.startswith("beta_"):
        beta1, beta2 = map(float, arm.split("_")[1:])
        loss |= {"name": "cegppo", "beta1": beta1, "beta2": beta2}
    (folder / "config.yaml").write_text(yaml.safe_dump({"update": {"beta1": 0.9}, "loss": loss, "reward": ""}))


def write_tokens(path: Path, rng: np.random.Generator) -> None:
    """A record of influence: eight prompts with two responses each, right and wrong, a token of the
    last four outside the clip."""
    rows = []
    for prompt, rollout, position in itertools.product(range(8), range(2), range(14)):
        row = {"step": 30, "update": prompt, "prompt_id": f"gcd/{prompt}", "rollout": rollout, "position": position}
        row |= {"text": f"w{position} ", "verdict": ["correct", "wrong"][rollout], "advantage": 1.0 - 2 * rollout}
        row |= {"side": "low" if prompt > 3 and position == 5 else "inside", "prompt": "a prompt\n", "answer": "2"}
        rows.append(row | {"dentropy_exact": float(rng.normal()) * 1e-5})
    path.parent.mkdir()
    pd.DataFrame(rows).to_parquet(path)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("tree") / "results", np.random.default_rng(0)
    for experiment, arms in SWEEPS.items():
        for arm, seed in itertools.product(arms, (0, 1)):
            write_run(root / experiment / arm / f"seed{seed}", rng)
    tokens = root / "algorithms" / "grpo" / "seed0" / "tokens"
    tokens.mkdir()
    for step in (5, 10):
        record = {
            "step": step,
            "prob": rng.random(40),
            "ratio": np.exp(rng.normal(0, 0.2, 40)),
            "class": rng.choice(CLASSES, 40),
        }
        pd.DataFrame(record | {"side": "inside"}).to_parquet(tokens / f"step{step:06}.parquet")
    columns = ["experiment", "arm", "seed", "step", *fig_trl.PANELS, "length/mean"]
    cells = [["coin_updates16", a, s, n, *rng.random(5)] for a in fig_trl.ARMS for s in (0, 1, 2) for n in range(1, 5)]
    (root / "trl").mkdir()
    pd.DataFrame(cells, columns=columns).to_csv(root / "trl" / "runs.csv", index=False)
    write_tokens(root / "ledger_20" / "cegppo" / "seed0" / "tokens" / "step000030.parquet", rng)
    shutil.copy(ROOT / "results" / "weights.csv", root)
    paper = root / "paper"
    paper.mkdir()
    for file, (column, *_) in fig_fig2.PANELS.items():
        (paper / file).write_text(
            f"source,method,step,{column}\n"
            + "".join(f"Figure 2,{m},{s},0.5\n" for m in fig_fig2.THEIRS for s in (0, 9))
        )
    (root / "soak").mkdir()
    soak = {name: np.arange(60.0) * rate for name, rate in {"seconds": 20, "cpu_seconds": 9, "tokens": 4000}.items()}
    soak |= {"rss_mib": 900 + np.arange(60) / 6, "handles": 39, "steps": np.arange(60) * 2, "step_seconds": 1.5}
    pd.DataFrame(soak).to_csv(root / "soak" / "run.csv", index=False)
    growth(root)
    return root


def growth(root: Path) -> None:
    """Twice the tokens, four times the sampling and as much updating; memory with the root."""
    value = np.array([1.0, 2, 4, 8])
    table = {"value": value.astype(int), "rollout": value**2, "update": 3.0, "mib": 30 * np.sqrt(value)}
    (root / "growth").mkdir()
    frames = [pd.DataFrame({"axis": axis} | table) for axis in fig_growth.AXES]
    pd.concat(frames).to_csv(root / "growth" / "growth.csv", index=False)


def test_the_slopes_of_growth_by_hand(tmp_path):
    growth(tmp_path)
    rows = fig_growth.read(tmp_path).query("axis == 'tokens'")
    assert [fig_growth.slope(rows, key) for key in ("rollout", "update", "mib")] == pytest.approx([2, 0, 0.5])
    assert rows["whole"].tolist() == [4, 7, 19, 67]


def test_the_slope_of_a_soak_by_hand(results):
    samples = fig_soak.read(results)["run"]  # 1/6 MiB every 20 s
    assert fig_soak.slope(samples, "rss_mib") == pytest.approx((30, 30, 30))
    assert fig_soak.slope(samples, "handles") == pytest.approx((0, 0, 0)) and samples["cpu_ms"].iloc[-1] == 2.25
    noisy = samples.assign(rss_mib=np.random.default_rng(0).normal(900, 5, len(samples)))
    rate, low, high = fig_soak.slope(noisy, "rss_mib")
    assert low < 0 < high and low < rate < high


def front_door():
    spec = importlib.util.spec_from_file_location("front_door", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_is_drawn_without_torch_and_alike_again(results):
    block = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv[0] = 'run.py'; runpy.run_path('run.py',"
        " run_name='__main__')"
    )
    command = [sys.executable, "-c", block, "figures", "--results", str(results), "--only", *FIGURES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = {name: (results / "figures" / f"{name}.svg").read_bytes() for name in FIGURES}
    assert all((results / "figures" / f"{name}.png").stat().st_size > 10_000 for name in FIGURES)
    assert "2 seeds" in done.stdout and "R = −a·exp(H) + b" in done.stdout
    assert front_door().main(["figures", "--results", str(results), "--only", *AGAIN]) == 0
    assert [name for name in AGAIN if (results / "figures" / f"{name}.svg").read_bytes() != first[name]] == []


@pytest.mark.parametrize(
    "gone, figure, line",
    [
        ("beta_grid/beta_1_1", "fig3", "error: figure 'fig3': no run of beta_1_1 in "),
        ("one_side/low", "beta_map", "error: figure 'beta_map': no run of low in "),
        ("one_side_random/none", "fig1", "error: figure 'fig1': no run of none in "),
        ("algorithms/grpo/seed0/tokens", "fig1", "error: figure 'fig1': no token record in "),
        ("paper", "fig2", "error: figure 'fig2': no "),
        ("ledger_20/grpo", "ledger", "error: figure 'ledger': no run of grpo in "),
        ("ledger_20/cegppo/seed0/tokens", "influence", "error: figure 'influence': no token record of step 30 in "),
        ("weights.csv", "weights", "error: figure 'weights': no "),
        ("family", "family", "error: figure 'family': no regime with finished runs of grpo and another method in "),
        ("auto", "auto", "error: figure 'auto': no regime with runs of grpo in "),
        ("beta_schedule", "law", "error: figure 'law': no runs in "),
    ],
)
def test_a_missing_run_is_named(results, capsys, gone, figure, line):
    hidden = results / "hidden"
    (results / gone).rename(hidden)
    try:
        assert front_door().main(["figures", "--results", str(results), "--only", figure]) == 2
    finally:
        hidden.rename(results / gone)
    error = capsys.readouterr().err
    assert line in error and gone.split("/")[0] in error and error.count("\n") == 1


def test_a_missing_metric_and_a_wrong_name_are_said(results, capsys):
    path = results / "algorithms" / "cegppo"
    rows = {p: p.read_text() for p in path.glob("*/metrics.jsonl")}
    for p, text in rows.items():
        p.write_text(text.replace("kl/old_k3", "kl/other"))
    assert front_door().main(["figures", "--results", str(results), "--only", "fig4"]) == 2
    assert "no 'kl/old_k3' in the runs of cegppo" in capsys.readouterr().err
    for p, text in rows.items():
        p.write_text(text)
    assert front_door().main(["figures", "--only", "leger"]) == 2
    assert capsys.readouterr().err == "error: no figure 'leger'; did you mean 'ledger'?\n"


def test_the_law_by_hand():
    """Points that lie on 0.9 − 0.2·exp(H) give it back; a run that is off its seed's law says by
    how much; a shared run counts once."""
    entropy = np.linspace(0.2, 0.8, 12)
    points = pd.DataFrame(
        {"run": np.repeat(["a", "b", "c"], 4), "seed": 0, "step": np.tile([0, 1, 2, 3], 3), "entropy": entropy}
    )
    points["accuracy"] = 0.9 - 0.2 * np.exp(entropy)
    assert dict(fig_law.fit(points)) == pytest.approx({"a": 0.2, "b": 0.9, "r2": 1.0})
    two = pd.concat([points, points.assign(seed=1, accuracy=points["accuracy"] + 0.1)], ignore_index=True)
    fits = pd.DataFrame({seed: fig_law.fit(rows) for seed, rows in two.groupby("seed")}).T
    assert fig_law.residual(two, fits).to_numpy() == pytest.approx(np.zeros(24), abs=1e-12)  # each seed has its own
    off = two.assign(accuracy=two["accuracy"] + 0.3)
    assert fig_law.residual(off, fits).to_numpy() == pytest.approx(np.full(24, 0.3))
    copy = points[points["run"] == "b"].assign(run="elsewhere")
    assert sorted(set(fig_law.once(pd.concat([points, copy], ignore_index=True))["run"])) == ["a", "b", "c"]


def test_runs_of_trl_are_compared_with_ours(results):
    """Over the rollouts that both have; a difference that is put in is what comes out, and a single
    run of TRL's has an interval from the spread of ours."""
    found = fig_trl.runs(results)
    assert set(found["step"]) == {1, 2, 3, 4} and set(found["arm"]) == {"grpo", "cegppo", "trl_grpo", "trl_cegppo"}
    ours = found[found["arm"].isin(fig_trl.ARMS)]
    theirs = ours.assign(arm=ours["arm"].map(fig_trl.THEIRS))
    theirs["entropy/mean"] += np.where(theirs["arm"] == "trl_cegppo", 0.5, 0.25)
    shown = fig_trl.table(pd.concat([ours, theirs]))
    entropy = shown[shown["quantity"] == "entropy, whole run"]
    assert [text.split()[0] for text in entropy["TRL less ours"]] == ["+0.250", "+0.500", "+0.250"]
    assert list(entropy["arm"]) == ["GRPO", "CE-GPPO (0.5, 1)", "CE-GPPO less GRPO"]
    # t of 3 degrees of freedom 3.182; standard deviation 1, of 1 against 4
    mean, low, high = fig_trl.difference(pd.Series([5.0]), pd.Series([0.0, 1.0, 1.0, 2.0]) * np.sqrt(1.5))
    assert mean == pytest.approx(5 - np.sqrt(1.5)) and high - mean == pytest.approx(3.1824 * np.sqrt(1.25), rel=1e-4)
    assert mean - low == pytest.approx(high - mean)
    with pytest.raises(load.Missing, match="trl_runs.py makes it"):
        fig_trl.runs(results / "nowhere")


def regime(name: str, foretold: float, measured: tuple[float, float, float]) -> fig_map.Regime:
    row = lever.Foretold(name, "grpo", "cegppo", np.array([0.5, 1.0]), (foretold, foretold, foretold), measured, 5)
    clipped = {"low": 0.0, "high": foretold**3}  # the same order, other distances
    accuracy = {"cegppo": (0.0, -0.1, 0.1)}
    return fig_map.Regime(name, {"cegppo": row}, None, accuracy, 0.6, 0.5, clipped, name != "strong")


def test_the_map_by_hand():
    made = [
        regime("strong", 0.4, (0.2, 0.1, 0.3)),
        regime("weak", 0.1, (0.02, 0.01, 0.025)),
        regime("none", 0.0, (0.0, -0.02, 0.02)),
        regime("unsure", -0.1, (0.0, -0.1, 0.1)),
        regime("wrong", 0.2, (-0.1, -0.2, -0.05)),
    ]
    said = [one.says() for one in made]
    assert said == ["raises entropy", "raises a little", "does not matter", "undecided", "lowers entropy"]
    x, y = pd.Series([0.4, 0.1, 0.0, -0.1, 0.2]), pd.Series([0.2, 0.02, 0.0, 0.0, -0.1])
    rho, r = stats.spearmanr(x, y).statistic, np.corrcoef(x, y)[0, 1]
    assert fig_map.correlations(x, y) == f"{rho:+.2f} ({r:+.2f})"
    (row,) = fig_map.agreements(made).to_dict("records")  # four with a true reward are too few
    assert row["settings"] == "all, 5" and row["decided, sign right"] == "3, 2"
    assert row["lever"] == f"{rho:+.2f} ({r:+.2f})" and row["clip share"].startswith(f"{rho:+.2f}")
    assert row["clip share"] != row["lever"]


def test_what_the_figures_read(results):
    run = results / "algorithms" / "grpo" / "seed0"
    assert load.tokens(run)["step"].unique().tolist() == [5]  # the earliest, which is the one that is committed
    assert load.setting(run, "loss.eps_high") == 0.28
    with pytest.raises(load.Missing, match="no 'loss.eps' in "):
        load.setting(run, "loss.eps")
    assert fig_fig6.switched(load.metrics(results, "beta_schedule", ["switch"])) == 3
    assert set(fig_beta_map.GRID) <= set(fig_fig3.ARMS)


def test_one_look_an_algorithm_that_reads_in_grey():
    same = {"beta_0.5_1": "cegppo", "beta_0.75_1": "cegppo_0.75", "gppo": "beta_1_1"}
    assert all(style.look(a)[1] == style.look(b)[1] for a, b in same.items())
    assert style.look("beta_0_0")[1]["color"] == style.look("grpo")[1]["color"]  # the same gradient
    grey = lambda colour: float(np.dot(matplotlib.colors.to_rgb(colour), (0.299, 0.587, 0.114)))
    sides = [look for look, _ in fig_fig1.ARMS.values()]
    for arms in (
        fig_algorithms.ARMS,
        fig_fig3.ARMS,
        fig_fig5.ARMS,
        list(fig_fig6.ARMS.values()),
        sides,
        SWEEPS["clip_sides"],
    ):
        for a, b in itertools.combinations([style.look(arm)[1] for arm in arms], 2):
            assert a["linestyle"] != b["linestyle"] or abs(grey(a["color"]) - grey(b["color"])) > 0.15, (a, b)
    fills = [(grey(fill["facecolor"]), fill["hatch"]) for fill in style.CLASSES.values()]
    assert all(a[1] != b[1] or abs(a[0] - b[0]) > 0.3 for a, b in itertools.combinations(fills, 2))


def test_the_responses_that_are_shown(results):
    record = load.tokens(results / "ledger_20" / "cegppo" / "seed0", 30)
    shown = fig_influence.chosen(record)
    assert list(shown) == ["right", "wrong", "clipped"]
    assert len({response["prompt_id"].iloc[0] for response in shown.values()}) == 3
    assert {kind: response["clipped"].sum() for kind, response in shown.items()} == {
        "right": 0,
        "wrong": 0,
        "clipped": 1,
    }
    assert (shown["right"]["verdict"] == "correct").all() and (shown["wrong"]["verdict"] == "wrong").all()
    most = record.groupby(["prompt_id", "rollout"])["dentropy_exact"].agg(lambda e: e.abs().sum())
    clipped = shown["clipped"].iloc[0]
    assert most[clipped["prompt_id"], clipped["rollout"]] == most[[f"gcd/{p}" for p in range(4, 8)]].max()
    # A token of two updates counts with the sum of both, and those three alone are chosen again.
    twice = fig_influence.chosen(pd.concat([record, record.assign(update=9)]))
    assert np.allclose(twice["right"]["effect"], 2 * shown["right"]["effect"])
    keys = [tuple(response[["prompt_id", "rollout"]].iloc[0]) for response in shown.values()]
    kept = record[[key in keys for key in zip(record["prompt_id"], record["rollout"])]]
    again = fig_influence.chosen(kept)
    assert all((again[kind]["effect"].to_numpy() == shown[kind]["effect"].to_numpy()).all() for kind in shown)


def written(results: Path) -> dict[str, str]:
    modules = [importlib.import_module(f"analysis.{path.stem}") for path in (ROOT / "analysis").glob("fig_*.py")]
    return {name: text for module in modules for name, text in numbers.of(module, results).items()}


def test_the_texts_quote_what_the_results_say():
    """Fails where a number was edited by hand, or the results moved: `python run.py figures` writes
    it anew."""
    blocks = written(ROOT / "results")
    asked = {path: numbers.names(path.read_text()) for path in numbers.texts(ROOT)}
    assert {name for names in asked.values() for name in names} == set(blocks)
    for path in asked:
        assert numbers.filled(path.read_text(), blocks) == path.read_text(), path
        lines = [line for line in path.read_text().splitlines() if line.startswith("<!-- numbers:")]
        assert len(lines) == len(asked[path]), path  # none without an end


def test_no_sentence_says_held_without_the_name_of_a_claim():
    """What held is what a claim says; docs/figures.md defines the words and is left out."""
    names = {claim.name for claim in claims.read()}
    for path in numbers.texts(ROOT):
        if path.name in ("figures.md", "config.md"):  # nor does a key's meaning speak of verdicts
            continue
        prose = numbers.BLOCK.sub("", path.read_text())
        for piece in re.split(r"\n\s*\n|\n(?=[*|-] )|\n(?=\|)", prose):
            if re.search(r"\b[Hh]eld\b(?! against)", piece):
                assert names & set(re.findall(r"`(\w+)`", piece)), f"{path.name}: {piece}"


def test_numbers_are_written_between_their_marks_alone(results, tmp_path):
    (tmp_path / "docs").mkdir()
    text = "# a\n<!-- numbers: ledger_20 -->\nold 1.0\n<!-- end -->\nb\n<!-- numbers: other -->\nx\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(text)
    blocks = written(results)
    assert numbers.write(tmp_path, blocks) == [tmp_path / "README.md"] and numbers.write(tmp_path, blocks) == []
    new = (tmp_path / "README.md").read_text()
    assert new.startswith("# a\n<!-- numbers: ledger_20 -->\n| part |") and "old 1.0" not in new
    assert new.endswith("<!-- end -->\nb\n<!-- numbers: other -->\nx\n<!-- end -->\n")
    assert set(written(tmp_path).values()) == {numbers.NOTHING}
