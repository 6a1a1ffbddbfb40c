"""Sweeps and figures from the front door, on the tiny model."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run as front_door
from analysis import ledger, load, stats
from cegppo import config
from cegppo.record.files import read_lines
from cegppo.sweep import description, search
from cegppo.types import BadInput

from .test_config import run
from .test_train import without_times

ROOT = Path(__file__).resolve().parent.parent
ARMS = """
experiment: tiny.yaml
varies: [method, loss]
seeds: [0, 1]
workers: 2
common: {steps: 3, eval_every: 2}
arms:
  grpo: {method: grpo}
  clip_higher: {method: clip_higher}
  cegppo: {method: cegppo, loss.beta1: 0.25}
"""


@pytest.fixture
def demo(tiny):
    path = tiny.parent / "demo.yaml"
    path.write_text(ARMS)
    return path


def expand(path, overrides=()):
    return description.expand(description.describe(path, list(overrides)))


def test_expansion(demo):
    loaded = expand(demo, ["update.lr=0.5", "sweep.seeds=[3]", "sweep.workers=1"])
    assert [(r.arm, r.seed) for r in loaded.runs] == [
        ("grpo", 3),
        ("clip_higher", 3),
        ("cegppo", 3),
    ] and loaded.workers == 1
    last = loaded.runs[-1].config
    assert last.loss["beta1"] == 0.25 and last.update.lr == 0.5 and last.steps == 3
    assert str(last.folder) == "results/demo/cegppo/seed3"


@pytest.mark.parametrize(
    "change, part",
    [
        (
            ("varies: [method, loss]", "varies: [method]"),
            "arms 'grpo' and 'clip_higher' differ in 'loss.eps_high', which `varies` does not name",
        ),
        (
            ("clip_higher: {method: clip_higher}", "clip_higher: {method: clip_higher, update.lr: 1.0}"),
            "differ in 'update.lr'",
        ),
        (("workers: 2", "worker: 2"), "unknown key 'worker'; did you mean 'workers'?"),
        (("workers: 2", "workers: two"), "'workers' takes a int"),
        (("seeds: [0, 1]", "seeds: []"), "'seeds' is missing or empty"),
        (("common: {steps: 3,", "common: {steps: 0,"), "demo.yaml: common: steps must be at least 1, not 0"),
        (("common: {", "common: {updat: 1, "), "demo.yaml: common: unknown key 'updat'; did you mean 'update'?"),
        (("loss.beta1: 0.25", "loss.beta1: -1"), "demo.yaml: arm 'cegppo': loss.beta1 must be at least 0, not -1"),
        (("method: grpo", "method: gropo"), "demo.yaml: arm 'grpo': unknown method 'gropo'"),
        (("experiment: tiny.yaml", "experiment: tinny.yaml"), "tinny.yaml: no such file"),
        (("grpo: {method: grpo}", "grpo: grpo"), "arm 'grpo' takes keys like {method: grpo}, not 'grpo'"),
        (
            ("seeds: [0, 1]", "takes_from: [map/coin]\nseeds: [0, 1]"),
            "demo.yaml: takes_from names sweeps, folders right",
        ),
        (("seeds: [0, 1]", "seeds: [0, 0]"), "two runs would write to results/demo/grpo/seed0"),
        (("common: {steps: 3,", "common: {run_dir: here, steps: 3,"), "two runs would write to here"),
    ],
)
def test_bad_sweeps(demo, change, part):
    demo.write_text(ARMS.replace(*change))
    with pytest.raises(BadInput) as error:
        expand(demo)
    assert part in str(error.value)


def test_values_of_a_sweep_reach_its_processes_as_they_are(demo):
    """Texts that YAML would read as something else, through the real command line."""
    texts = [" Box it.", "1e3", "null", "true", "a: b", "[x]"]
    problems = [{"task": "gcd", "params": {text: text for text in texts} | {"number": 1000.0}}]
    common = {"data.suffix": texts[0], "rollout": {"engine": "vllm", "stop": texts}, "data.train": problems}
    demo.write_text(f"""
