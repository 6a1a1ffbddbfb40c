"""What a configuration asks for beyond the defaults, read from docs/config.md, which is written
from the schema."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from . import arms

DOC = Path(__file__).resolve().parents[1] / "docs" / "config.md"
ROW = re.compile(r"\| `(?P<key>[^`]+)` \| (?:[^|\\]|\\.)* \| `(?P<default>.*)` \| (?P<doc>.*) \|")
NAMED = re.compile(r"### `(?P<section>\w+)\.name=(?P<name>\w+)`")
LISTS = ("data.train", "eval.benchmarks", "testbed.workers")  # said by the names in them
SAID = (
    "experiment",
    "arm",
    "seed",
    "results",
    "run_dir",
    "wandb.mode",
    "report",
)  # elsewhere on the page, or no matter
WIDEST = 160


@cache
def known() -> dict[str, tuple[Any, str]]:
    """(default, meaning) by key; a loss's and a controller's knobs as `loss.<name>.<knob>`. {}
    where there is no docs/config.md."""
    made: dict[str, tuple[Any, str]] = {"loss.name": ("ppo_clip", "")}
    made |= {f"{section}.name": ("none", "") for section in ("controller", "explore")}
    named = None
    for line in DOC.read_text(encoding="utf-8").splitlines() if DOC.is_file() else []:
        if line.startswith("#"):
            named = NAMED.match(line)
        elif found := ROW.fullmatch(line):
            key = found["key"]
            if named:
                key = f"{named['section']}.{named['name']}.{key.partition('.')[2]}"
            doc = re.sub(r"\\([|<])", r"\1", found["doc"])
            for part, value in arms.flat(json.loads(found["default"]), key).items():
                made.setdefault(part, (value, doc))
    return made


def asked(settings: dict[str, Any]) -> list[dict[str, str]]:
    """key, value, default and meaning, as text, of what differs from the defaults; the knobs of a
    loss, of a controller and of a rule of exploration always, since they are what is studied."""
    tree = {key: value for key, value in arms.flat(settings).items() if not arms.under(key, LISTS)}
    rows = []
    for key, value in tree.items():
        section, _, knob = key.partition(".")
        full = key
        if section in ("loss", "controller", "explore") and knob not in ("", "name"):  # "": of another framework
            full = f"{section}.{settings[section].get('name')}.{knob}"
        default, doc = known().get(full, (None, ""))
        empty = full not in known() and value in (None, "", [], {})
        if key not in SAID and not empty and (value != default or full != key):
            said = _said(default) if full in known() else ""
            rows.append({"key": key, "value": _said(value), "default": said, "doc": doc})
    for key in LISTS:
        section, _, name = key.partition(".")
        items = settings.get(section, {}).get(name) if isinstance(settings.get(section), dict) else None
        if items:
            names = [str(i.get("name") or i.get("hub") or i.get("file") or i.get("task") or "…") for i in items]
            rows.append({"key": key, "value": ", ".join(names), "default": "", "doc": known().get(key, (None, ""))[1]})
    return rows


def _said(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
