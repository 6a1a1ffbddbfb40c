"""Anybody's runs side by side: labels from configurations, looks that differ, numbers by hand, live
and packed alike."""

import itertools
import json
import os
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

import run as front_door
from analysis import arms, compare, evolution, load, stats, style

ROOT = Path(__file__).resolve().parent.parent
DOC = (ROOT / "docs" / "figures.md").read_text()


def write_run(folder, entropy, correct, steps=6, status="finished", **settings):
    """A run whose entropy is `entropy` + step / 100 and which has `correct` of 8 samples right."""
    folder.mkdir(parents=True)
    row = lambda s: {
        "step": s,
        "entropy/mean": entropy + s / 100,
        "reward/mean": 0.5,
        "clip/low": 0.01,
        "clip/high": 0.0,
    }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(s)) + "\n" for s in range(1, steps + 1)))
    tests = [{"step": s, "benchmark": "sums", "n": 2, "k": 4, "correct": c} for s, c in correct.items()]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "meta.json").write_text(json.dumps({"status": status, "steps": steps}))


@pytest.fixture
def results(tmp_path):
    """A sweep of nobody's arms: three seeds, the second arm 0.1 nats and a quarter above."""
    root = tmp_path / "results"
    for (arm, lr, up), seed in itertools.product([("slow", 1e-4, 0), ("fast", 3e-4, 1)], range(3)):
        correct = {0: [0, 0], 3: [2 + up, 2 + up], 6: [1 + up + (seed == 2), 1 + up]}
        run = root / "mine" / arm / f"seed{seed}"
        write_run(run, 0.5 + 0.1 * up + 0.01 * seed * up, correct, method="grpo", reward="random", update={"lr": lr})
    return root


def config(**changes):
    loss = {"name": "cegppo", "beta1": 0.5, "beta2": 1.0} if changes.get("method") == "cegppo" else {"name": "ppo_clip"}
    return {"method": "grpo", "loss": loss | {"eps_low": 0.2}, "reward": "task", "seed": 0, "steps": 60} | changes


@pytest.mark.parametrize(
    "settings, labels",
    [
        ({"a": config(), "b": config(method="cegppo")}, ["GRPO", "CE-GPPO (0.5, 1)"]),
        (
            {"a": config(update={"lr": 1e-4}), "b": config(update={"lr": 0.01})},
            ["update.lr = 0.0001", "update.lr = 0.01"],
        ),
        ({"a": config(), "b": config(reward="random")}, ["reward task", "reward random (a coin)"]),
        (
            {
                "a": config(method="cegppo"),
                "b": config(method="cegppo", loss={"name": "cegppo", "beta1": 0, "beta2": 1}),
            },
            ["β = (0.5, 1)", "β = (0, 1)"],
        ),
        ({"a": config(), "b": config(method="cegppo", steps=9)}, ["GRPO, steps = 60", "CE-GPPO (0.5, 1), steps = 9"]),
        ({"a": config(), "b": config(seed=4), "c": {}}, ["a", "b", "c"]),  # nothing that changes a run differs
        ({"a": config(), "b": config(reward_signal=0.0), "c": config(reward_signal=1.0)}, None),
    ],
)
def test_a_label_says_what_differs(settings, labels):
    made = arms.labels(settings)
    assert list(made) == list(settings) and len(set(made.values())) == len(made)
    if labels:
        assert list(made.values()) == labels
    else:  # a and c are the same run under two names
        assert made == {"a": "reward task [a]", "b": "reward random (a coin)", "c": "reward task [c]"}


def test_what_a_run_was_rewarded_for():
    told = lambda **settings: arms.reward(settings)
    assert told(reward="random") == told(reward="task", reward_signal=0.0) == "random (a coin)"
    assert told(reward="task") == told(reward="task", reward_signal=1.0) == "task" and told() == "unknown"
    assert told(reward="task", reward_signal=0.3) == "task for 30 % of the answers, a coin for the rest"
    assert told(reward="rules.py:length") == "rules.py:length"


