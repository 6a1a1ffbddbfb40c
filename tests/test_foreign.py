"""Folders that somebody sent: whatever a command does with them stays inside them, ends, and says
what is wrong in a line."""

import json
import os
import resource
import shutil
import stat
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from analysis import load
from cegppo import config
from cegppo.cli import main
from cegppo.record import files, names, pack, tables
from cegppo.record.files import as_lines, read_lines
from cegppo.record.keep import keep
from cegppo.record.read import read_meta, run_folders
from cegppo.train import run_training
from cegppo.types import BadInput

from .test_train import Silent


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_text) -> Path:
    """A folder with tiny.yaml and the finished run own/a/seed0, token records and checkpoints with
    it."""
    root = tmp_path_factory.mktemp("made")
    (root / "tiny.yaml").write_text(tiny_text)
    words = [f"results={root}", "experiment=own", "arm=a", "steps=2", "diagnostics.every=1", "wandb.mode=disabled"]
    run_training(config.load(root / "tiny.yaml", words)[0], Silent())
    return root


@pytest.fixture
def sent(made, tmp_path, monkeypatch) -> Path:
    """A copy of the run, <tmp>/results/own/a/seed0, in a working folder of its own."""
    shutil.copytree(made / "own", tmp_path / "results" / "own", symlinks=True)
    shutil.copy(made / "tiny.yaml", tmp_path)
    run = tmp_path / "results" / "own" / "a" / "seed0"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"results: {made}", "results: results"))
    monkeypatch.chdir(tmp_path)
    return run


def tree(folder: Path) -> dict[str, tuple]:
    """Content, time and mode of every file, and every name, below `folder`."""
    made = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        changed = status.st_mtime_ns if content is not None else 0
        made[str(path.relative_to(folder))] = (content, changed, status.st_mode)
    return made


