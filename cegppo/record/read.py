"""What a run recorded, wherever it is: in its folder, in its sweep's pack, or in the run that it
was taken from.

A folder with a meta.json is live and speaks for itself. Else the pack beside it speaks
(pack.py), and what lies in the folder (checkpoints, tokens) goes with that. A run that stands for
another has `taken_from` in its meta.json, and no metrics of its own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, read_yaml, resolved
from ..types import BadInput
from . import pack
from .files import read_bytes, read_lines, refuse_aliases
from .names import run_beside, seed_of

META = 2**26  # bytes of a meta.json: thousands of sessions


def packed(folder: Path) -> dict[str, Any] | None:
    """The pack's line (arm, seed, config, meta) of the run in `folder`; None for a live run, or
    where there is none."""
    if (folder / "meta.json").is_file():
        return None
    return pack.runs(folder.parent.parent).get(pack.name_of(folder))


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a run; {} when there is none. Raises BadInput: it is damaged."""
    if (line := packed(folder)) is not None:
        return line["meta"]
    try:
        made = json.loads(read_bytes(folder / "meta.json", META))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        made = None
    wrong = "no JSON object" if not isinstance(made, dict) else _misshapen(made)
    if wrong:  # it is only ever replaced whole
        raise BadInput(f"{folder / 'meta.json'}: damaged ({wrong}); bring it back, or move it away")
    return made


def _misshapen(meta: dict[str, Any]) -> str:
    """What of a meta.json is of another kind than is ever written; "" for a good one."""
    kinds: dict[str, type] = {
        "status": str,
        "steps": int,
        "sessions": list,
        "taken_from": str,
        "start": str,
        "forked_from": dict,
    }
    wrong = [
        f"'{key}' is no {kind.__name__}" for key, kind in kinds.items() if not isinstance(meta.get(key, kind()), kind)
    ]
    sessions = meta.get("sessions", [])
    if not wrong and not all(isinstance(s, dict) and isinstance(s.get("versions", {}), dict) for s in sessions):
        wrong.append("'sessions' holds what is no session")
    return ", ".join(wrong)


def read_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run, with overrides. Raises BadInput."""
    line = packed(folder)
    return resolved(folder / "config.yaml", overrides, line["config"] if line else recorded_yaml(folder))


def recorded_yaml(folder: Path) -> dict[str, Any]:
    """What config.yaml of a live run says. Raises BadInput."""
    path = folder / "config.yaml"
    if path.is_file():
        refuse_aliases(read_bytes(path, META).decode(errors="replace"), path)
    return read_yaml(path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises BadInput when the run it was taken from is
    gone."""
    return _lines(folder, "metrics.jsonl", pack.METRICS)


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's eval.jsonl. Raises BadInput as `read_metrics`."""
    return _lines(folder, "eval.jsonl", pack.EVALUATIONS)


def _lines(folder: Path, live: str, kept: str) -> list[dict[str, Any]]:
    found = source(folder)
    name = pack.name_of(found)
    rows = pack.lines(found.parent.parent / kept).get(name, []) if packed(found) else read_lines(found / live)
    if found == folder:
        return rows
    steps = read_meta(folder).get("steps", 0)  # what it was taken from may have gone on since
    return [row for row in rows if row["step"] <= steps]


def taken_from(folder: Path) -> Path | None:
    """The run that the run in `folder` was taken from; None for a run that was made there."""
    named = read_meta(folder).get("taken_from")
    return run_beside(folder, named) if named else None


def source(folder: Path) -> Path:
    """Where the metrics of the run in `folder` are: there, or in the run that it was taken from.
    Raises BadInput when that is gone."""
    seen = [folder]
    while (there := taken_from(seen[-1])) and not _has_own(seen[-1]):
        if there in seen or not read_meta(there):
            raise BadInput(
                f"{seen[-1]} was taken from {there}, which is not there any more; bring it back, or choose another"
                " root with results=DIR"
            )
        seen.append(there)
    return seen[-1]


def run_folders(sweep: Path) -> list[Path]:
    """The folders of a sweep's runs, live or in its pack (then without a folder, or with what is
    left of it)."""
    live = [folder for folder in sweep.glob("*/seed*") if seed_of(folder.name) is not None]
    return sorted({*live, *(sweep / name for name in pack.runs(sweep))})


def _has_own(folder: Path) -> bool:
    """Whether the run has metrics of its own."""
    if packed(folder):
        return pack.name_of(folder) in pack.lines(folder.parent.parent / pack.METRICS)
    return (folder / "metrics.jsonl").is_file()
