"""What is kept of runs: packs without loss, runs that stand for others, which code made them."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

import run as front_door
from analysis import load
from cegppo import config
from cegppo.record import pack, provenance
from cegppo.record.files import as_lines, put_folder, read_lines, write_whole
from cegppo.record.keep import keep, unpack
from cegppo.record.read import read_config, read_evaluations, read_meta, read_metrics, run_folders
from cegppo.record.run import Record
from cegppo.screen import Screen, progress
from cegppo.sweep import description, grid
from cegppo.types import BadInput

from .pages import data_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
LINES = ("metrics.jsonl", "eval.jsonl")


@pytest.fixture
def live(tmp_path) -> Path:
    """Two runs of results/algorithms as they lay in their folders."""
    sweep = tmp_path / "algorithms"
    shutil.copytree(RESULTS / "algorithms", sweep, ignore=shutil.ignore_patterns("grpo", ".lock"))
    for seed in (0, 1):
        unpack(sweep / "grpo" / f"seed{seed}")
    for path in sweep.glob("*.*"):
        path.unlink()
    return sweep


def files_of(sweep: Path) -> dict[str, bytes]:
    return {str(p.relative_to(sweep)): p.read_bytes() for p in sorted(sweep.rglob("*")) if p.is_file()}


def test_awkward_lines_come_back_byte_for_byte(tmp_path):
    text = (
        '{"step": 1, "a": 1, "b": 0.1, "mixed": 0, "n": null, "list": [1, 2.0, null], "on": true,'
        ' "big": 36893488147419103232}\n'
        '{"b": -0.0, "a": 2, "step": 2, "mixed": 0.5, "text": "Größe \\"0\\" \\u0000", "dict": {"z": 1, "a": {}}}\n'
        '{"step": 3, "a": null, "b": 5e-324, "mixed": -1}\n'
        '{"step": 4, "b": 1.7976931348623157e+308, "n": null, "on": "true", "big": 1}\n'
    )
    other = '{"step": 1, "c": 2.5}\n'
    by_run = {
        name: [json.loads(line) for line in t.splitlines()] for name, t in (("a/seed0", text), ("b/seed1", other))
    }
    pack.write_lines(tmp_path / "metrics.parquet", by_run)
    back = pack.lines(tmp_path / "metrics.parquet")
    assert {name: as_lines(rows) for name, rows in back.items()} == {"a/seed0": text, "b/seed1": other}


@pytest.mark.parametrize(
    "sweep, sha256",
    [
        ("algorithms", "6418ecb15a94ea657050192e4053b3c6c7fb45db0ce191c147f1f8cda9a6592b"),
        (
            "one_side",
            "b7970494715d561d89f1d07b4e4acb614da8746b155447499fb13d1412556fd5",
        ),
    ],
)
def test_the_committed_packs_hold_what_the_folders_held(sweep, sha256, tmp_path):
    """The hash was taken of the files before they were packed: seeds 0 to 4, three files a run."""
    seen = hashlib.sha256()
    for folder in run_folders(RESULTS / sweep):
        if folder.name in {f"seed{n}" for n in range(5)}:
            seen.update((as_lines(read_metrics(folder)) + as_lines(read_evaluations(folder))).encode())
            seen.update(load.config(folder).encode())
    assert seen.hexdigest() == sha256


def test_the_evidence_can_be_carried():
    """It grows with the runs that it is of, and with nothing else."""
    listed = subprocess.run(["git", "ls-files", "-z", "results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    packs = {
        name: size for name, size in sizes.items() if Path(name).name in (pack.RUNS, pack.METRICS, pack.EVALUATIONS)
    }
    runs = sum(len((ROOT / name).read_text().splitlines()) for name in packs if name.endswith(pack.RUNS))
    assert runs > 200 and sum(packs.values()) < 27e3 * runs
    assert 0 < sum(sizes.values()) - sum(packs.values()) < 3.3e6  # figures, tables, notes, the paper's numbers
    assert sum(sizes.values()) < 30e6  # what a clone takes with it, 1,400 runs


def test_keep_packs_and_unpack_gives_every_byte_back(live):
    before = files_of(live)
    frame, tests = (
        load.metrics(live.parent, "algorithms", ["grpo"]),
        load.evaluations(live.parent, "algorithms", ["grpo"]),
    )
    assert list(keep(live))[-1].startswith(f"{live}: 2 runs kept now (0 of them refer")
    assert {p.name for p in live.iterdir()} == {"runs.jsonl", "metrics.parquet", "evaluations.parquet", ".lock"}
    assert frame.equals(load.metrics(live.parent, "algorithms", ["grpo"]))
    assert tests.equals(load.evaluations(live.parent, "algorithms", ["grpo"]))
    assert load.setting(live / "grpo" / "seed1", "loss.eps_high") == 0.2
    packed = files_of(live)
    assert "0 runs kept now" in list(keep(live))[-1] and files_of(live) == packed  # again: nothing
    for folder in run_folders(live):
        unpack(folder)
    back = files_of(live)
    assert {name: back[name] for name in before} == before
    list(keep(live))
    assert files_of(live) == packed


def test_later_seeds_are_added_and_what_cannot_be_kept_stays(live, capsys):
    later, first = live / "grpo" / "seed1", live / "grpo" / "seed0"
    was = {n: (later / n).read_bytes() for n in LINES}
    (later / "checkpoints" / "latest").mkdir(parents=True)
    meta = read_meta(later)
    write_whole(later / "meta.json", json.dumps(meta | {"status": "running"}, indent=1) + "\n")
    shutil.copytree(first, live / "grpo" / "seed2")
    with open(live / "grpo" / "seed2" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6')
    assert front_door.main(["keep", str(live)]) == 0
    said = capsys.readouterr().out
    assert f"left as it is: {later}: not finished (running)" in said and "1 runs kept now" in said
    assert "seed2/metrics.jsonl: not as a run writes it" in said and (live / "grpo" / "seed2" / "eval.jsonl").is_file()
    shutil.rmtree(live / "grpo" / "seed2")
    write_whole(later / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    assert "1 runs kept now" in list(keep(live))[-1]
    assert [line["seed"] for line in pack.runs(live).values()] == [0, 1]
    assert [p.name for p in later.iterdir()] == ["checkpoints"]  # not the record's: they stay
    unpack(later)
    assert {n: (later / n).read_bytes() for n in LINES} == was


def test_a_keep_that_was_killed_is_finished_by_the_next(live):
    """Killed while it removed files: the pack counts, meta.json went first."""
    whole = live.parent / "whole"
    shutil.copytree(live, whole)
    list(keep(live))
    for name in (*LINES, "config.yaml"):
        (live / "grpo" / "seed0").mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / "grpo" / "seed0" / name, live / "grpo" / "seed0" / name)
    write_whole(live / "grpo" / "seed0" / "metrics.jsonl", "")
    assert len(read_metrics(live / "grpo" / "seed0")) == len(load.run(live / "grpo" / "seed0")) == 60
    list(keep(live))
    assert not (live / "grpo").exists() and len(pack.runs(live)) == 2


def test_what_is_not_there_is_one_line(live, capsys):
    assert front_door.main(["keep", "algoritms", "--results", str(live.parent)]) == 2
    assert f"{live.parent / 'algoritms'}: no such folder; did you mean 'algorithms'?" in capsys.readouterr().err
    assert front_door.main(["keep", str(live.parent)]) == 2
    assert "no runs there" in capsys.readouterr().err


def test_a_report_of_a_run_in_a_pack(live):
    from analysis import report

    list(keep(live))
    shown = data_of(report.write(live / "grpo" / "seed0"))
    assert shown["facts"][0][1].startswith("finished, 60 steps") and "eps_high: 0.2" in shown["config"]
    assert "gcd" in {row[0] for row in shown["tables"][0]["rows"]} and "eval/gcd" in shown["curves"]["metrics"]
    assert shown["without"] == "This run is kept in a pack, which holds metrics and evaluations but no token records."


def taken(live: Path, name: str, **facts) -> Path:
    """A run that stands for grpo seed 0."""
    source, folder = live / "grpo" / "seed0", live.parent / "second" / name / "seed0"
    folder.mkdir(parents=True)
    shutil.copy(source / "config.yaml", folder)
    meta = read_meta(source) | {"taken_from": "results/algorithms/grpo/seed0"} | facts  # the root has moved since
    write_whole(folder / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    return folder


def test_a_run_that_stands_for_another_is_read_there_as_far_as_it_was_taken(live):
    whole, short = taken(live, "whole"), taken(live, "short", steps=20)
    copied, changed = taken(live, "copied"), taken(live, "changed")
    for folder in (copied, changed):
        for name in LINES:
            shutil.copy(live / "grpo" / "seed0" / name, folder)
    write_whole(changed / "metrics.jsonl", as_lines(read_lines(changed / "metrics.jsonl")[:-1]))
    for _ in range(2):  # live, then in packs
        assert read_metrics(whole) == read_metrics(copied) == read_metrics(live / "grpo" / "seed0")
        assert [len(load.run(f)) for f in (whole, short, copied, changed)] == [60, 20, 60, 59]
        assert [len(read_metrics(f)) for f in (whole, short, copied, changed)] == [60, 20, 60, 59]
        assert max(r["step"] for r in read_evaluations(short)) == load.tests(short)["step"].max() == 20
        list(keep(live.parent / "second"))
    assert set(pack.lines(live.parent / "second" / pack.METRICS)) == {"changed/seed0"}  # the copy became a reference
    list(keep(live))
    assert len(read_metrics(whole)) == 60 and len(load.run(short)) == 20
    shutil.rmtree(live)
    gone = "whole/seed0 was taken from .*algorithms/grpo/seed0, which is not there any more"
    with pytest.raises(BadInput, match=gone):
        read_metrics(whole)
    with pytest.raises(load.Missing, match=gone):
        load.run(whole)
    assert len(read_metrics(changed)) == 59


def test_a_kept_run_goes_on_in_its_folder_where_it_has_a_checkpoint(live):
    folder = live / "grpo" / "seed0"
    before = (folder / "metrics.jsonl").read_bytes()
    list(keep(live))
    again = read_config(folder, [f"run_dir={folder}", "steps=80"])
    with pytest.raises(BadInput, match="holds a record of 60 steps but no checkpoint"):
        Record(again)
    (folder / "checkpoints").mkdir(parents=True)
    put_folder(folder / "checkpoints" / "latest", lambda path: (path / "state.json").write_text("{}"))
    record = Record(again)
    record.begin(60)
    record.close("finished")
    assert (folder / "metrics.jsonl").read_bytes() == before and read_config(folder).steps == 80
    assert len(read_meta(folder)["sessions"]) == 2 and "2 in the pack" in list(keep(live))[-1]
    assert read_config(folder).steps == 80


# --------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A git repository with the layout of this one, in which provenance then finds itself."""
    root = tmp_path / "repository"
    here = root / "cegppo" / "record"
    here.mkdir(parents=True)
    (root / "cegppo" / "losses.py").write_text("one = 1\n")
    (root / ".gitignore").write_text("build/\n")
    monkeypatch.setattr(provenance, "HERE", here)
    git(root, "init", "-q")
    commit(root)
    return root


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a step")


