"""Launchers with plain commands, a sweep on a local Ray, take-overs and searches on the tiny
model."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis import load
from cegppo.record.files import lock, read_lines
from cegppo.record.keep import keep
from cegppo.record.read import read_meta, read_metrics
from cegppo.sweep import command, description, grid, launch, search
from cegppo.types import BadInput

from .test_config import ROOT, run

# Says its slot's GPUs, then waits for a Ctrl-C, which it answers as a training run does.
WAITS = """
import os, sys, time
print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def ray():
    yield launch.launcher("ray", 0, {})
    import ray

    ray.shutdown()


@pytest.fixture(params=["local", "ray", "slurm"])
def start(request):
    if request.param == "ray":
        return request.getfixturevalue("ray").start
    return launch.launcher(request.param, 0, {"cluster": "local"}).start


def code_of(job, seconds=40):
    end = time.time() + seconds
    while job.poll() is None and time.time() < end:
        time.sleep(0.05)
    return job.poll()


@pytest.mark.slow
def test_every_launcher_passes_on_output_exit_code_and_interrupt(start, tmp_path):
    folders = [tmp_path / name for name in ("good", "bad", "waits")]
    for folder in folders:
        folder.mkdir()
    good = start([sys.executable, "-c", "print('said')"], folders[0], 0)
    assert code_of(good) == 0 and (folders[0] / "output.txt").read_text() == "said\n"
    assert code_of(start([sys.executable, "-c", "raise SystemExit(7)"], folders[1], 0)) == 7
    (folders[2] / launch.STOP).touch()  # of an earlier interrupt: no reason to stop now
    waits = start([sys.executable, "-c", WAITS], folders[2], 1)
    while not (folders[2] / "output.txt").exists() or "gpus" not in (folders[2] / "output.txt").read_text():
        time.sleep(0.05)
    assert waits.poll() is None
    waits.interrupt()
    assert code_of(waits) == 130


def test_each_slot_has_its_own_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    start = launch.launcher("local", 2, {}).start
    said = []
    for slot in (0, 1):
        (tmp_path / str(slot)).mkdir()
        assert code_of(start([sys.executable, "-c", WAITS.split("try:")[0]], tmp_path / str(slot), slot)) == 0
        said.append((tmp_path / str(slot) / "output.txt").read_text().strip())
    assert said == ["gpus 3,5", "gpus 6,7"]
    with pytest.raises(BadInput, match="sweep.gpus=5: this machine shows 4"):
        launch.launcher("local", 5, {})


@pytest.mark.slow
def test_a_run_of_several_gpus_is_started_by_torchrun(tiny, tmp_path, monkeypatch):
    """Two ranks on the CPU stand for two GPUs, which is all that differs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "two.yaml").write_text(
        SWEEP.replace("seeds: [0, 1]", "seeds: [0]\ngpus: 2").replace("  cegppo: {method: cegppo}\n", "")
    )
    described = description.describe(tmp_path / "two.yaml", [f"results={tmp_path / 'results'}", "steps=1"])
    loaded = description.expand(described)
    assert grid.run_all(loaded, grid.Grid(loaded), lambda states: None) == (0, []), grid.error_of(loaded.runs[0])
    assert read_meta(loaded.runs[0].folder)["sessions"][-1]["ranks"] == 2


@pytest.mark.slow
def test_an_interrupted_run_of_several_gpus_is_stopped_and_not_failed(tiny, tmp_path, monkeypatch):
    """torchrun exits with 1 after Ctrl-C; what its ranks recorded counts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "two.yaml").write_text(
        SWEEP.replace("seeds: [0, 1]", "seeds: [0]\ngpus: 2").replace("  cegppo: {method: cegppo}\n", "")
    )
    described = description.describe(tmp_path / "two.yaml", [f"results={tmp_path / 'results'}", "steps=400"])
    loaded = description.expand(described)
    (run_,) = loaded.runs

    def show(states):  # the person at the keyboard, once
        if run_.last_metrics() and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt

    pressed: list[bool] = []
    assert grid.run_all(loaded, grid.Grid(loaded), show) == (130, []), grid.error_of(run_)
    assert read_meta(run_.folder)["status"] == "stopped" and 0 < run_.last_metrics()["step"] < 400


