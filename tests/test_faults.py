"""Faults, injected: what was recorded survives, and what cannot be gone on from is said in a
line."""

import errno
import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from analysis import listing, load
from cegppo import config
from cegppo.config import Source
from cegppo.masking import without_secrets
from cegppo.model.policy import Policy
from cegppo.problems import data, grader
from cegppo.record import files
from cegppo.record import run as run_module
from cegppo.record.files import Completions, append_line, as_lines, read_lines
from cegppo.record.read import read_meta
from cegppo.record.run import Record, checkpoint, complete, newest
from cegppo.sweep import description, estimate, search
from cegppo.train import run_training
from cegppo.types import BadInput, Diverged, said

ROOT = Path(__file__).resolve().parent.parent


class Silent:
    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture(scope="module")
def _made(tmp_path_factory, tiny_text):
    """A finished run of four steps with checkpoints at 2 and 4."""
    root = tmp_path_factory.mktemp("made")
    path = root / "tiny.yaml"
    path.write_text(tiny_text)
    loaded = config.load(path, [f"run_dir={root / 'run'}", "steps=4", "checkpoint_every=2", "wandb.mode=disabled"])[0]
    run_training(loaded, Silent())
    return root


@pytest.fixture
def made(_made, tmp_path):
    """(its folder, its configuration with some steps more)."""
    shutil.copytree(_made, tmp_path / "r", symlinks=True)
    folder = tmp_path / "r" / "run"
    overrides = [f"run_dir={folder}", "steps=6", "checkpoint_every=2", "wandb.mode=disabled"]
    return folder, config.load(tmp_path / "r" / "tiny.yaml", overrides)[0]


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_lines(folder / "metrics.jsonl")]


# ------------------------------------------------------------------------- checkpoints and lines


def test_a_run_without_its_latest_pointer_goes_on_from_the_newest_checkpoint(made):
    folder, asked = made
    (folder / "checkpoints" / "latest").unlink()
    assert checkpoint(folder).name == "step000004"
    before = read_lines(folder / "metrics.jsonl")
    run_training(asked, Silent())
    assert steps(folder) == [1, 2, 3, 4, 5, 6] and read_lines(folder / "metrics.jsonl")[:4] == before


def test_a_disk_that_failed_before_the_first_pointer_costs_no_best(tiny, tmp_path, monkeypatch):
    """Found by a campaign: the checkpoint was there, nothing pointed to it, and the same command
    went on from it without a `best`."""
    asked = config.load(tiny, [f"run_dir={tmp_path / 'run'}", "steps=3", "eval_every=2", "checkpoint_every=2"])[0]
    whole = run_module.point
    failing = lambda link, name: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    monkeypatch.setattr(run_module, "point", failing)
    with pytest.raises(OSError):
        run_training(asked, Silent())
    monkeypatch.setattr(run_module, "point", whole)
    run_training(asked, Silent())
    root = tmp_path / "run" / "checkpoints"
    assert os.readlink(root / "best") in ("step000002", "step000003") and complete(root / "best")
    assert steps(tmp_path / "run") == [1, 2, 3]


def test_a_disk_that_is_read_only_at_the_rename_of_a_pointer(tiny, tmp_path, monkeypatch):
    """Found by a campaign: the link was made, and not renamed; the next start found it in its way
    ("step000002: File exists")."""
    asked = config.load(tiny, [f"run_dir={tmp_path / 'run'}", "steps=3", "eval_every=2", "checkpoint_every=2"])[0]
    root = tmp_path / "run" / "checkpoints"
    whole = os.replace

    def replace(source, target):
        if Path(target).name == "best":
            raise OSError(errno.EROFS, "Read-only file system", str(target))
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(OSError, match="Read-only"):
        run_training(asked, Silent())
    assert (root / "best.unfinished").is_symlink() and complete(root / "step000002")
    monkeypatch.setattr(os, "replace", whole)
    run_training(asked, Silent())
    assert steps(tmp_path / "run") == [1, 2, 3] and complete(root / "best") and complete(root / "latest")
    assert sorted(path.name for path in root.iterdir() if path.name.endswith("unfinished")) == []