def test_no_two_arms_look_alike_and_none_is_grey():
    labels = {f"arm{n}": f"label {n}" for n in range(30)} | {"grpo": "GRPO", "x": "β = (0, 0)"}
    looks = style.looks(labels)
    assert len({(look["color"], look["linestyle"]) for _, look in looks.values()}) == 32
    assert looks["grpo"] == style.look("grpo") and looks["grpo"][1] != looks["x"][1]
    few = [look["color"] for _, look in style.looks(dict(list(labels.items())[:7])).values()]
    assert len(set(few)) == 7
    for colour in style.COLOURS:  # a hue, or black
        red, green, blue = matplotlib.colors.to_rgb(colour)
        assert max(red, green, blue) - min(red, green, blue) > 0.3 or colour == "#000000"


def test_the_table_and_the_differences_by_hand(results, capsys):
    assert front_door.main(["compare", "mine", "--results", str(results), "--to", "slow"]) == 0
    said = capsys.readouterr().out
    numbers = pd.read_csv(results / "figures" / "compare_mine.csv").set_index(["section", "arm", "quantity"])
    at = lambda *key: numbers.loc[key]
    assert at("arm", "slow", "entropy, start")["value"] == pytest.approx(0.52)  # of three steps of six
    assert at("arm", "slow", "accuracy, last")["value"] == pytest.approx((2 + 2 + 3) / 8 / 3, rel=1e-4)
    assert at("arm", "slow", "accuracy, best")["value"] == pytest.approx(0.5) and "accuracy, step 6" in said
    up = at("less slow", "fast", "entropy, last steps")
    values = [0.1, 0.11, 0.12]
    assert up["value"] == pytest.approx(0.11) and up["seeds"] == 3
    assert (up["low"], up["high"]) == pytest.approx(stats.mean_over_seeds(values)[1:], rel=1e-4)
    assert up["p"] == pytest.approx(stats.p_value(values), rel=1e-4) and up["holm"] == pytest.approx(up["p"])
    line = next(line for line in said.splitlines() if "entropy, last steps" in line)
    assert "update.lr = 0.0003 − update.lr = 0.0001" in line and line.split("]")[1].split()[0] == "*"
    for ending in ("md", "tex"):
        text = (results / "figures" / f"compare_mine.{ending}").read_text()
        assert "random (a coin)" in text and "lr = 0.0003" in text


def test_holm_is_over_the_arms_of_a_quantity(results):
    for seed in range(3):
        write_run(results / "mine" / "third" / f"seed{seed}", 0.5 + [0.0, 0.01, 0.05][seed], {6: [1, 1]}, method="x")
    c = compare.chosen(["mine"], results)
    rows = evolution.contrasts(c.runs, c.tests, ["slow", "fast", "third"])
    mine = rows[rows["quantity"] == "entropy, whole run"]
    assert mine["arm"].tolist() == ["fast", "third"]
    assert mine["holm"].to_numpy() == pytest.approx(stats.holm(mine["p"].to_numpy())) and mine["p"].iloc[0] < 0.05
    assert mine["holm"].iloc[0] == pytest.approx(2 * mine["p"].iloc[0])


def drawn(c):
    """(the figure, its texts) as `write` draws it."""
    kept = {}
    save, style.save = style.save, lambda figure, results, name: kept.setdefault("figure", figure) and results / name
    try:
        said = compare.write(c)
    finally:
        style.save = save
    figure = kept["figure"]
    texts = [figure._supxlabel.get_text(), figure.legends[0].get_title().get_text()]
    style.plt.close(figure)
    return figure, " ".join(texts), said


def test_the_picture_says_what_it_is_of(results):
    figure, texts, _ = drawn(compare.chosen(["mine"], results))
    assert texts.count("reward: random (a coin)") == 2 and "mine, 3 seeds an arm" in texts
    entropy, accuracy, *_ = figure.axes
    assert accuracy.get_ylim()[0] >= 0 and accuracy.get_ylim()[1] <= 1 and len(accuracy.collections) == 2
    low, high = (np.concatenate([c.get_paths()[0].vertices[:, 1] for c in accuracy.collections]).min(), 1)
    assert 0 <= low < high and entropy.get_ylim()[0] >= 0


