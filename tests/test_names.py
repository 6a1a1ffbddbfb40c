"""Names are text: what takes text is never read as YAML's number, truth value or comment."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cegppo import config
from cegppo.config.checks import MOST_BYTES
from cegppo.config.reading import TRUTH, as_text, of_yaml
from cegppo.sweep import description
from cegppo.types import BadInput

ROOT = Path(__file__).resolve().parent.parent
TESTBED = ROOT / "experiments" / "testbed.yaml"


@pytest.mark.parametrize(
    "item, key, value",
    [
        ("data.suffix= Think step by step.", "data.suffix", " Think step by step."),
        ("data.suffix=\nThink.", "data.suffix", "\nThink."),
        ("data.suffix= (A) # choose", "data.suffix", " (A) # choose"),
        ("data.suffix= Answer:", "data.suffix", " Answer:"),
        ('data.suffix="\\nThink."', "data.suffix", "\nThink."),
        ("data.suffix='it''s'", "data.suffix", "it's"),
        ('data.suffix="so', "data.suffix", '"so'),
        *(
            (f"arm={name}", "arm", name)
            for name in ("010", "1_000", "12:30", "0x10", "1.10", "1e3", ".5", "null", "~", "[a]")
        ),
        ("model.path=007", "model.path", "007"),
        ("experiment=2024_06", "experiment", "2024_06"),
    ],
)
def test_what_takes_text_takes_it_as_it_stands_there(item, key, value):
    loaded, _ = config.load(TESTBED, [item])
    for part in key.split("."):
        loaded = getattr(loaded, part)
    assert loaded == value


def test_names_within_a_list_on_the_command_line():
    loaded, _ = config.load(TESTBED, ["data.train=[{hub: x/y, subset: 2024_06, split: 010, weight: 2}]"])
    (source,) = loaded.data.train
    assert (source.subset, source.split, source.weight) == ("2024_06", "010", 2.0)


@pytest.mark.parametrize(
    "item, part",
    [
        ("steps=010", "steps: 010 is 8 in YAML, octal; write it without the leading 0"),
        ("rollout.temperature=1:30", "rollout.temperature: 1:30 is 90 in YAML, to the base of 60"),
        ("loss.eps_low=1:30", "loss: 1:30 is 90 in YAML"),
        ("data.train=[{task: gcd, params: {max_value: 010}}]", "010 is 8 in YAML, octal"),
        ("arm=on", "arm: takes a text, and this is a truth value in YAML; put it in quotes"),
        ("steps.x=1", "steps"),
    ],
)
def test_numbers_that_hardly_anybody_means(item, part):
    with pytest.raises(BadInput) as error:
        config.load(TESTBED, [item])
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("item, value", [("steps=1_000", 1000), ("steps=0x10", 16), ("steps=0", None), ("steps=08", 8)])
def test_numbers_that_are_meant(item, value):
    if value is None:
        with pytest.raises(BadInput, match="at least 1"):
            config.load(TESTBED, [item])
    else:
        assert config.load(TESTBED, [item])[0].steps == value


def sweep_file(folder: Path, arms: str) -> Path:
    file = folder / "names.yaml"
    file.write_text(f"experiment: {TESTBED}\nseeds: [0]\nvaries: [loss]\narms:\n{arms}", encoding="utf-8")
    return file


def test_no_arm_is_lost(tmp_path):
    named = {"1.1": 0.3, "1.10": 0.5, "1_000": 0.6, "1e3": 0.7}
    arms = "".join(f"  {name}: {{loss.eps_high: {value}}}\n" for name, value in named.items())
    runs = description.expand(description.describe(sweep_file(tmp_path, arms), [f"results={tmp_path}"])).runs
    assert {run.arm: run.config.loss["eps_high"] for run in runs} == named
    assert all(config.load(TESTBED, run.overrides)[0].arm == run.arm == run.folder.parent.name for run in runs)


def test_arms_of_one_name_are_refused(tmp_path):
    with pytest.raises(BadInput, match="not valid YAML"):
        description.describe(sweep_file(tmp_path, "  1.1: {loss.eps_high: 0.3}\n  1.1: {loss.eps_high: 0.5}\n"))


def test_the_sweep_files_own_numbers(tmp_path):
    file = sweep_file(tmp_path, "  a: {}\n")
    file.write_text(file.read_text().replace("seeds: [0]", "seeds: [010]"))
    with pytest.raises(BadInput, match="seeds: 010 is 8 in YAML, octal"):
        description.describe(file)


# What a file system takes as the name of a folder, and results/ too.
NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\\\0"), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=NAMES)
@example(" a ")
@example("1_000")
@example("12:30")
@example("'a")
@example('"a"')
@example("- a")
@example("{a: 1}")
@example("a: b # c")
@example("\u2028")
@example("&x")
@example("$x_$")
@example("2024-06-01")
@example("\x85\ufeff")
def test_any_name_comes_out_as_it_went_in(tmp_path_factory, name):
    assume(name not in (".", "..", "???") and "${" not in name and name.lower() not in TRUTH)
    assume(len(name.encode()) <= MOST_BYTES)
    folder = tmp_path_factory.mktemp("names")
    by_word, _ = config.load(TESTBED, [config.as_override("arm", name), config.as_override("data.suffix", name)])
    assert by_word.arm == by_word.data.suffix == name
    if name[0] not in "\"'":  # without quotes, as it is typed
        assert config.load(TESTBED, [f"arm={name}"])[0].arm == name
    (folder / "config.yaml").write_text(config.as_yaml(by_word), encoding="utf-8", newline="")
    again = config.resolved(folder / "config.yaml")
    assert again == by_word
    arms = yaml.safe_dump({name: {"loss.eps_high": 0.3}, "other": {}}, allow_unicode=True)
    text = "".join(f"  {line}\n" for line in arms.split("\n")) if len(arms.split("\n")) == 3 else None
    if text and name != "other" and not any(c in name for c in "\n\r\x85\u2028\u2029"):
        file = sweep_file(folder, text)
        runs = description.expand(description.describe(file, [f"results={folder}"])).runs
        assert runs[0].arm == name and config.load(TESTBED, runs[0].overrides)[0].arm == name


def test_numbers_remember_how_they_are_written():
    read = of_yaml("{a: 1_000, b: 1.10, 010: 1e-5, c: x, d: true}")
    assert read == {"a": 1000, "b": 1.1, "010": 1e-5, "c": "x", "d": True}
    assert [as_text(value) for value in read.values()] == ["1_000", "1.10", "1e-5", "x", True]


def test_print_shows_the_text(tmp_path):
    done = subprocess.run(
        [sys.executable, "run.py", "train", str(TESTBED), "--print", "arm=010", "data.suffix= Think."],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'arm: "010"' in done.stdout and 'data.suffix: " Think."' in done.stdout