@pytest.mark.parametrize("left", ["empty", "no tables", "no study", "cut short"])
def test_a_search_that_was_killed_while_its_study_was_made_begins_anew(tmp_path, tiny, left):
    import sqlite3

    import optuna

    (tmp_path / "swept.yaml").write_text(
        f"experiment: {tiny}\nseeds: [0]\ntrials: 2\nsearch: random\nspace: {{loss.beta1: [0.5]}}\n"
        "common: {method: cegppo, steps: 2, wandb.mode: disabled}\nobjective: {metric: reward/mean, prune: false}\n"
    )
    path = tmp_path / "results" / "swept" / "study.db"
    path.parent.mkdir(parents=True)
    path.touch()
    if left == "no tables":
        with sqlite3.connect(path) as made:
            made.execute("create table studies (study_id integer primary key)")
        made.close()
    elif left in ("no study", "cut short"):
        optuna.storages.RDBStorage(f"sqlite:///{path}")
        if left == "cut short":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    described = description.describe(tmp_path / "swept.yaml", [f"results={tmp_path / 'results'}"])
    searching = search.Search(described)
    assert searching.next().arm == "trial000"
    searching.close()
    again = search.Search(described)  # the study is whole: its trial is not forgotten
    assert [run.arm for run in again.runs] == ["trial000"]
    again.close()


def test_a_study_that_cannot_be_read_beside_its_trials_is_said(tmp_path, tiny):
    (tmp_path / "swept.yaml").write_text(
        f"experiment: {tiny}\nseeds: [0]\ntrials: 2\nsearch: random\nspace: {{loss.beta1: [0.5]}}\n"
        "common: {method: cegppo, steps: 2}\nobjective: {metric: reward/mean}\n"
    )
    folder = tmp_path / "results" / "swept"
    (folder / "trial000").mkdir(parents=True)
    (folder / "study.db").write_bytes(b"no database " * 100)
    with pytest.raises(BadInput, match="study.db: cannot be read"):
        search.Search(description.describe(tmp_path / "swept.yaml", [f"results={tmp_path / 'results'}"]))
    assert (folder / "study.db").read_bytes() == b"no database " * 100


def test_what_a_failing_clean_up_left_goes_with_the_next_start(made, monkeypatch):
    folder, asked = made
    run_training(asked, Silent())
    (folder / "checkpoints" / "step000003").mkdir()
    run_training(asked, Silent())  # finished: nothing is trained
    assert not (folder / "checkpoints" / "step000003").exists()


def test_a_tokenizer_that_cannot_be_written_is_a_failing_disk(made, monkeypatch):
    """Found by a campaign: its library is Rust and raises an Exception of no class of its own."""
    folder, asked = made

    def save(*_):
        raise Exception("Input/output error (os error 5)")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", save)
    with pytest.raises(OSError, match="os error 5"):
        run_training(asked, Silent())


def test_a_copy_without_links_goes_on(made, tmp_path):
    folder, _ = made
    copied = tmp_path / "copied" / "run"
    shutil.copytree(folder, copied)  # follows links, as `cp -rL` and object stores do
    assert not (copied / "checkpoints" / "latest").is_symlink()
    overrides = [f"run_dir={copied}", "steps=6", "checkpoint_every=2", "wandb.mode=disabled"]
    run_training(config.load(folder.parent / "tiny.yaml", overrides)[0], Silent())
    assert steps(copied) == [1, 2, 3, 4, 5, 6]
    left = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert (copied / "checkpoints" / "latest").is_symlink() and "step000006" in left
    assert not [name for name in left if "unfinished" in name]


def test_a_run_that_lost_every_checkpoint_is_refused_and_untouched(made):
    folder, asked = made
    shutil.rmtree(folder / "checkpoints")
    meta = json.loads((folder / "meta.json").read_text()) | {"status": "running"}  # a kill, then the loss
    (folder / "meta.json").write_text(json.dumps(meta))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(BadInput, match="holds a record of 4 steps but no checkpoint"):
        run_training(asked, Silent())
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before}


def test_clean_up_takes_checkpoints_and_nothing_else(made):
    folder, asked = made
    root = folder / "checkpoints"
    for name in ("step_notes", "step000002.kept", "steps", "step12"):
        (root / name).mkdir()
    (root / "step000001").mkdir()
    run_training(asked, Silent())
    left = {path.name for path in root.iterdir()}
    assert {"step_notes", "step000002.kept", "steps", "step12"} <= left and "step000001" not in left


