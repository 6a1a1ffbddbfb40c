"""What is mirrored to wandb and TensorBoard, read back from the files that they leave; and that no
mirror stops or delays a run."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wandb

import run as front_door
from cegppo.record import mirror
from cegppo.record.aside import move_aside
from cegppo.record.files import read_lines
from cegppo.record.histograms import histograms
from cegppo.record.mirror import Mirror, Shown
from cegppo.record.to_wandb import run_id
from cegppo.train import run_training

from .test_train import Silent, load, without_times

ROOT = Path(__file__).resolve().parent.parent
LOOKED_AT = "diagnostics.every=2"


def records(path, kind):
    """The records of one `kind` in a file of wandb's, by its own reader."""
    return [record[kind] for record in read(path, path.stat().st_size) if record["type"] == kind]


@cache
def read(path, _):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(path):
    """{step: {name: value}} of what was logged; what stands under `name.key` is {key: value}."""
    made = {}
    for record in records(path, "history"):
        row = made.setdefault(record["item"]["_step"], {})
        for key, value in record["item"].items():
            name, _, inside = key.partition(".")
            row.update({name: row.get(name, {}) | {inside: value}} if inside else {name: value})
    return made


def offline(folder):
    """The offline files of a run that has ended, in their order."""
    paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    end = time.monotonic() + 60
    while not all(records(path, "exit") for path in paths):
        time.sleep(0.1)  # wandb's own process writes them, now or a little later
        assert time.monotonic() < end
    return paths


@pytest.fixture(scope="module")
def mirrored(tiny_text, tmp_path_factory):
    """The folder of a run of four steps that was mirrored to both."""
    root = tmp_path_factory.mktemp("mirrored")
    (root / "tiny.yaml").write_text(tiny_text)
    words = ["steps=4", LOOKED_AT, "wandb.mode=offline", "wandb.tags=[mine]", "wandb.token_rows=7"]
    loaded = load(root / "tiny.yaml", *words, "wandb.token_files=true", "tensorboard=true", f"run_dir={root / 'run'}")
    assert run_training(loaded, Silent()) == "finished"
    return root / "run"


def test_wandb_has_every_number(mirrored):
    (path,) = offline(mirrored)
    (about,) = records(path, "run")
    assert about["job_type"] == "train" and about["tags"] == ["grpo", "loss ppo_clip", "reward random", "mine"]
    assert about["run_id"] == (mirrored / "wandb" / "id").read_text() and about["run_group"] == "tiny/grpo"
    logged = history(path)
    assert list(logged) == [0, 1, 2, 3, 4]
    for row in read_lines(mirrored / "metrics.jsonl"):
        assert {k: logged[row["step"]][k] for k in row} == pytest.approx(row)
    for row in read_lines(mirrored / "eval.jsonl"):
        assert logged[row["step"]]["eval/sums/avg@2"] == logged[row["step"]]["eval/mean"] == row["avg@2"]


def test_wandb_has_histograms_of_the_tokens(mirrored):
    logged = history(*offline(mirrored))
    tokens = pd.read_parquet(mirrored / "tokens" / "step000002.parquet")
    found = {name: value for name, value in logged[2].items() if name.startswith("hist/")}
    groups = {"all": tokens["step"] > 0}
    groups |= {name: tokens["class"] == name for name in ("pa_hp", "pa_lp", "na_hp", "na_lp")}
    groups |= {name: tokens["side"] == name.removeprefix("clip_") for name in ("inside", "clip_low", "clip_high")}
    for quantity in ("entropy", "prob", "ratio", "gradient", "influence"):
        edges = np.histogram_bin_edges(tokens[quantity].to_numpy(np.float64), 64)
        for group, rows in groups.items():
            name = f"hist/{quantity}/{group}"
            assert (name in found) == rows.any(), name
            if rows.any():
                assert found[name]["_type"] == "histogram" and found[name]["bins"] == pytest.approx(list(edges))
                counts = np.histogram(tokens[quantity][rows].to_numpy(np.float64), edges)[0]
                assert found[name]["values"] == counts.tolist(), name
    assert not [name for step in (1, 3) for name in logged[step] if name.startswith("hist/")]


def test_wandb_has_tables_and_files(mirrored):
    (path,) = offline(mirrored)
    logged = history(path)
    read = lambda row: json.loads((path.parent / "files" / row["path"]).read_text())
    table = read(logged[2]["tables/tokens"])
    tokens = pd.read_parquet(mirrored / "tokens" / "step000002.parquet")
    largest = tokens["dentropy_exact"].abs().sort_values(ascending=False).head(7)
    place = table["columns"].index("dentropy_exact")
    assert [abs(row[place]) for row in table["data"]] == pytest.approx(largest.tolist())
    seen = read_lines(mirrored / "completions" / "seen.jsonl")
    table = read(logged[4]["completions/sums"])
    wanted = [text for row in seen if row["step"] == 4 for text in row["completions"]]
    assert [row[table["columns"].index("completion")] for row in table["data"]] == wanted
    files = [made for made in records(path, "artifact") if made["type"] == "tokens"]
    named = [entry["path"] for made in files for entry in made["manifest"]["contents"]]
    assert named == ["step000002.parquet", "step000004.parquet"]
    assert [set(made["aliases"]) for made in files] == [{"latest", "step2"}, {"latest", "step4"}]