def test_what_cannot_be_reached_is_one_line(tmp_path):
    if not shutil.which("sbatch"):
        with pytest.raises(BadInput, match="sweep.launcher=slurm: "):
            launch.launcher("slurm", 0, {}).start(["true"], tmp_path, 0)


SWEEP = """
experiment: tiny.yaml
varies: [method, loss]
seeds: [0, 1]
common: {steps: 2, eval_every: 0}
arms:
  grpo: {method: grpo}
  cegppo: {method: cegppo}
"""


def listening(session: int) -> dict[str, set[str]]:
    """{address in hexadecimal: names of the processes} of what the processes of a session listen on
    (Linux's /proc)."""
    waiting = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                waiting[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    made: dict[str, set[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(") ")
            mine = int(rest.split()[3]) == session
            for handle in (process / "fd").iterdir() if mine else ():
                if (address := waiting.get(os.readlink(handle))) is not None:
                    made.setdefault(address, set()).add(name)
        except OSError:  # it has ended
            continue
    return made


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
def test_a_ray_of_ones_own_listens_on_the_loopback_address_alone_and_a_killed_sweep_takes_its_run(tiny, tmp_path):
    (tmp_path / "one.yaml").write_text(SWEEP.replace("steps: 2", "steps: 5000").replace("[0, 1]", "[0]"))
    words = ["sweep", tmp_path / "one.yaml", f"results={tmp_path / 'results'}", "sweep.launcher=ray", "sweep.workers=1"]
    command = [sys.executable, ROOT / "run.py", *words]
    process = subprocess.Popen([*map(str, command)], start_new_session=True, stdout=subprocess.DEVNULL)
    folder = tmp_path / "results" / "one" / "grpo" / "seed0"
    while not read_lines(folder / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.2)
    found = listening(process.pid)
    assert {"gcs_server", "raylet"} <= {name for names in found.values() for name in names}
    assert found.keys() <= LOOPBACK, found
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while True:  # the lock is free when the run has ended; Ray's own agents take a minute longer
        try:
            return lock(folder / ".lock", "it runs").close()
        except BadInput:
            assert time.monotonic() < until
            time.sleep(0.2)


@pytest.mark.slow
def test_a_sweep_on_ray_and_runs_taken_over_from_it(tiny, tmp_path):
    (tmp_path / "one.yaml").write_text(SWEEP.replace("seeds: [0, 1]", "seeds: [0]"))
    results = f"results={tmp_path / 'results'}"
    done = run("sweep", tmp_path / "one.yaml", results, "sweep.launcher=ray", "sweep.workers=2")
    assert done.returncode == 0, done.stderr
    first = tmp_path / "results" / "one" / "cegppo" / "seed0"
    assert read_meta(first)["status"] == "finished" and len(read_lines(first / "metrics.jsonl")) == 2

    (tmp_path / "two.yaml").write_text(
        "include: one.yaml\ntakes_from: [one]\narms:\n  same: {method: cegppo}\n  other: {loss.eps_low: 0.1}\n"
    )
    described = description.describe(tmp_path / "two.yaml", [results])
    expanded = description.expand(described)
    work = grid.Grid(expanded)
    assert [r.arm for r in work._waiting] == ["other"]
    taken = tmp_path / "results" / "two" / "same" / "seed0"
    assert read_meta(taken)["taken_from"] == "one/cegppo/seed0"
    assert sorted(path.name for path in taken.iterdir()) == ["config.yaml", "meta.json"]  # no second copy
    assert read_metrics(taken) == read_metrics(first) and len(read_metrics(first)) == 2
    assert load.run(taken).equals(load.run(first))
    assert description.expand(described).runs[0].finished()  # its config.yaml is the one asked for, or this would raise

    for sweep, runs in (("one", 2), ("two", 1)):  # in packs all is the same; `other` has not run
        assert f"{runs} runs kept now" in list(keep(tmp_path / "results" / sweep))[-1]
    assert not (taken / "meta.json").exists()
    assert read_metrics(taken) == read_metrics(first) and load.run(taken).equals(load.run(first))
    work = grid.Grid(description.expand(described))
    assert [r.arm for r in work._waiting] == ["other"]
    assert work.already.startswith("1 of 2 were already there (recorded at 20")
    shutil.rmtree(tmp_path / "results" / "one")
    gone = "two/same/seed0 was taken from .*one/cegppo/seed0, which is not there any more"
    with pytest.raises(BadInput, match=gone):
        description.expand(described)
    with pytest.raises(load.Missing, match=gone):
        load.run(taken)


def test_arms_that_start_from_other_weights_are_refused(tiny, tmp_path, monkeypatch):
    (tmp_path / "two.yaml").write_text(SWEEP.replace("seeds: [0, 1]", "seeds: [0]"))
    described = description.describe(tmp_path / "two.yaml", [f"results={tmp_path / 'results'}"])
    done, missing = description.expand(described).runs
    done.folder.mkdir(parents=True)
    (done.folder / "meta.json").write_text(
        json.dumps({"status": "finished", "steps": 2, "start_weights": "of another machine"})
    )
    loaded = described.sweep([done, missing])
    assert [r.finished() for r in loaded.runs] == [True, False]
    grid.Grid(loaded)  # a model of the user's own is the same file everywhere
    done.config.model.path = "testbed"
    monkeypatch.setattr(grid.testbed, "base_model", lambda recipe: tiny.parent)
    monkeypatch.setattr(grid.testbed, "weights_digest", lambda folder: "of this machine")
    with pytest.raises(
        BadInput,
        match="started from other base weights than this machine makes, so cegppo seed 0 could not be compared",
    ):
        grid.Grid(loaded)


SEARCH = """
experiment: tiny.yaml
seeds: [0]
workers: 1
search: random
trials: 6
common: {steps: 4, eval_every: 0, method: cegppo}
space: {loss.beta1: {low: 0.0, high: 1.0}, updates_per_step: [1, 2], update.warmup_steps: {low: 0, high: 3}}
objective: {metric: knob, direction: maximize, window: 1}
"""


class Played:
    """Stands where processes would: writes the metrics of a run whose reward is beta1, step by
    step."""

    def __init__(self):
        self.started, self.interrupted = [], []

    def start(self, command, folder, slot):
        given = dict(item.split("=", 1) for item in command[4:])
        self.started.append(given["arm"])
        folder.joinpath("metrics.jsonl").write_text("")
        return PlayedJob(self, folder, given)


class PlayedJob:
    def __init__(self, played, folder, given):
        self.played, self.folder, self.given, self.step = played, folder, given, 0

    def poll(self):
        if self.given["arm"] in self.played.interrupted:
            return 130
        self.step += 1
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step, "knob": float(self.given["loss.beta1"])}) + "\n")
        return 0 if self.step == 4 else None

    def interrupt(self):
        self.played.interrupted.append(self.given["arm"])

    def kill(self): ...


