"""A few of each campaign: strange inputs in `make test`; kills, disks and rivals in `make
test-slow`. The whole ones: `make test-faults`."""

import csv
import shutil
import subprocess
import sys

import pytest

from . import disk, foreign, inputs
from .children import ROOT
from .table import Table

# What a campaign found, for good: (check, input).
FOUND = [
    ("experiment files", "0"),  # OmegaConf asserts that a document is no single number
    ("data rows", ([{"\n": None}], {"columns": {}, "answer_form": None})),  # a column's name broke the line
    ("overrides", ["seed=" + 400 * "9"]),
    ("overrides", ["testbed.wordings_exponent=" + 400 * "9"]),
    ("overrides", ['loss={"\\n": null}']),
    ("experiment files", '{0,"include":"\\0"}'),
    ("run folders", ("config.yaml", [(844829, 1, b"{-,]")])),  # list and diff read it, too
]


@pytest.mark.parametrize("name", inputs.CHECKS)
def test_strange_inputs(name):
    counted = [0]
    few = 5 if name == "run folders" else 40
    inputs.hypothesis.seed(0)(
        inputs.test_of(name, few, counted)
    )()  # the same ones each time: searching is the campaign's
    assert counted[0] >= few / 2


@pytest.mark.parametrize("command", foreign.COMMANDS)
def test_foreign_folders(command, tmp_path):
    wrong = [foreign.trial(tmp_path / "f", command, f"0.{number}") for number in range(4)]
    assert not any(wrong), wrong


@pytest.mark.parametrize("name, value", FOUND, ids=str)
def test_what_was_found_stays_repaired(name, value):
    inputs.CHECKS[name][1](value)


def test_a_record_that_lacks_a_key_is_one_line(tmp_path):
    from analysis import report
    from analysis.load import Unreadable

    run = tmp_path / "run"
    shutil.copytree(inputs.folder(), run, symlinks=True)
    text = (run / "meta.json").read_text()
    (run / "meta.json").write_text(text.replace('"start"', '"stat"'))
    with pytest.raises(Unreadable, match="its record is damaged .KeyError: 'start'"):
        report.write(run)


def test_a_failure_is_counted_and_kept_with_those_of_other_seeds(tmp_path):
    out = tmp_path / "faults" / "campaigns.csv"
    for seed, wrong in ((1, ""), (2, "hangs"), (2, "")):  # a seed again replaces what it said before
        table = Table("kills", seed, out)
        table.add("train", 3, "")
        table.add("train", 2, wrong)
        table.close()
        assert table.failures == ([f"train: {wrong}"] if wrong else [])
    rows = list(csv.DictReader(out.open()))
    assert [(row["seed"], row["trials"], row["faults"], row["failures"]) for row in rows] == [
        ("1", "2", "5", "0"), ("2", "2", "5", "0"),
    ]  # fmt: skip


def test_a_check_that_fails_is_a_failure(monkeypatch):
    def check(value):
        assert value < 100

    monkeypatch.setitem(inputs.CHECKS, "token texts", (inputs.st.integers(0, 1000), check, 1.0))
    table = Table("inputs", 1, None)
    inputs.Campaign(table).run(60, ["token texts"], 1, 200)
    assert len(table.failures) == 1 and "value=100" in table.failures[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="the failing disk is built with a C compiler")
def test_a_few_kills_disks_and_rivals(tmp_path):
    out = tmp_path / "campaigns.csv"
    command = [sys.executable, "-m", "tests.faults", "--out", out, "--seconds"]
    parts = {"kills": ("20", "train", "eval"), "disk": ("20", "train"), "rivals": ("15", "train", "report")}
    for name, (seconds, *checks) in parts.items():
        words = [*map(str, command), seconds, "--only", name, "--checks", *checks]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(out.open()))
    assert {row["campaign"] for row in rows} == set(parts) and not any(int(row["failures"]) for row in rows)


@pytest.mark.skipif(shutil.which("cc") is None, reason="the failing disk is built with a C compiler")
def test_the_shim_fails_the_call_that_it_is_told_to(tmp_path):
    """Third write: cut short, failing once, and full from there on, as Python and C see it."""
    script = """
import ctypes, os, sys
folder, call, number, good = sys.argv[1], *map(int, sys.argv[2:])
log = os.open(folder + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
ctypes.CDLL(None).faults_begin(folder.encode(), ctypes.c_long(call), number, good, log)
file = os.open(folder + "/a", os.O_WRONLY | os.O_CREAT)
for n in range(4):
    try:
        print(os.write(file, b"12345678"))
    except OSError as error:
        print(error.strerror)
os.rename(folder + "/a", folder + "/b")
"""
    (tmp_path / "d").mkdir()
    shim = disk.build(tmp_path)
    run = lambda call, number, good: subprocess.run(
        [sys.executable, "-c", script, tmp_path / "d", *map(str, (call, number, int(good)))],
        env={"LD_PRELOAD": str(shim)}, capture_output=True, text=True, check=True,
    ).stdout.split("\n")[:-1]  # fmt: skip
    assert run(0, 0, False) == ["8"] * 4
    assert disk.places(tmp_path / "d.log") == {
        ("open", "/a"): [1],
        ("write", "/a"): [2, 3, 4, 5],
        ("rename", "/b"): [6],
    }
    assert run(3, 0, False) == ["8", "4", "8", "8"]
    assert run(3, disk.FAILS[1], False) == ["8", "Input/output error", "8", "8"]
    assert run(3, disk.FULL[1], True) == ["8"] + ["No space left on device"] * 3