def test_uncommitted_code_is_seen_wherever_it_lies(repository):
    diffs = [provenance.session()["diff"]]
    assert diffs == [None]
    for path, text in (
        ("cegppo/losses.py", "one = 2\n"),  # changed
        ("cegppo/my loss.py", "two = 2\n"),  # new: git does not know it yet
        ("cegppo/my loss.py", "two = 3\n"),
        ("reward.py", "two = 3\n"),  # new, and outside the package
    ):
        (repository / path).write_text(text)
        diffs.append(provenance.session()["diff"])
    assert len(set(diffs)) == 5 and None not in diffs[1:]
    for path in ("results/a/b/run.py", "build/made.py", "notes.md"):  # a record, ignored, no code
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text("x = 1\n")
        assert provenance.session()["diff"] == diffs[-1]
    commit(repository)
    assert provenance.session()["diff"] is None


def test_a_run_says_when_its_code_changed_between_two_starts(repository, tiny, tmp_path, capsys):
    asked = config.load(tiny, [f"run_dir={tmp_path / 'run'}"])[0]
    said = []
    for change in (None, None, "new.py", "commit"):
        if change == "commit":
            commit(repository)
        elif change:
            (repository / "cegppo" / change).write_text("two = 2\n")
        record = Record(asked)
        record.begin(0)
        record.close("stopped")
        said.append(capsys.readouterr().err)
    assert said[:2] == ["", ""]
    assert said[2].startswith(
        f"{tmp_path / 'run'}: the code changed since this run was last started: uncommitted changes"
    )
    assert said[2].count("\n") == 1 and "none → " in said[2] and "commit " in said[3] and "→ none" in said[3]


# --------------------------------------------------------------------------------------------------


def test_no_more_steps_than_there_are(capsys, tiny, tmp_path):
    assert (progress(6, 10), progress(10, 10), progress(60, 10)) == ("6/10", "10/10", "60 (10 asked)")
    with Screen() as screen:
        screen.start(config.load(tiny, ["steps=10"])[0], tmp_path, 60)
    assert "10 steps; 60 were already there, nothing ran" in capsys.readouterr().out


def test_already_there_says_when_and_from_which_code(live):
    asked = description.describe(ROOT / "sweeps" / "algorithms.yaml", [f"results={live.parent}", "sweep.seeds=[0,1,2]"])
    runs = [run for run in description.expand(asked).runs if run.arm == "grpo"]
    list(keep(live))
    line = grid.already_there(runs)
    assert line.startswith("2 of 3 were already there (recorded at 2026-11-21 ") and line.endswith("commit 0ebc770)")
    assert grid.already_there(runs[:2]) == line.replace("2 of 3", "2 of 2") + "; nothing ran"
    assert grid.already_there(runs[2:]) == ""