AGAIN = ["results=results", "experiment=own", "arm=a", "diagnostics.every=1", "wandb.mode=disabled"]
COMMANDS = {
    "train": ["train", "tiny.yaml", *AGAIN, "steps=3", "tensorboard=true", "report=true"],
    "train --fresh": ["train", "--fresh", "tiny.yaml", *AGAIN, "steps=2"],
    "train --from": ["train", "--from", "results/own/a/seed0", "wandb.mode=disabled"],
    "eval": ["eval", "results/own/a/seed0", "eval.k=1"],
    "keep": ["keep", "results/own"],
    "report": ["report", "results/own/a/seed0"],
    "report of a sweep": ["report", "results/own"],
    "list": ["list", "results"],
    "diff": ["diff", "results/own/a/seed0", "tiny.yaml"],
    "compare": ["compare", "results/own"],
    "advise": ["advise", "results/own/a/seed0", "--results", "results"],
    "figures": ["figures", "--results", "results", "--only", "demo", "weights"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_through_a_link(command, sent, tmp_path, capsys):
    """What a command reads and writes is listed first; then every one of these names, and every
    name that is written on the way to it, is a link to a file of the user's."""
    clean = tmp_path / "clean"
    shutil.copytree(tmp_path / "results", clean / "results", symlinks=True)
    shutil.copy("tiny.yaml", clean)
    os.chdir(clean)
    main(COMMANDS[command])
    written = [path for path in (clean / "results").rglob("*") if path.is_file() and not path.is_symlink()]
    places = {path.relative_to(clean) for path in written}
    places |= {path.relative_to(tmp_path) for path in sent.rglob("*") if path.is_file() and not path.is_symlink()}
    precious = tmp_path / "precious"
    for n, place in enumerate(sorted(places)):
        mine = precious / str(n)
        mine.mkdir(parents=True)
        there = tmp_path / place
        (mine / there.name).write_bytes(there.read_bytes() if there.is_file() else b"precious\n")
        there.unlink(missing_ok=True)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(mine / there.name)
        (mine / "unfinished").write_bytes(b"precious\n")
        for name in (f".{there.name}.unfinished", f"{there.name}.unfinished"):
            if not (there.parent / name).exists():
                (there.parent / name).symlink_to(mine / "unfinished")
    for folder in (sent.parent.parent, sent, tmp_path / "results" / "figures"):
        (precious / "lock").write_bytes(b"precious\n")
        if folder.is_dir() and not (folder / ".lock").exists():
            (folder / ".lock").symlink_to(precious / "lock")
    before = tree(precious)
    os.chdir(tmp_path)
    code = main(COMMANDS[command])
    assert code in (0, 1, 2) and tree(precious) == before, capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints", "tokens", "completions", "broken", "wandb", "tensorboard", "figures"])
@pytest.mark.parametrize("command", ["train", "eval", "keep", "compare"])
def test_no_command_writes_into_a_folder_that_is_a_link(name, command, sent, tmp_path, capsys):
    there = tmp_path / "results" / name if name == "figures" else sent / name
    precious = tmp_path / "precious"
    shutil.move(there, precious) if there.is_dir() else precious.mkdir()
    (precious / "step000001").mkdir(exist_ok=True)  # which a clean-up would take for an old checkpoint
    there.symlink_to(precious)
    before = tree(precious)
    assert main(COMMANDS[command]) in (0, 1, 2) and tree(precious) == before
    assert "Traceback" not in capsys.readouterr().err


def test_a_fifo_is_not_waited_for(sent, capsys):
    """As a lock, and in the place of every file of a run."""
    for name in (".lock", "meta.json", "metrics.jsonl", "eval.jsonl", "config.yaml", "completions/seen.jsonl"):
        kept = (sent / name).read_bytes()
        (sent / name).unlink()
        os.mkfifo(sent / name)
        for command in ("keep", "list", "report", "compare", "advise", "train"):
            assert main(COMMANDS[command]) in (0, 1, 2), (name, command)
        shutil.rmtree(sent / "tensorboard", ignore_errors=True)
        (sent / name).unlink(missing_ok=True)
        (sent / name).write_bytes(kept)
    assert "Traceback" not in capsys.readouterr().err


def test_a_device_is_not_read(sent, capsys):
    (sent / "meta.json").unlink()
    (sent / "meta.json").symlink_to("/dev/zero")
    assert main(["train", "tiny.yaml", *AGAIN]) == 2
    assert "meta.json: is no regular file" in capsys.readouterr().err


def test_a_lock_that_is_a_link_is_left_alone(sent, tmp_path, capsys):
    (tmp_path / "precious").write_text("precious")
    (sent / ".lock").unlink(missing_ok=True)
    (sent / ".lock").symlink_to(tmp_path / "precious")
    said = list(keep(sent.parent.parent))
    assert (tmp_path / "precious").read_text() == "precious" and (sent / "metrics.jsonl").is_file()
    why = "cannot be written (is a link, and nothing is written through one)"
    assert said[0] == f"left as it is: {sent / '.lock'}: {why}"


def test_an_open_file_is_never_emptied(tmp_path):
    (tmp_path / "f").write_text("there")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        files.open_file(tmp_path / "f", flags).close()
    assert (tmp_path / "f").read_text() == "there"


# -------------------------------------------------------------------------------- names that leave


def test_a_run_that_is_a_link_is_not_kept(sent, tmp_path):
    """Neither a run nor an arm of the user's own may end up in the sender's pack."""
    theirs = tmp_path / "theirs" / "own"
    (theirs / "b").mkdir(parents=True)
    (theirs / "b" / "seed1").symlink_to(sent)
    (theirs / "c").symlink_to(sent.parent)
    before = tree(sent)
    said = list(keep(theirs))
    assert sum("is a link to a run that belongs elsewhere" in line for line in said) == 2
    assert tree(sent) == before and not (theirs / pack.RUNS).is_file()


STRANGE = [("../../x", 0), ("/etc", 0), ("", 0), ("..", 0), (".", 0), ("a\0", 0), (7, 0), (None, 0), ("a", "0/../.."),
           ("a", -1), ("a", 1.0), ("a", True), ("a", None), ("a", 10**30)]  # fmt: skip


@pytest.mark.parametrize("arm, seed", STRANGE, ids=repr)
def test_a_pack_names_runs_of_its_own(arm, seed, sent, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    line = {"arm": str(sent.parent) if arm == "/etc" else arm, "seed": seed, "config": {}, "meta": {}}
    (theirs / pack.RUNS).write_text(json.dumps(line) + "\n")
    before = tree(sent)
    for read in (lambda: pack.runs(theirs), lambda: run_folders(theirs), lambda: list(keep(theirs))):
        with pytest.raises(BadInput, match="line 1: '(arm|seed)' is "):
            read()
    with pytest.raises(load.Missing, match="line 1: '(arm|seed)' is "):
        load.run_folders(theirs)
    assert main(["keep", str(theirs)]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert tree(sent) == before


@pytest.mark.parametrize("line", [{"like": "b/seed0"}, {"config": 1}, {"meta": []}, {"config": None}], ids=str)
def test_a_pack_line_of_another_shape_is_damaged(line, tmp_path):
    (tmp_path / pack.RUNS).write_text(json.dumps({"arm": "a", "seed": 0, "config": {}, "meta": {}} | line) + "\n")
    with pytest.raises(BadInput, match="line 1: "):
        pack.runs(tmp_path)


OTHERS = ["../../..", "/", "seed0", "a/seed0", "x/../seed0", "a/b/c", "a/b/seed-1", "a/b/seed٣"]


@pytest.mark.parametrize("named", OTHERS)
def test_taken_from_names_a_run_of_the_same_root(named, sent):
    (sent / "meta.json").write_text(json.dumps(read_meta(sent) | {"taken_from": named}))
    (sent / "metrics.jsonl").unlink()
    with pytest.raises(load.Missing, match="'taken_from' is <sweep>/<arm>/seed<k>"):
        load.run(sent)
    said = list(keep(sent.parent.parent))
    assert "'taken_from' is <sweep>/<arm>/seed<k>" in said[0]


def test_only_seeds_of_digits_are_runs(tmp_path):
    for name in ("seed0", "seed10", "seed007", "seed٣", "seed", "seedling", "seed-1", "seed1.0"):
        (tmp_path / "a" / name).mkdir(parents=True)
    for found in (run_folders(tmp_path), load.run_folders(tmp_path)):
        assert [path.name for path in found] == ["seed0", "seed10"]
    assert names.seed_of("seed" + "9" * 5000) is None


@pytest.mark.parametrize("file", ["../private.csv", "/etc/passwd", "link.csv"])
def test_foreign_yaml_reads_in_its_own_folder(file, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (tmp_path / "private.csv").write_text("step,secret\n1,42\n")
    (folder / "link.csv").symlink_to(tmp_path / "private.csv")
    spec = {"format": "wandb-csv", "file": file, "columns": {"reward/mean": "secret"}}
    (folder / "foreign.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(load.Unreadable, match="'file' names a log in this folder"):
        load.run(folder)


def test_runs_of_a_pack_are_what_they_were(sent):
    rows = read_lines(sent / "metrics.jsonl")
    list(keep(sent.parent.parent))
    assert as_lines(pack.lines(sent.parent.parent / pack.METRICS)["a/seed0"]) == as_lines(rows)


# ------------------------------------------------------------------- small files that fill memory


def a_table(path: Path, **columns) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")


@contextmanager
def bounded(megabytes: int = 1500, seconds: int = 60):
    """What is tried inside may take no more memory than that beyond what is there, nor time."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, hard))
    start = time.perf_counter()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.perf_counter() - start < seconds


def test_a_pack_of_a_few_bytes_is_not_thirty_million_rows(sent, capsys):
    list(keep(sent.parent.parent))
    n = 30_000_000
    name, keys, step = pa.scalar("a/seed0"), pa.scalar('["step"]'), pa.scalar(1, pa.int64())
    path = sent.parent.parent / pack.METRICS
    a_table(path, _run=pa.repeat(name, n), _keys=pa.repeat(keys, n), step=pa.repeat(step, n))
    assert path.stat().st_size < 10**6
    with bounded():
        for command in ("list", "report", "compare", "keep", "advise", "train"):
            assert main(COMMANDS[command]) in (0, 2), command
    said = capsys.readouterr()
    assert "90,000,000 cells in" in said.out + said.err and "Traceback" not in said.err


def test_a_token_record_of_a_few_bytes_is_not_thirty_million_rows(sent):
    (path, *others) = sorted((sent / "tokens").iterdir())
    first = pq.read_table(path).slice(0, 1)
    n = 30_000_000
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for _ in range(n // 10**6):
            writer.write_table(pa.table({k: pa.repeat(first[k][0], 10**6) for k in first.schema.names}, first.schema))
    with bounded():
        with pytest.raises(load.Unreadable, match="cells in"):
            load.tokens(sent)
        assert main(COMMANDS["report"]) == 0  # the others are shown


def test_a_text_that_every_row_has_is_there_once(tmp_path):
    rows = 200
    column = pa.array(["x" * 10**7] * rows)
    a_table(tmp_path / "t.parquet", text=column, n=pa.array(np.random.default_rng(0).random(rows)))
    del column
    assert (tmp_path / "t.parquet").stat().st_size < 10**6
    with bounded(500):
        assert len(set(map(id, tables.read(tmp_path / "t.parquet")["text"]))) == 1


def test_an_unpacked_page_is_bounded(tmp_path):
    a_table(tmp_path / "t.parquet", text=pa.array(["x" * 2**28]))
    with pytest.raises(BadInput, match="bytes packed in"):
        tables.read(tmp_path / "t.parquet")


def test_numbers_texts_and_nulls_of_a_table_come_back(tmp_path):
    columns = {
        "a": [1, None, 3],
        "b": [0.5, None, 1.5],
        "c": ["x", None, "x"],
        "d": [1, 2, 3],
        "e": [True, False, True],
    }
    a_table(tmp_path / "t.parquet", **{k: pa.array(v) for k, v in columns.items()})
    assert {name: values.tolist() for name, values in tables.read(tmp_path / "t.parquet").items()} == columns
    frame = load.read_tokens(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "t.parquet"))
    a_table(tmp_path / "n.parquet", a=pa.array([[1, 2]]))
    with pytest.raises(BadInput, match="'a' is nested"):
        tables.read(tmp_path / "n.parquet")


BOMB = "b0: &b0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def test_a_recorded_configuration_has_no_aliases(sent, capsys):
    (sent / "config.yaml").write_text(BOMB + (sent / "config.yaml").read_text())
    with bounded():
        for command in ("list", "report", "compare", "keep", "advise", "diff", "eval", "train", "train --from"):
            assert main(COMMANDS[command]) in (0, 2), command
    said = capsys.readouterr()
    assert said.err.count("a YAML alias, which no recorded one has") >= 6 and "Traceback" not in said.err


@pytest.mark.parametrize(
    "line, why", [({f"k{i}": 1.0 for i in range(200_000)}, "200,001 keys"), ({"x": "A" * 2**27}, "MiB")]
)
def test_a_line_is_bounded(line, why, sent, capsys):
    with open(sent / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, **line}) + "\n")
    for command in ("list", "report", "compare", "keep"):
        assert main(COMMANDS[command]) in (0, 2), command
    said = capsys.readouterr()
    assert why in said.out and why in said.err and "Traceback" not in said.err


# ------------------------------------------------------------------------------ one damaged run

DAMAGE = {
    "a YAML tag": ("config.yaml", lambda text: text + "\nx: !!python/object/apply:os.system ['true']\n"),
    "aliases": ("config.yaml", lambda text: BOMB + text),
    "no YAML": ("config.yaml", lambda text: "{"),
    "taken from nowhere": ("meta.json", lambda text: json.dumps(json.loads(text) | {"taken_from": "x/y/seed0"})),
    "taken from outside": ("meta.json", lambda text: json.dumps(json.loads(text) | {"taken_from": "../../.."})),
    "a metric of 400 digits": ("metrics.jsonl", lambda text: text.replace('{"step"', f'{{"x": {"9" * 400}, "step"')),
    "a metric that is text": ("metrics.jsonl", lambda text: text.replace('{"step"', '{"x": "y", "step"')),
    "no step": ("metrics.jsonl", lambda text: text.replace('"step": 1,', "")),
    "a huge k": ("eval.jsonl", lambda text: text.replace('"k": 2', '"k": 1000000000')),
    "half a line": ("metrics.jsonl", lambda text: text[5:]),
    "no JSON": ("meta.json", lambda text: "[]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_costs_its_own_line(kind, sent, capsys):
    """Beside a good run of the same arm, and in a root with another experiment."""
    bad = sent.with_name("seed1")
    shutil.copytree(sent, bad, symlinks=True)
    name, damage = DAMAGE[kind]
    (bad / name).write_text(damage((bad / name).read_text()))
    if kind.startswith("taken"):
        (bad / "metrics.jsonl").unlink()
    for command in ("list", "compare", "report of a sweep", "advise"):
        assert main(COMMANDS[command]) == 0, (command, capsys.readouterr().err)
    assert main(["advise", "results/own/a"]) == 0
    assert main(["list", "results/own/a/seed1"]) == 0
    said = capsys.readouterr()
    damaged = [
        line for line in said.out.splitlines() + said.err.splitlines() if "damaged: " in line and "seed1" in line
    ]
    assert len(damaged) >= 3 and "Traceback" not in said.err, said
    assert main(["list", "results"]) == 0
    if name in ("config.yaml", "meta.json"):  # of a finished run its list needs no more, but the score
        assert "1 finished, 1 damaged" in capsys.readouterr().out


def test_a_damaged_pack_costs_its_own_line(sent, capsys):
    other = sent.parents[2] / "other"
    (other / "a").mkdir(parents=True)
    for text in ("{\n", '{"arm": "/", "seed": 0}\n', "[]\n"):
        (other / pack.RUNS).write_text(text)
        for command in ("list", "compare", "advise", "report"):
            assert main(COMMANDS[command]) == 0, command
        said = capsys.readouterr()
        assert f"/results/other/{pack.RUNS}: line 1" in said.out and "Traceback" not in said.err


# --------------------------------------------------------------------------- code that was sent


@pytest.mark.parametrize("key", ["reward", "data.train", "eval.benchmarks"])
def test_a_rule_in_a_sent_folder_is_run_by_nobody(key, sent, tmp_path, monkeypatch, capsys):
    """The flag for programs in the sandbox says nothing of rules, which run outside it."""
    monkeypatch.setenv("CEGPPO_RUN_CODE", "1")
    rule = sent / "evil.py"
    rule.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(prompt, response): return 1.0\n")
    text = yaml.safe_load((sent / "config.yaml").read_text())
    if key == "reward":
        text["reward"] = f"{rule}:f"
    for source in {"data.train": text["data"]["train"], "eval.benchmarks": text["eval"]["benchmarks"]}.get(key, []):
        source["verifier"] = f"{rule}:f"
    (sent / "config.yaml").write_text(yaml.safe_dump(text))
    commands = ["train --from", *(["eval"] if key == "eval.benchmarks" else [])]
    for command in commands:
        assert main(COMMANDS[command]) == 2
        assert f"say {key}=… yourself" in capsys.readouterr().err
    for command in ("list", "compare", "report", "advise", "keep"):
        main(COMMANDS[command])
    assert not (tmp_path / "ran").exists()