experiment: tiny.yaml
varies: [method, loss, wandb, data]
seeds: [0]
common: {json.dumps(common)}
arms: {json.dumps({f"of {text}": {"wandb.project": text} for text in texts})}
""")
    runs = expand(demo).runs
    for run_, text in zip(runs, texts):
        assert run_.config.wandb.project == text and run_.config.rollout.stop == texts
        assert run_.config.data.suffix == " Box it." and run_.config.data.train[0].params == problems[0]["params"]
        assert config.load(run_.experiment, run_.overrides)[0] == run_.config
    done = subprocess.run([*runs[1].command(None), "--print"], capture_output=True, text=True)
    said = dict(line.split("   #")[0].split(": ", 1) for line in done.stdout.splitlines())
    said = {key: json.loads(value) for key, value in said.items()}
    assert (said["wandb.project"], said["data.suffix"], said["rollout.stop"]) == ("1e3", " Box it.", texts)
    assert said["data.train"][0]["params"] == problems[0]["params"] and said["arm"] == "of 1e3"


def test_an_arm_stands_above_common_and_below_the_command_line(demo):
    """Also where one layer drops what another said: the process that runs it gets what came out."""
    demo.write_text(
        ARMS.replace("common: {", "common: {loss: {name: cegppo, beta1: 0.1}, eval.k: 3, model: testbed, ").replace(
            "grpo: {method: grpo}", "grpo: {loss.name: ppo_clip, eval.benchmarks: [{task: gcd, k: 5}]}"
        )
    )
    for overrides in ([], ["eval.k=4", "model.head_chunk=9"], ["loss.name=reinforce"]):
        described = description.describe(demo, [*overrides, "sweep.seeds=[0]"])
        made = {arm: described.run(arm, 0, changes) for arm, changes in described.tree["arms"].items() if arm == "grpo"}
        made["beta"] = described.run("beta", 0, {"loss": {"beta2": 0.7}})
        assert all(config.load(r.experiment, r.overrides)[0] == r.config for r in made.values())
        one = made["grpo"].config
        assert one.model.path == "testbed" and one.eval.benchmarks[0].k == (None if "eval.k=4" in overrides else 5)
        assert one.loss["name"] == ("reinforce" if "loss.name=reinforce" in overrides else "ppo_clip")
        if "loss.name=reinforce" not in overrides:
            assert (made["beta"].config.loss["beta1"], made["beta"].config.loss["beta2"]) == (0.1, 0.7)


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for p in [
            *(ROOT / "sweeps").glob("*.yaml"),
            *(ROOT / "sweeps" / "paper").glob("*.yaml"),
            *(ROOT / "sweeps" / "map").glob("*.yaml"),
        ]
        if p.stem not in ("claims", "arms")
    ),
    ids=lambda p: p.stem,
)
def test_every_shipped_sweep_differs_only_in_what_it_names(path):
    described = description.describe(path, ["sweep.seeds=[0]"])
    if "space" in described.tree:
        assert "trials" in search.plan(described)
    else:
        runs = description.expand(described).runs
        assert len(runs) >= 2 and description.describe(path).tree["seeds"]
        assert config.load(runs[-1].experiment, runs[-1].overrides)[0] == runs[-1].config


@pytest.mark.slow
def test_a_sweep_runs_skips_and_continues_and_its_figures_are_drawn(demo, tmp_path, capsys):
    results = tmp_path / "results"
    command = ["sweep", demo, f"results={results}"]
    assert run(*command, "--dry-run").stdout.count("to run") == 6 and not results.exists()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *map(str, command)], stdout=subprocess.PIPE, text=True
    )
    while not list(results.glob("demo/*/*/metrics.jsonl")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)  # stops at a point from which it goes on
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and " of 6 runs finished; the same command goes on" in out
    done = run(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    rows = without_times(results / "demo" / "grpo" / "seed0" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    changed = run(*command, "update.lr=0.5")  # another configuration is not "finished"
    assert changed.returncode == 2 and "holds another run: update.lr was 0.001, is now 0.5" in changed.stderr
    stamps = {p: p.stat().st_mtime for p in results.glob("demo/*/*/metrics.jsonl")}
    again = run(*command, "steps=2")
    assert len(stamps) == 6 and again.returncode == 0
    assert "6 of 6 were already there (recorded at 20" in again.stdout and "; nothing ran" in again.stdout
    assert "grpo seed 0: finished  step 3 (2 asked)" in again.stdout
    for output in (done.stdout, again.stdout):  # what came out, whether it ran just now or before
        assert "demo: 2 seeds an arm" in output and "CE-GPPO (0.25, 1) − GRPO" in output
    assert len(list((results / "figures").glob("compare_demo.*"))) == 5
    assert stamps == {p: p.stat().st_mtime for p in stamps}  # nothing ran again

    page = run("report", results / "demo" / "cegppo" / "seed0")
    assert page.returncode == 0, page.stderr
    text = Path(page.stdout.strip()).read_text()
    assert "sums" in text and "loss" in text
    assert not re.search(
        r"(?:src|href)=.?(?:http|/|\.)|url\(|@import|fetch\(|XMLHttpRequest", text
    )  # one file, no network

    for arguments, part in [
        (["report", tmp_path], "error: "),
        (["figures", "--results", results, "--only", "ledger"], "no run of grpo, cegppo"),
        (["figures", "--only", "leger"], "did you mean 'ledger'?"),
    ]:
        assert front_door.main([str(a) for a in arguments]) == 2 and part in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_takes_its_runs_along_and_continues(demo, tmp_path):
    demo.write_text(ARMS.replace("seeds: [0, 1]", "seeds: [0]").replace("common: {steps: 3,", "common: {steps: 40,"))
    results = tmp_path / "results"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "sweep", str(demo), f"results={results}"], stdout=subprocess.PIPE
    )
    while len(list(results.glob("demo/*/*/metrics.jsonl"))) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    time.sleep(0.5)
    sizes = [p.stat().st_size for p in results.glob("demo/*/*/metrics.jsonl")]
    done = run("sweep", demo, f"results={results}")  # at once: no orphan holds a folder
    assert done.returncode == 0, done.stderr + done.stdout
    assert sizes and all(len(read_lines(p)) == 40 for p in results.glob("demo/*/*/metrics.jsonl"))
    assert len(json.loads((results / "demo" / "grpo" / "seed0" / "meta.json").read_text())["sessions"]) == 2


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(demo, tmp_path):
    demo.write_text(
        ARMS.replace("seeds: [0, 1]", "seeds: [0]")
        .replace("clip_higher: {", "clip_higher: {model.path: ./nowhere, ")
        .replace("loss]", "loss, model]")
    )
    done = run("sweep", demo, f"results={tmp_path / 'results'}")
    assert (
        done.returncode == 1
        and "clip_higher seed 0 did not finish: error: model.path=./nowhere: no such folder" in done.stderr
    )
    assert "left out, not finished: " in done.stdout and "GRPO" in done.stdout
    demo.write_text(demo.read_text().replace("common: {", "common: {model.path: ./nowhere, "))
    none = run("sweep", demo, f"results={tmp_path / 'none'}")
    assert none.returncode == 1 and "none of 3 runs has recorded a step yet" in none.stderr
    assert none.stderr.splitlines()[-1].startswith("cegppo seed 0 did not finish: ")
    for arm in ("grpo", "cegppo"):
        folder = tmp_path / "results" / "demo" / arm / "seed0"
        assert (
            json.loads((folder / "meta.json").read_text())["status"] == "finished"
            and len(read_lines(folder / "metrics.jsonl")) == 3
        )


# --------------------------------------------------------------------------------------------------


def test_bootstrap_against_scipy():
    from scipy.stats import bootstrap

    data = np.random.default_rng(1).random(40)
    mean, low, high = stats.bootstrap_mean([data])
    theirs = bootstrap(
        (data,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (
        mean == pytest.approx(data.mean())
        and low == pytest.approx(theirs.low, abs=0.01)
        and high == pytest.approx(theirs.high, abs=0.01)
    )
    constant = stats.bootstrap_mean(
        [np.zeros(5), np.ones(50)]
    )  # strata count alike, and a stratum without spread adds none
    assert constant == (0.5, 0.5, 0.5)


def test_agreement_by_hand():
    fit = ledger.agreement([1, 2, 3], [2, 4, 6])
    assert (fit["correlation"], fit["slope"]) == (pytest.approx(1), pytest.approx(2)) and fit["R2"] == pytest.approx(
        1 - 14 / 8
    )
    assert np.isnan(ledger.agreement([1, 2], [1, 2])["R2"])


def test_a_half_written_line_is_not_read(tmp_path):
    folder = tmp_path / "e" / "grpo" / "seed0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert load.metrics(tmp_path, "e", ["grpo"])["step"].tolist() == [1]
    assert isinstance(load.run(folder), pd.DataFrame) and len(read_lines(folder / "metrics.jsonl")) == 1


def test_keep_of_a_sweeps_file_looks_where_its_runs_are(tmp_path):
    from cegppo.verbs.keep import root_of

    described = tmp_path / "swept.yaml"
    described.write_text("experiment: x.yaml\nseeds: [0]\ncommon: {results: elsewhere}\n")
    assert root_of(str(described), "results") == "elsewhere"
    assert root_of(str(described), "asked") == "asked" and root_of("swept", "results") == "results"