def test_no_interval_from_two_seeds(results):
    shutil.rmtree(results / "mine" / "fast" / "seed2"), shutil.rmtree(results / "mine" / "slow" / "seed2")
    figure, texts, said = drawn(compare.chosen(["mine"], results))
    assert not figure.axes[0].collections and len(figure.axes[0].lines) == 2 * 3  # each seed, and their mean
    assert "interval" not in texts and "[" not in "".join(line for line in said.splitlines() if " − " in line)


def test_what_cannot_be_compared_is_left_out_and_named(results, capsys):
    write_run(results / "mine" / "slow" / "seed7", 0.5, {}, steps=2, status="failed")
    write_run(results / "mine" / "fast" / "seed8", 0.5, {6: [1, 1], 0: [0, 0]}, steps=5)
    c = compare.chosen(["mine"], results)
    assert c.notes[0].startswith("left out, not finished: ") and c.notes[0].endswith("slow/seed7 (failed, step 2)")
    assert c.notes[1] == "compared up to step 5, where fast seed 8 ends" and c.runs["step"].max() == 5
    assert evolution.last_evaluation(c.tests) == 0  # the only one that every run has up to there
    for meta in results.glob("mine/*/*/meta.json"):
        meta.write_text('{"status": "running"}')
    assert compare.chosen(["mine"], results).runs["step"].max() == 2  # none is finished: what all of them have
    for names, line in [
        (["main"], "no runs there; did you mean 'mine'?"),
        (["mine", "--to", "slwo"], "no arm 'slwo' among fast, slow; did you mean 'slow'?"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
    ]:
        assert front_door.main(["compare", *names, "--results", str(results)]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1


def test_runs_without_a_benchmark_show_their_reward(results):
    for path in results.glob("mine/*/*/eval.jsonl"):
        path.unlink()
    figure, _, said = drawn(compare.chosen(["mine"], results))
    assert figure.axes[1].get_title() == "Reward in training (no benchmark)" and "accuracy" not in said.lower()[:600]


def test_runs_and_arms_by_their_folders(results, tmp_path):
    mine = results / "mine"
    c = compare.chosen([str(mine / "slow"), str(mine / "fast" / "seed1")], results)
    assert c.arms == ["slow", "fast"] and c.runs.groupby("arm")["seed"].nunique().to_dict() == {"slow": 3, "fast": 1}
    assert c.name == "mine: slow, fast" and c.file() == "compare_mine_slow_fast"
    shutil.copytree(mine, results / "other")
    c = compare.chosen([str(mine / "slow"), "other"], results)
    assert c.arms == ["mine/slow", "fast", "other/slow"] and c.name == "mine, other"
    shutil.copytree(mine / "slow" / "seed1", tmp_path / "elsewhere")  # as run_dir=… puts it
    c = compare.chosen([str(tmp_path / "elsewhere"), str(mine / "fast")], results)
    assert c.arms == ["elsewhere", "fast"] and len(c.runs) == 6 * 4


def test_the_order_of_arms_is_the_sweep_files(results, tmp_path):
    (tmp_path / "base.yaml").write_text("arms: {slow: {}, fast: {}}")
    (tmp_path / "mine.yaml").write_text("include: base.yaml")
    assert compare.chosen([str(tmp_path / "mine.yaml")], results).arms == ["slow", "fast"]
    assert compare.chosen(["mine"], results).arms == ["fast", "slow"]


def test_live_and_packed_alike_without_torch(tmp_path):
    """The committed pack, and the same runs in their folders."""
    from cegppo.record.keep import unpack

    for root in ("packed", "live"):
        shutil.copytree(ROOT / "results" / "one_side_random", tmp_path / root / "one_side_random")
    live = tmp_path / "live" / "one_side_random"
    for folder in load.run_folders(live):
        unpack(folder)
    for path in live.glob("*.*"):
        path.unlink()
    block = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path('run.py', run_name='__main__')"
    made = []
    for root in ("packed", "live"):
        command = [sys.executable, "-c", block, "compare", "one_side_random", "--results", str(tmp_path / root)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / root / "figures" / "compare_one_side_random.csv").read_text())
        assert "β = (1, 1) − β = (0, 0)" in done.stdout and "Reward: random (a coin)." in done.stdout
    assert made[0] == made[1]


def test_the_script_in_the_docs_runs(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    shutil.copytree(ROOT / "results" / "one_side_random", tmp_path / "results" / "one_side_random")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip()).stat().st_size > 10_000


ANY_NAMES = [
    "$x_$",
    r"$\foo$",
    "cost$1_$2",
    "a$b$c",
    "_base",
    r"\foo{",
    "{}",
    "<b>&",
    "😀",
    "x" * 190,
    "a|b",
    "50%",
    "~^#",
    "it's `so`",
]


@pytest.fixture
def strange(tmp_path):
    """A sweep whose arms have strange names."""
    for n, (arm, seed) in enumerate(itertools.product(ANY_NAMES, range(2))):
        write_run(tmp_path / "results" / "$m_$" / arm / f"seed{seed}", 0.5 + n / 100, {6: [1, 2]})
    return tmp_path / "results"


def test_figures_and_tables_take_any_name(strange, capsys, recwarn):
    assert front_door.main(["compare", "$m_$", "--results", str(strange)]) == 0
    said = capsys.readouterr().out
    made = compare.chosen(["$m_$"], strange)
    assert set(made.arms) == set(ANY_NAMES) and all(arm in said for arm in ANY_NAMES)
    looks = style.looks(arms.labels(made.settings))
    figure = evolution.panels(made.runs, made.tests, made.arms, looks.__getitem__, "$t_$")
    drawn = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(drawn)) == len(ANY_NAMES) and max(map(len, drawn)) <= style.LONGEST + 2
    assert "\u200b_base" in drawn and "$x_$" in drawn and r"$\foo$" in drawn
    (tex,) = (strange / "figures").glob("compare_*.tex")
    text = tex.read_text()
    assert r"\$x\_\$" in text and r"\textbackslash{}foo\{" in text and r"\textless{}b\textgreater{}\&" in text
    body = re.sub(r"\\[%&_#${}]|\\[a-z]+(\{\})?|\$-\$|\$\\pm\$|\$\\beta\$|%\s*graphicx", "", text)
    assert "$" not in body and "_" not in body and body.count("{") == body.count("}")
    (page,) = (strange / "figures").glob("compare_*.md")
    columns = {line.count("|") - line.count("\\|") for line in page.read_text().splitlines() if line.startswith("| ")}
    assert len(columns) == 2  # the arms' and the differences'