def test_a_search_prunes_what_is_worse_than_the_median_and_finds_the_best(tiny, tmp_path, monkeypatch):
    """The objective is beta1 itself: every value is known, so which trials must be pruned is
    too."""
    (tmp_path / "seek.yaml").write_text(SEARCH.replace("trials: 6", "trials: 12"))
    played = Played()
    monkeypatch.setattr(grid.launch, "launcher", lambda *_: played)
    monkeypatch.setattr(grid.time, "sleep", lambda _: None)
    described = description.describe(tmp_path / "seek.yaml", [f"results={tmp_path / 'results'}"])
    work = search.Search(described)
    assert grid.run_all(described.sweep(work.runs), work, lambda states: None) == (0, [])
    rows = read_lines(tmp_path / "results" / "seek" / "trials.jsonl")
    assert len(rows) == 12 and played.started == [f"trial{n:03d}" for n in range(12)]
    seen = []
    for row in rows:
        beta1 = row["params"]["loss.beta1"]
        hopeless = len(seen) >= 4 and beta1 < sorted(seen)[len(seen) // 2] if len(seen) % 2 else None
        if hopeless is not None:
            assert row["state"] == ("pruned" if hopeless else "complete"), row
        seen.append(beta1)
        assert row["params"]["updates_per_step"] in (1, 2) and row["params"]["update.warmup_steps"] in (0, 1, 2, 3)
    assert {row["state"] for row in rows} == {"pruned", "complete"}
    complete = [row for row in rows if row["state"] == "complete"]
    assert all(row["value"] == row["params"]["loss.beta1"] for row in complete)
    assert f"trial{max(complete, key=lambda r: r['value'])['trial']:03d}" in work.best()
    ranked = [f"trial{row['trial']:03d}" for row in sorted(complete, key=lambda r: -r["value"])]
    assert [folder.parts[-2:] for folder in work.leaders(3)] == [(arm, "seed0") for arm in ranked[:3]]
    work.close()
    given = [f"results={tmp_path / 'results'}", "sweep.search=tpe"]
    with pytest.raises(BadInput, match="holds a search of another kind, space or objective"):
        search.Search(description.describe(tmp_path / "seek.yaml", given))


class Quiet:
    """A screen."""

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def show(self, states): ...


def test_a_search_ends_with_a_comparison_of_its_best_trials(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "seek.yaml").write_text(SEARCH.replace("window: 1", "window: 1, prune: false"))
    monkeypatch.setattr(grid.launch, "launcher", lambda *_: Played())
    monkeypatch.setattr(grid.time, "sleep", lambda _: None)
    monkeypatch.setattr(command, "LEADERS", 2)
    compared, words = [], [str(tmp_path / "seek.yaml"), [f"results={tmp_path / 'results'}", "sweep.seeds=[0,1]"]]
    assert command.run(*words, Quiet(), lambda *given: compared.append(given)) == 0
    ranked = sorted(read_lines(tmp_path / "results" / "seek" / "trials.jsonl"), key=lambda row: -row["value"])
    best = [f"trial{row['trial']:03d}" for row in ranked[:2]]
    wanted = [tmp_path / "results" / "seek" / arm / f"seed{seed}" for arm in best for seed in (0, 1)]
    assert compared == [("seek", wanted)]
    said = capsys.readouterr().out
    assert "the 2 best trials, chosen by what they are compared in, so optimistic:" in said and "best of 6" in said


def test_values_that_do_not_go_together_fail_their_trial_only(tiny, tmp_path, monkeypatch, capfd):
    """Four updates a step do not divide one group of three; each value by itself is good. And
    nobody else may search there meanwhile."""
    text = SEARCH.replace(
        "updates_per_step: [1, 2]", "group_size: [4, 3], prompts_per_step: [4, 1], updates_per_step: [4, 1]"
    )
    (tmp_path / "seek.yaml").write_text(text.replace("trials: 6", "trials: 16"))
    monkeypatch.setattr(grid.launch, "launcher", lambda *_: Played())
    monkeypatch.setattr(grid.time, "sleep", lambda _: None)
    described = description.describe(tmp_path / "seek.yaml", [f"results={tmp_path / 'results'}"])
    work = search.Search(described)
    with pytest.raises(BadInput, match="another live process is searching there"):
        search.Search(described)
    assert grid.run_all(described.sweep(work.runs), work, lambda states: None) == (0, [])
    rows = read_lines(tmp_path / "results" / "seek" / "trials.jsonl")
    bad = lambda p: p["group_size"] * p["prompts_per_step"] % p["updates_per_step"] != 0
    assert len(rows) == 16 and {r["state"] for r in rows if bad(r["params"])} == {"fail"}  # by chance, but a seeded one
    assert all(r["state"] in ("complete", "pruned") for r in rows if not bad(r["params"]))
    assert "must divide prompts_per_step" in capfd.readouterr().err


@pytest.mark.slow
def test_a_search_that_was_killed_finishes_what_it_had_begun(tiny, tmp_path):
    text = SEARCH.replace("metric: knob", "metric: reward/mean").replace("steps: 4", "steps: 2")
    (tmp_path / "seek.yaml").write_text(text.replace("trials: 6", "trials: 2").replace("seeds: [0]", "seeds: [0, 1]"))
    described = description.describe(tmp_path / "seek.yaml", [f"results={tmp_path / 'results'}"])
    first = search.Search(described)
    begun = first.next()  # asked for and never run: the process died
    first.close()
    done = run("sweep", tmp_path / "seek.yaml", f"results={tmp_path / 'results'}", "sweep.workers=2")
    assert done.returncode == 0, done.stderr
    rows = read_lines(tmp_path / "results" / "seek" / "trials.jsonl")
    assert [row["state"] for row in rows] == ["complete", "complete"] and "best of 2 complete trials" in done.stdout
    assert rows[0]["params"]["loss.beta1"] == begun.config.loss["beta1"]  # the same trial, not another
    values = [
        read_lines(tmp_path / "results" / "seek" / "trial000" / f"seed{s}" / "metrics.jsonl")[-1]["reward/mean"]
        for s in (0, 1)
    ]
    assert rows[0]["value"] == pytest.approx(sum(values) / 2)


@pytest.mark.parametrize(
    "change, part",
    [
        (("search: random", "search: bayes"), "unknown search 'bayes'; there are: random, tpe"),
        (("metric: knob", "metrics: knob"), "unknown key 'objective.metrics'; did you mean 'objective.metric'?"),
        (("high: 1.0}", "high: -1.0}"), "space: 'loss.beta1' takes a list of values or"),
        (("high: 1.0}", "high: true}"), "space: 'loss.beta1' takes a list of values or"),
        (
            ("{low: 0.0, high: 1.0}", "{low: 0, high: 1.0e-3, log: true}"),
            "space: 'loss.beta1' takes a list of values or",
        ),
        (
            ("loss.beta1: {low: 0.0, high: 1.0}", "update.beta1: {low: 0.9, high: 30}"),
            "update.beta1 must be in [0, 1), not 30",
        ),
        (("search: random", "search: random\narms: {a: {method: grpo}}"), "'arms' is of a grid, and this is none"),
        (("loss.beta1", "loss.beta"), "has no knob 'loss.beta'"),
        (("direction: maximize", "direction: up"), "objective.direction is maximize or minimize"),
        (("workers: 1", "workers: 1\nlauncher: rey"), "unknown launcher 'rey'; did you mean 'ray'?"),
    ],
)
def test_bad_searches(tiny, tmp_path, change, part):
    (tmp_path / "seek.yaml").write_text(SEARCH.replace(*change))
    with pytest.raises(BadInput) as error:
        search.plan(description.describe(tmp_path / "seek.yaml"))
    assert part in str(error.value)


@pytest.mark.slow
def test_a_wandb_agent_runs_what_the_example_sweep_says(tiny, tmp_path, monkeypatch):
    """The real agent and its real expansion of the command, with a hand-written order where its
    server's would arrive."""
    import yaml
    from wandb.wandb_agent import Agent

    written = yaml.safe_load((ROOT / "sweeps" / "wandb" / "beta.yaml").read_text())
    orders = [c.replace("experiments/testbed.yaml", str(tiny)).replace("online", "offline") for c in written["command"]]
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SWEEP_ID": "s1",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_RUN_ID", "")  # the agent sets it: let monkeypatch clear it away
    monkeypatch.chdir(ROOT)
    agent = Agent(api=None, queue=None, sweep_id="s1")
    agent._sweep_command = orders
    given = {"loss.beta1": 0.25, "loss.beta2": 1.25, "seed": 2, "steps": 1, "results": str(tmp_path / "results")}
    agent._command_run(
        {"run_id": "order1", "program": written["program"], "args": {k: {"value": v} for k, v in given.items()}}
    )
    assert agent._run_processes["order1"].wait() == 0
    (folder,) = (tmp_path / "results" / "wandb_beta").glob("*/seed2")
    assert folder.parent.name == "cegppo,loss.beta1=0.25,loss.beta2=1.25"
    assert read_meta(folder)["status"] == "finished" and list(folder.glob("wandb/offline-run-*-order1"))
    assert set(written["parameters"]) <= set(given)
