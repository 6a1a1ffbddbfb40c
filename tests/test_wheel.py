"""The command `cegppo`, from a wheel that was installed elsewhere and from the checkout, in a
folder that holds nothing of it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cegppo import config
from cegppo.cli import main, parser
from cegppo.sweep import description

ROOT = Path(__file__).resolve().parent.parent
TAKEN = ("cegppo", "analysis", "experiments", "sweeps", "pyproject.toml", "setup.py", "run.py", "README.md", "LICENSE")


def test_what_is_shipped_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert config.load("experiments/testbed.yaml")[0].experiment == "testbed"
    assert description.describe("sweeps/demo.yaml").name == "demo"
    assert main(["train", "experiments/testbe.yaml"]) == 2
    assert "experiments/testbe.yaml: no such file" in capsys.readouterr().err
    (tmp_path / "experiments").mkdir()  # a user's own of that name stands above it
    (tmp_path / "experiments" / "testbed.yaml").write_text("steps: 3\n")
    assert config.load("experiments/testbed.yaml")[0].steps == 3


@pytest.mark.parametrize("program, first", [("run.py", "python run.py train"), ("cegppo", "Start here: cegppo train")])
def test_help_names_the_command_it_was_asked_by(program, first):
    assert first in " ".join(parser(program).format_help().split())
    assert parser(program).format_usage().startswith(f"usage: {program} ")


class Elsewhere:
    """Runs commands with a wheel of this checkout on the path, in a folder of their own."""

    def __init__(self, root, wheel):
        self.root, self.wheel, self.work = root, wheel, root / "work"
        self.work.mkdir()

    def __call__(self, *words):
        env = {**os.environ, "PYTHONPATH": str(self.root / "there"), "WANDB_MODE": "disabled"}
        return subprocess.run(
            [str(word) for word in words], cwd=self.work, env=env, capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    root = tmp_path_factory.mktemp("wheel")
    (root / "source").mkdir()
    for name in TAKEN:  # a copy, so that nothing is built in the checkout
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", root, root / "source"], check=True)
    (wheel,) = root.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", root / "there", wheel], check=True)
    shutil.rmtree(root / "source")
    return Elsewhere(root, wheel)


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_works(elsewhere, tiny_text):
    root, command = elsewhere.root, elsewhere.root / "there" / "bin" / "cegppo"
    names = zipfile.ZipFile(elsewhere.wheel).namelist()
    assert not [name for name in names if "__pycache__" in name]
    beside = [p for folder in ("analysis", "experiments", "sweeps") for p in (ROOT / folder).rglob("*") if p.is_file()]
    wanted = {f"cegppo/beside/{p.relative_to(ROOT)}" for p in beside if "__pycache__" not in p.parts}
    assert wanted | {"cegppo/beside/run.py"} <= set(names)
    said = elsewhere(sys.executable, "-c", "import cegppo.cli, analysis; print(cegppo.cli.__file__, analysis.__file__)")
    assert all(path.startswith(str(root / "there")) for path in said.stdout.split()), said.stderr
    shown = elsewhere(command, "train", "experiments/testbed.yaml", "method=cegppo", "--print")
    assert shown.returncode == 0 and "loss.beta1: 0.5" in shown.stdout, shown.stderr
    (elsewhere.work / "tiny.yaml").write_text(tiny_text)
    done = elsewhere(command, "train", "tiny.yaml", "steps=1")
    assert done.returncode == 0 and "finished: results/tiny/grpo/seed0" in done.stdout, done.stderr
    meta = json.loads((elsewhere.work / "results" / "tiny" / "grpo" / "seed0" / "meta.json").read_text())
    assert meta["sessions"][0]["commit"].startswith("v") and meta["sessions"][0]["diff"] is None
    for words in (["report", "results/tiny/grpo/seed0"], ["list"]):
        done = elsewhere(command, *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_sweep_of_a_wheel_starts_its_runs(elsewhere, tiny_text):
    """Its processes find the same wheel; `python -m cegppo` is the same command."""
    (elsewhere.work / "tiny.yaml").write_text(tiny_text)
    sweep = "experiment: tiny.yaml\nvaries: [method, loss]\nseeds: [0]\narms: {grpo: {}}\n"
    (elsewhere.work / "two.yaml").write_text(sweep)
    done = elsewhere(sys.executable, "-m", "cegppo", "sweep", "two.yaml", "steps=1")
    assert done.returncode == 0 and "compare_two" in done.stdout, done.stderr