@pytest.mark.parametrize("lacks", ["entropy/mean", "clip/low", "reward/mean", "everything", "nan"])
def test_a_run_without_a_value_costs_its_own_row(results, lacks, capsys):
    folder = results / "mine" / "constant" / "seed0"
    write_run(folder, 0.5, {}, method="grpo", reward="random", update={"lr": 1.0})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for key in [k for k in row if k != "step"]:
            if lacks in (key, "everything"):
                del row[key]
            elif lacks == "nan":
                row[key] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert front_door.main(["compare", "mine", "--results", str(results), "--to", "slow"]) == 0
    said = capsys.readouterr().out
    assert "update.lr = 1" in said and "0.520 → 0.550" in said  # the others have theirs


def test_a_run_of_one_step_stops_no_comparison(results, capsys):
    write_run(
        results / "mine" / "short" / "seed0", 0.5, {}, steps=1, method="grpo", reward="random", update={"lr": 1.0}
    )
    assert front_door.main(["compare", "mine", "--results", str(results)]) == 0
    assert "update.lr = 1" in capsys.readouterr().out


def test_arms_keep_their_names_in_the_order_of_a_sweep_file(tmp_path):
    (tmp_path / "s.yaml").write_text("arms: {1.10: {}, 1.1: {}, 1_000: {}, 010: {}}\n")
    assert compare._order(tmp_path / "s.yaml") == ["1.10", "1.1", "1_000", "010"]