def test_a_gap_before_the_checkpoint_is_refused(made):
    folder, asked = made
    rows = read_lines(folder / "metrics.jsonl")
    text = as_lines([row for row in rows if row["step"] not in (2, 3)])
    (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(BadInput, match="lacks step 2 and 1 more of the 4 before the checkpoint"):
        run_training(asked, Silent())
    assert (folder / "metrics.jsonl").read_text() == text


def test_lines_are_on_the_disk_before_the_pointer_moves(made, monkeypatch):
    folder, asked = made
    done = []
    monkeypatch.setattr("cegppo.record.run.sync", lambda path: done.append(path.name))
    monkeypatch.setattr("cegppo.record.run.point", lambda link, name: done.append(link.name))
    record = Record(asked)
    record.begin(4)
    record.save_checkpoint(5, lambda path: (path / "state.json").write_text("{}"), best=True)
    record.close("stopped")
    assert done == ["metrics.jsonl", "eval.jsonl", "best", "latest"]


def test_a_start_that_fails_changes_nothing(made, monkeypatch):
    folder, asked = made
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    monkeypatch.setattr("cegppo.train.build", lambda _: (_ for _ in ()).throw(BadInput("no such model")))
    with pytest.raises(BadInput, match="no such model"):
        run_training(asked, Silent())
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_a_damaged_line_is_named(made):
    folder, asked = made
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "reward\xff\n{"step": 6}\n')
    with pytest.raises(BadInput, match=r"metrics.jsonl: line 5 is damaged"):
        run_training(asked, Silent())


# -------------------------------------------------------------------------- what is not finite


@pytest.fixture
def poisoned(monkeypatch):
    """The gradient of the third update is NaN."""
    calls = []
    whole = torch.nn.utils.clip_grad_norm_

    def clip(parameters, largest):
        parameters = list(parameters)
        calls.append(None)
        if len(calls) == 3:
            for p in parameters:
                p.grad *= float("nan")
        return whole(parameters, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    return calls


@pytest.mark.parametrize("looks", ["diagnostics.every=0", "diagnostics.every=1"])
def test_an_update_that_is_not_finite_is_left_out_and_kept(tiny, tmp_path, poisoned, looks):
    folder = tmp_path / "run"
    words = [f"run_dir={folder}", "steps=3", "updates_per_step=2", "update.on_nonfinite=skip", looks]
    run_training(config.load(tiny, [*words, "wandb.mode=disabled"])[0], Silent())
    rows = read_lines(folder / "metrics.jsonl")
    assert [row["update/skipped"] for row in rows] == [0.0, 1.0, 0.0] and rows[1]["updates"] == 1.0
    assert all(value is not None for row in rows for key, value in row.items() if not key.startswith("clip/prob"))
    kept = load_file(folder / "broken" / "step000002-update0.safetensors")
    assert {"logprob_BT", "old_logprob_BT", "advantage_BT", "mask_BT"} <= set(kept)
    for name in ("model", "optimizer"):
        stored = load_file(checkpoint(folder) / f"{name}.safetensors")
        assert all(value.isfinite().all() for value in stored.values())
    assert ("ledger/updates" in rows[0]) == looks.endswith("1") and "ledger/updates" not in rows[1]


def test_a_run_that_stops_there_goes_on(tiny, tmp_path, poisoned):
    folder = tmp_path / "run"
    words = [f"run_dir={folder}", "steps=3", "updates_per_step=2", "checkpoint_every=1", "wandb.mode=disabled"]
    asked = config.load(tiny, words)[0]
    with pytest.raises(Diverged, match="the gradient norm is nan; nothing was updated"):
        run_training(asked, Silent())
    assert (folder / "broken" / "step000002-update0.safetensors").is_file() and steps(folder) == [1]
    run_training(asked, Silent())  # the poison is used up
    assert steps(folder) == [1, 2, 3]


# --------------------------------------------------------------------------------- the full disk


class Filling:
    """A file on a disk that takes `room` bytes more and then says that it is full."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def fileno(self):
        return self.file.fileno()

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(bytes(data[: self.room]))
        self.room -= taken
        return taken


def test_a_disk_that_fills_within_a_line_leaves_no_part_of_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with open(path, "ab", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            files.append(Filling(file, 5), b'{"step": 2}\n')
        files.append(Filling(file, 12), b'{"step": 3}\n')  # taken in one piece or in several
    append_line(path, {"step": 4})
    assert [row["step"] for row in read_lines(path)] == [1, 3, 4]


# ----------------------------------------------------------------------------------- completions


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "completions" / "kept.jsonl.gz"
    opened = Completions(path)
    for n in range(3):
        opened.append([{"id": n, "completions": ["text " * 50]}])
    opened.close()
    return path


def test_what_a_killed_process_left_half_written_is_cut(kept):
    whole = kept.read_bytes()
    third = whole.rfind(b"\x1f\x8b\x08")
    for end in (third + 1, third + 12, len(whole) - 1):
        kept.write_bytes(whole[:end])
        opened = Completions(kept)
        assert [row["id"] for row in opened.rows] == [0, 1] and kept.stat().st_size == third
        opened.close()


@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_a_flipped_byte_is_refused_and_nothing_is_cut(kept, where):
    data = bytearray(kept.read_bytes())
    starts = [n for n in range(len(data)) if data[n : n + 3] == b"\x1f\x8b\x08"]
    member = starts[min(int(3 * where), 2)]
    data[member + 14] ^= 0xFF  # within the compressed text
    kept.write_bytes(data)
    with pytest.raises(BadInput, match="damaged after"):
        Completions(kept)
    assert kept.read_bytes() == bytes(data)


def test_a_file_that_is_not_gzip_stays_what_it_is(kept):
    kept.write_text("my notes\n")
    with pytest.raises(BadInput, match="damaged after 0 problems"):
        Completions(kept)
    assert kept.read_text() == "my notes\n"


def test_completions_that_would_fill_the_memory_are_refused(kept, monkeypatch):
    monkeypatch.setattr(files, "MEMBER", 10_000)
    kept.write_bytes(kept.read_bytes() + gzip.compress(b"0" * 50_000_000))
    with pytest.raises(BadInput, match="in one piece"):
        Completions(kept)


# ------------------------------------------------------------------------------------- bystanders


def test_an_exception_without_a_text_has_a_name():
    assert said(ValueError()) == "ValueError" and said(OSError("\n a\nb")) == " a"
    assert said(RuntimeError("x" * 500), 10) == "x" * 10


def test_newest_of_nothing_is_none(tmp_path):
    assert newest(tmp_path) is None


def test_a_grader_that_never_answers_costs_its_patience_and_nothing_else(monkeypatch):
    pool = grader.Pool(timeout=0.05, memory_mb=512, workers=1)
    pool.patience = 0.3
    silent = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    monkeypatch.setattr(pool, "_start", lambda: silent)
    assert pool.grade([("1", "x")]) == [None] and silent.wait(timeout=5) < 0


def test_a_write_that_a_signal_cuts_short_is_gone_on_with():
    class Cut:
        """A pipe that takes one byte at a time."""

        def __init__(self, pipe):
            self.pipe = pipe

        def write(self, data):
            return self.pipe.write(bytes(data[:1]))

    pool = grader.Pool(timeout=1.0, memory_mb=512, workers=1)
    echo = "import sys, base64\nfor line in sys.stdin: print(int(b'abc' in base64.b64decode(line)), flush=True)"
    nurse = subprocess.Popen([sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    nurse.stdin = Cut(nurse.stdin)
    pool._start = lambda: nurse
    assert pool.grade([("1", "abc")]) == [True]
    nurse.kill()


@pytest.mark.parametrize(
    "override", ["grader.timeout=1e300", "grader.memory_mb=99999999999", "grader.workers=100000"], ids=str
)
def test_limits_that_cannot_work_are_refused(tiny, override):
    with pytest.raises(BadInput, match="must be (at most|in)"):
        config.load(tiny, [override])


def test_a_mean_is_one_of_all_benchmarks(tiny, tmp_path):
    """A poll between two benchmarks of one evaluation sees the evaluation before."""
    names = ["sums", "gcd"]
    two = "eval.benchmarks=[{name: sums, task: chain_sum}, {name: gcd, task: gcd}]"
    loaded = config.load(tiny, [f"run_dir={tmp_path / 'run'}", two])[0]
    searching = object.__new__(search.Search)
    searching.objective = search.OBJECTIVE
    watched = description.Run("a", 0, tiny, (), loaded)
    row = lambda step, name, good: {
        "step": step,
        "benchmark": name,
        "n": 1,
        "k": 1,
        "correct": [good],
        "avg@1": float(good),
    }
    (tmp_path / "run").mkdir()
    lines = [row(0, name, 0) for name in names] + [row(3, name, 1) for name in names] + [row(6, names[0], 0)]
    for count, expected in ((len(names), None), (2 * len(names), (3, 1.0)), (len(lines), (3, 1.0))):
        (tmp_path / "run" / "eval.jsonl").write_text(as_lines(lines[:count]))
        assert searching._value(watched) == expected


# --------------------------------------------------------------------- one line, and no traceback


@pytest.fixture
def front():
    spec = importlib.util.spec_from_file_location("front_door", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize(
    "override, part",
    [
        ("update.lr=1e300", "update.lr must be in [0, 10]"),
        ("prompts_per_step=99999999999", "prompts_per_step must be at most 1048576"),
        ("diagnostics.probe=99999999999999", "diagnostics.probe must be at most"),
        ("steps=" + "9" * 4301, "command line: "),
        ("data.suffix=" + "[" * 3000, "are longer than data.max_prompt_tokens"),
        ("eval.k=" + "[" * 3000, "command line: "),
        ("model.device=meta", "model.device=meta: holds no numbers"),
        ("data.suffix=${oc.env:HF_TOKEN}", "oc.env"),
        ("arm=../../x", "arm must be the name of one folder"),
        ("experiment=/abs", "experiment must be the name of one folder"),
        ("arm=..", "arm must be the name of one folder"),
        ("eval.benchmarks.0.k=", "command line: "),
    ],
    ids=lambda v: v[:40],
)
def test_a_value_that_cannot_be_is_one_line(tiny, tmp_path, front, capsys, monkeypatch, override, part):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretverysecret")
    assert front(["train", str(tiny), f"results={tmp_path / 'results'}", "wandb.mode=disabled", override]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and part in err and err.count("\n") == 1 and "verysecret" not in err


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff", "[" * 5000])
@pytest.mark.parametrize("name", ["meta.json", "checkpoints/latest/state.json", "metrics.jsonl", "eval.jsonl"])
def test_a_damaged_file_of_a_run_is_one_line(made, front, capsys, name, text):
    folder, asked = made
    whole = text if name.endswith("json") else text + "\n"
    if name.endswith("jsonl") and not text:
        pytest.skip("an empty line file is a run without lines")
    (folder / name).write_bytes(whole.encode("latin-1"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    command = ["train", str(folder.parent / "tiny.yaml"), f"run_dir={folder}", "steps=6", "checkpoint_every=2"]
    for words in (command + ["wandb.mode=disabled"], ["report", str(folder)]):
        code = front(words)
        err = capsys.readouterr().err
        if words[0] == "report" and code == 0:
            continue  # needs no checkpoint and no evaluation
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and str(folder) in err
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_copy_beside_a_run_is_no_run(made):
    folder, _ = made
    sweep = folder.parent / "sweep"
    shutil.copytree(folder, sweep / "arm" / "seed0", symlinks=True)
    shutil.copytree(folder, sweep / "arm" / "seed0.bak", symlinks=True)
    assert len(load.run_folders(sweep)) == 1 and load.metrics(sweep.parent, "sweep", ["arm"])["seed"].unique() == [0]


def test_a_disk_or_folder_that_fails_is_one_line(made, front, capsys, monkeypatch):
    folder, _ = made
    command = ["train", str(folder.parent / "tiny.yaml"), f"run_dir={folder}", "steps=6", "checkpoint_every=2"]

    def full(path, row):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("cegppo.record.run.append_line", full)
    before = (folder / "metrics.jsonl").read_bytes()
    assert front([*command, "wandb.mode=disabled"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: No space left on device" in err[-1] and not any("Traceback" in line for line in err)
    assert (folder / "metrics.jsonl").read_bytes() == before
    monkeypatch.undo()
    assert front([*command, "wandb.mode=disabled"]) == 0 and steps(folder) == [1, 2, 3, 4, 5, 6]


# --------------------------------------------------------------------- a clock that jumps


class Jumping:
    """A clock that is set some days forward or back each time it is read, as time() or as text."""

    def __init__(self, *jumps):
        self.jumps = list(jumps)

    def time(self):
        return 1.8e9 + 86400 * (self.jumps.pop(0) if self.jumps else 0)

    def text(self):
        return datetime.fromtimestamp(self.time(), UTC).isoformat(timespec="seconds")


@pytest.mark.parametrize("jumps", [(0, -1, -2, -3, -4, -5), (0, 5, 1, 9, 2, -3)], ids=["back", "to and fro"])
def test_a_clock_that_jumps_changes_no_number(made, tiny, tmp_path, monkeypatch, jumps):
    folder, asked = made
    clock = Jumping(*jumps)
    monkeypatch.setattr("time.time", clock.time)
    for name in ("provenance", "run"):
        monkeypatch.setattr(f"cegppo.record.{name}.now", clock.text)
    run_training(asked, Silent())
    rows = read_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(value >= 0 for row in rows for key, value in row.items() if key.startswith("time/"))
    assert read_meta(folder)["status"] == "finished"
    locked = files.lock(folder / ".lock", "")  # locks know no time: a stale one is nobody's
    locked.close()
    # A run whose end lies before its start, or in the future, has an age; nobody estimates from it.
    sweep = tmp_path / "results" / "sweep" / "arm"
    shutil.copytree(folder, sweep / "seed0", symlinks=True)
    meta = read_meta(sweep / "seed0")
    for start, end in (("2026-01-02", "2026-01-01"), ("2026-01-01", "2999-01-01")):
        for session in meta["sessions"]:
            session |= {"start": f"{start}T00:00:00+00:00", "end": f"{end}T00:00:00+00:00"}
        meta["end"] = f"{end}T00:00:00+00:00"
        (sweep / "seed0" / "meta.json").write_text(json.dumps(meta))
        (line,) = listing.text(tmp_path / "results").splitlines()[1:]
        assert "finished" in line and "-" not in line.split("finished")[1]
        assert bool(estimate._recorded(tmp_path / "results", ["sweep"])) == (start < end)


def test_a_run_that_wrote_in_the_future_is_not_called_silent(made, tmp_path):
    folder, _ = made
    run = tmp_path / "results" / "sweep" / "arm" / "seed0"
    shutil.copytree(folder, run, symlinks=True)
    (run / "meta.json").write_text(json.dumps(read_meta(run) | {"status": "running"}))
    for ahead, state in ((86400, "running"), (-86400, "silent")):
        for name in ("metrics.jsonl", "meta.json"):
            os.utime(run / name, (time.time() + ahead,) * 2)
        assert f" {state} " in listing.text(tmp_path / "results")


# ---------------------------------------------------------------- accepted, though nonsense


@pytest.mark.parametrize(
    "value", [True, float("nan"), float("inf"), {"a": 1}, b"bytes", "", "  ", "\ud800", [], [True]]
)
@pytest.mark.parametrize("column", ["problem", "answer"])
def test_what_is_no_problem_and_no_answer_is_refused(column, value):
    rows = [{"problem": "1 + 1", "answer": 2}, {"problem": "2 + 2", "answer": "4"} | {column: value}]
    with pytest.raises(BadInput, match="row 2 lacks"):
        data.problems_of(rows, Source(name="s", file="f.jsonl"), "f.jsonl")


def test_weights_that_are_no_numbers_are_refused(tiny_model, tmp_path):
    from safetensors.torch import save_file

    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"no numbers .*{name}"):
        Policy.load(tmp_path / "model", "cpu")


# -------------------------------------------------------------------------------------- security


@pytest.mark.parametrize(
    "command, kept",
    [
        ("run.py train e.yaml hf_token=abc seed=1", "run.py train e.yaml hf_token=*** seed=1"),
        ("run.py train model.path=https://me:pass@host/x", "run.py train model.path=https://me:***@host/x"),
        ("run.py train model.path=hf_" + "a" * 30, "run.py train model.path=hf_***"),
        ("run.py train rollout.max_tokens=64 data.max_prompt_tokens=9", None),
        ("run.py train wandb.tags=[github_pat_" + "1A_" * 10 + "]", "run.py train wandb.tags=[github_pat_***]"),
        ("AKIA" + "B" * 16 + " glpat-" + "c" * 20 + " xoxb-" + "1-" * 10 + "d", "AKIA*** glpat-*** xoxb-***"),
        ("key wandb_v1_" + "e" * 30, "key wandb_v1_***"),
        ("run.py x password: hunter2 seed=1", "run.py x password: *** seed=1"),
        ("run.py x --token hunter2 seed=1", "run.py x --token *** seed=1"),
        ("curl -H 'Authorization: Bearer abc.def'", "curl -H 'Authorization: Bearer ***"),
    ],
)
def test_a_recorded_command_holds_no_password(command, kept):
    assert without_secrets(command) == (kept or command)


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("page", ".page.unfinished"):
        (tmp_path / name).symlink_to(victim)
    files.write_whole(tmp_path / "page", "new")
    assert victim.read_text() == "mine" and (tmp_path / "page").read_text() == "new"
