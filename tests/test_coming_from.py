"""docs/coming-from.md: every name of ours in it exists, and every key that the sweeps say in verl's
words stands there."""

import dataclasses
import re
from pathlib import Path

import pytest

from cegppo import config, losses
from cegppo.config import flatten
from cegppo.config.schema import Config
from cegppo.sweep import description, verl
from cegppo.types import BadInput

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "coming-from.md").read_text()
FILES = {"eval.jsonl"}


def tables() -> list[tuple[str, list[list[str]]]]:
    """(the head's first cell, rows of cells) of each table."""
    made: list[tuple[str, list[list[str]]]] = []
    for line in TEXT.splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[1] == "here":
            made.append((cells[0], []))
        elif not set(cells[0]) <= set("-"):
            made[-1][1].append(cells)
    return made


def names(cell: str) -> list[str]:
    """What a cell of ours quotes, `a=b c=d` taken apart; `.top_p` after `rollout.temperature` is
    `rollout.top_p`."""
    found: list[str] = []
    for quoted in re.findall(r"`([^`]+)`", cell):
        for item in quoted.replace("\\|", "|").split():
            section = found[-1].partition("=")[0].rpartition(".")[0] if found else ""
            found.append(section + item if item.startswith(".") else item)
    return found


KEYS = {item for head, rows in tables() if "metric" not in head for row in rows for item in names(row[1])}
METRICS = {item for head, rows in tables() if "metric" in head for row in rows for item in names(row[1])}


def test_the_tables_are_read():
    heads = [head for head, _ in tables()]
    assert heads[:4] == ["verl", "verl's metric", "OpenRLHF", "OpenRLHF's metric"] and len(heads) == 6
    assert {"prompts_per_step", "update.aggregate=sequence", "rollout.top_k"} <= KEYS and "clip/low" in METRICS


@pytest.mark.parametrize("item", sorted(KEYS - FILES))
def test_every_key_of_ours_exists_and_takes_the_value(item):
    key, equals, value = item.partition("=")
    knobs = {f"loss.{f.name}" for name in losses.names() for f in dataclasses.fields(losses.load(name).Params)}
    sections = {key.partition(".")[0] for key in flatten(Config().to_dict())}
    assert key in {*flatten(Config().to_dict()), *knobs, *sections, *description.KEYS}, f"no key '{key}'"
    if not equals or value in ("…", "path.py:function"):
        return
    for one in value.split("|"):
        try:
            config.load(ROOT / "experiments" / "testbed.yaml", [f"{key}={one}"])
        except BadInput as error:  # a value that exists may not go with the testbed
            assert "unknown" not in str(error), error


def glossary() -> set[str]:
    """The names of docs/metrics.md, `{a,b}` written out."""
    known = set()
    for entry in re.findall(r"`([a-z0-9_/{},]+)`", (ROOT / "docs" / "metrics.md").read_text()):
        head, brace, rest = entry.partition("{")
        options, _, tail = rest.partition("}")
        known |= {head + option + tail for option in options.split(",")} if brace else {entry}
    return known


def test_every_metric_of_ours_is_in_the_glossary():
    assert METRICS - FILES <= glossary()


def test_what_a_sweep_says_in_verls_keys_stands_in_verls_table():
    loaded, _ = config.load(ROOT / "experiments" / "paper" / "7b_text.yaml", ["method=cegppo"])
    text = TEXT.partition("## From OpenRLHF")[0]
    assert {key.rpartition(".")[2] for key in verl.items(loaded, 8)} - set(re.findall(r"\w+", text)) == NOT_OURS


# Of verl's and of its run, without a key of ours that a person would look for.
NOT_OURS = {
    "_target_", "data_loader_seed", "do_sample", "experiment_name",
    "external_lib", "knobs", "logger", "project_name", "strategy",
    "total_epochs", "use_dynamic_bsz",
}  # fmt: skip