def test_the_panels_that_are_documented_are_logged(mirrored):
    """Every name in the table of docs/wandb.md; {a,b} stands for both, and <…> for any word."""
    known = {name for row in history(*offline(mirrored)).values() for name in row}
    text = (ROOT / "docs" / "wandb.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "`" in line.split("|")[2]]
    names = [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[2])]
    assert len(names) > 20
    for name in names:
        pattern = re.sub(r"<[^>]+>", "@", name)
        pattern = re.escape(pattern).replace("@", "[^/]+").replace(r"\{", "(").replace(r"\}", ")").replace(",", "|")
        assert any(re.fullmatch(pattern, one) for one in known), name


def test_one_run_of_wandb_however_often_it_resumes(tiny, tmp_path):
    folder = tmp_path / "run"
    go = lambda steps: run_training(load(tiny, f"steps={steps}", "wandb.mode=offline", f"run_dir={folder}"), Silent())
    go(1)
    first = (folder / "wandb" / "id").read_text()
    time.sleep(1.1)  # wandb names a folder by the second
    go(3)
    go(3)  # nothing is left to do
    before, after = offline(folder)
    assert before.stem == after.stem == f"run-{first}"
    assert (list(history(before)), list(history(after))) == ([0, 1], [2, 3])
    assert move_aside(folder) is not None
    go(1)
    (again,) = offline(folder)
    assert again.stem != f"run-{first}"


@pytest.mark.slow
def test_steps_that_a_kill_cost_the_mirror_are_added_at_resume(tiny, tmp_path, capfd):
    """wandb's file is cut short, as a kill leaves it: in the middle of a record."""
    folder = tmp_path / "run"
    words = ["wandb.mode=offline", LOOKED_AT, f"run_dir={folder}"]
    assert run_training(load(tiny, "steps=3", *words), Silent()) == "finished"
    (before,) = offline(folder)
    whole, data = history(before), before.read_bytes()
    before.write_bytes(data[: data.index(b"hist/entropy") + 20])  # which step 2 is the first to have
    time.sleep(1.1)  # wandb names a folder by the second
    assert run_training(load(tiny, "steps=4", *words), Silent()) == "finished"
    assert "wandb: steps that its files lacked are added: 2 to 3\n" in capfd.readouterr().err
    before.rename(before.with_suffix(".cut"))  # it never says that it ended
    (after,) = offline(folder)
    added = history(after)
    assert list(added) == [2, 3, 4]
    changes = ("_runtime", "_timestamp")
    numbers = lambda row: {k: v for k, v in row.items() if not isinstance(v, dict) and k not in changes}
    shown = lambda row: {k: v for k, v in row.items() if k.startswith("hist/")}
    for step in (2, 3):
        assert numbers(added[step]) == pytest.approx(numbers(whole[step]), nan_ok=True)
        assert added[step].keys() == whole[step].keys() and shown(added[step]) == shown(whole[step])


@pytest.mark.slow
def test_a_mirror_whose_files_cannot_be_read_says_what_may_be_missing(tiny, tmp_path, capfd):
    folder = tmp_path / "run"
    go = lambda steps: run_training(load(tiny, f"steps={steps}", "wandb.mode=offline", f"run_dir={folder}"), Silent())
    go(1)
    (before,) = offline(folder)
    before.write_bytes(b"no file of wandb's")
    time.sleep(1.1)
    assert go(2) == "finished"
    assert "wandb: steps up to 1 may be missing: wandb's reader fails on" in capfd.readouterr().err


def test_a_sweeps_agent_names_its_run(tmp_path, monkeypatch):
    own = run_id(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "order7")
    assert run_id(tmp_path) == "order7" != own
    monkeypatch.delenv("WANDB_RUN_ID")
    assert run_id(tmp_path) == "order7"  # continued by hand it stays that run


def test_an_unreachable_wandb_stops_nothing(tiny, tmp_path, monkeypatch, capfd, mirrored):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(mirror, "PATIENCE", 5)
    loaded = load(tiny, "steps=4", LOOKED_AT, "wandb.mode=online", f"run_dir={tmp_path / 'on'}")
    assert run_training(loaded, Silent()) == "finished"
    assert "wandb (online) cannot start" in capfd.readouterr().err
    assert without_times(tmp_path / "on" / "metrics.jsonl") == without_times(mirrored / "metrics.jsonl")
    (path,) = offline(tmp_path / "on")  # goes on without the network, under the same id
    assert path.stem == f"run-{(tmp_path / 'on' / 'wandb' / 'id').read_text()}" and list(history(path)) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_online_without_a_key_asks_nobody(tmp_path, tiny, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be
    monkeypatch.setattr(wandb, "login", lambda prompt: False if not prompt else pytest.fail("asked"))
    folder = tmp_path / "run"
    assert run_training(load(tiny, "steps=1", "wandb.mode=online", f"run_dir={folder}"), Silent()) == "finished"
    assert "wandb (online) cannot start: no key; `wandb login` asks for it" in capfd.readouterr().err
    assert list(history(*offline(folder))) == [0, 1]


class Stuck:
    """A wandb run that takes nothing more."""

    def __init__(self):
        self.released = threading.Event()

    def define_metric(self, *_, **__): ...

    def log(self, *_, **__):
        self.released.wait()


def test_a_stuck_wandb_neither_stops_nor_delays_a_run(tiny, tmp_path, monkeypatch, capfd):
    stuck = Stuck()
    monkeypatch.setattr(wandb, "init", lambda **_: stuck)
    monkeypatch.setattr(mirror, "PATIENCE", 0.5)
    monkeypatch.setattr(mirror, "WAITING", 2)
    folder = tmp_path / "run"
    start = time.monotonic()
    assert run_training(load(tiny, "steps=6", "wandb.mode=offline", f"run_dir={folder}"), Silent()) == "finished"
    took = time.monotonic() - start
    stuck.released.set()
    assert took < 30 and len(read_lines(folder / "metrics.jsonl")) == 6
    said = capfd.readouterr().err.splitlines()
    assert len([line for line in said if "wandb is slower than the run and misses entries from step" in line]) == 1
    assert said[-1].startswith("wandb is not done yet; `wandb sync ")


def test_a_mirror_that_fails_says_so_once(capfd):
    class Broken:
        name, later = "it", ""

        def open(self):
            return True

        def show(self, step, shown):
            raise OSError("no room\nfor more")

    one = Mirror(Broken())
    for step in range(3):
        one.show(step, Shown({"x": 1.0}))
        time.sleep(0.05)
    one.finish(False)
    assert capfd.readouterr().err == "it stopped mirroring: no room\n"


def test_tokens_that_were_not_looked_at_are_in_no_histogram():
    n = 10
    columns = {name: np.arange(n, dtype=np.float32) for name in ("step", "entropy", "prob", "ratio", "gradient")}
    columns |= {"class": np.array(["pa_hp"] * n, dtype=object), "side": np.array(["low"] * n, dtype=object)}
    columns["influence"] = np.where(np.arange(n) < 4, 1.0, np.nan)
    made = histograms(columns)
    assert made["hist/influence/all"][0].sum() == 4 and made["hist/entropy/pa_hp"][0].sum() == n
    assert not [name for name in made if "na_lp" in name or "high" in name]
    assert not [name for name in histograms(columns | {"influence": np.full(n, np.nan)}) if "influence" in name]


def test_tensorboard_reads_back(mirrored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(mirrored / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    rows = read_lines(mirrored / "metrics.jsonl")
    for name in ("entropy/mean", "lr", "clip/low", "reward/mean"):
        events = [(event.step, event.value) for event in seen.Scalars(name)]
        assert events == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
    assert [event.step for event in seen.Scalars("eval/mean")] == [0, 2, 4]
    logged = history(*offline(mirrored))
    for event in seen.Histograms("hist/entropy/all"):
        value = event.histogram_value
        assert list(value.bucket) == logged[event.step]["hist/entropy/all"]["values"]


def test_tensorboard_goes_on_where_the_run_does(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    go = lambda steps: run_training(load(tiny, f"steps={steps}", "tensorboard=true", f"run_dir={folder}"), Silent())
    go(2)
    shutil.copytree(folder / "checkpoints", tmp_path / "kept", symlinks=True)
    go(4)  # and was killed before its last checkpoints were on the disk
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(tmp_path / "kept", folder / "checkpoints", symlinks=True)
    go(5)
    seen = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = read_lines(folder / "metrics.jsonl")
    assert [(e.step, e.value) for e in seen.Scalars("time/step")] == [
        (row["step"], pytest.approx(row["time/step"])) for row in rows
    ]


def test_a_missing_tensorboard_is_one_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cegppo.record.to_tensorboard.find_spec", lambda _: None)
    assert front_door.main(["train", str(tiny), "tensorboard=true", f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said == "error: tensorboard=true: TensorBoard is not installed: pip install -e '.[tensorboard]'\n"
    assert not (tmp_path / "run" / "meta.json").exists()
