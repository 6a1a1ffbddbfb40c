"""`run.py list` and `run.py diff`: which runs there are, and in what two configurations differ."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from . import load

SILENT = 10  # steps' time without a line, and a minute, after which a run is called silent
ABSENT = "—"
EMPTY: tuple[Any, ...] = (None, "", [], {})
WIDEST = 60  # a longer cell pushes the rest of its line aside
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def text(folder: Path) -> str:
    """A line an arm of everything under `folder`, or a line a run where it is a sweep, an arm or a
    run; then a line for each record that is damaged. Raises Missing: there is no run."""
    now, damaged = time.time(), list[str]()
    if found := load.runs_at(folder):
        rows = [[str(run), *_columns([_facts(run, now, damaged)])] for run in found]
        return _aligned([["run", "state", "step", "score", "age", "kept"], *rows], damaged)
    by_arm: dict[Path, list[dict[str, Any]]] = {}
    for sweep in load.sweeps(folder):
        try:
            runs_of_sweep = load.run_folders(sweep)
        except load.Missing as error:
            damaged.append(f"damaged: {error}")
            continue
        for run in runs_of_sweep:
            by_arm.setdefault(run.parent, []).append(_facts(run, now, damaged))
    if not by_arm and not damaged:
        raise load.Missing(f"{folder}: no runs there (<experiment>/<arm>/seed<k>)")
    rows = [[str(arm.relative_to(folder)), str(len(runs)), *_columns(runs)] for arm, runs in by_arm.items()]
    return _aligned([["arm", "runs", "state", "step", "score", "age", "kept"], *rows], damaged)


def _facts(folder: Path, now: float, damaged: list[str]) -> dict[str, Any]:
    """state, step, steps asked for, score, seconds since its last sign of life, kept how. Of a
    damaged record these are empty, and `damaged` gets a line that says what is wrong."""
    try:
        with load.undamaged(folder):
            return _read(folder, now)
    except load.Missing as error:
        damaged.append(f"damaged: {error}")
        return {"state": "damaged", "step": 0, "steps": None, "score": None, "age": None, "kept": "live"}


def _read(folder: Path, now: float) -> dict[str, Any]:
    meta, settings = load.meta(folder), load.settings(folder)
    live = (folder / "meta.json").is_file() or not meta
    state = str(meta.get("status", "foreign" if (folder / "foreign.yaml").is_file() else "not begun"))
    step, seconds = meta.get("steps", 0), 0.0
    if state != "finished" or "steps" not in meta:
        metrics = load.run(folder)
        step = 0 if metrics.empty else int(metrics["step"].max())
        seconds = float(metrics["time/step"].iloc[-1]) if "time/step" in metrics else 0.0
    signs = [path.stat().st_mtime for path in (folder / "metrics.jsonl", folder / "meta.json") if path.is_file()]
    if state != "running" and "end" in meta:
        signs = [datetime.fromisoformat(meta["end"]).timestamp()]
    age = now - max(signs) if signs else None
    if state == "running" and age is not None and age > 60 + SILENT * seconds:
        state = "silent"
    return {
        "state": state,
        "step": step,
        "steps": steps if isinstance(steps := settings.get("steps"), int) else None,
        "score": _score(folder),
        "age": age,
        "kept": "live" if live else "packed",
    }


def _score(folder: Path) -> float | None:
    """Mean accuracy of the benchmarks at the last evaluation; None without one."""
    tests = load.evaluated(folder)
    return None if tests.empty else float(tests[tests["step"] == tests["step"].max()]["accuracy"].mean())


def _columns(runs: list[dict[str, Any]]) -> list[str]:
    """state, step, score, age, kept of one run, or of the runs of an arm."""
    counted = lambda key: [(v, sum(run[key] == v for run in runs)) for v in dict.fromkeys(run[key] for run in runs)]
    words = lambda key: ", ".join(v if len(counted(key)) == 1 else f"{n} {v}" for v, n in counted(key))
    span = lambda values: "–".join(map(str, sorted({min(values), max(values)})))
    asked = [run["steps"] for run in runs if run["steps"] is not None]
    scores = [run["score"] for run in runs if run["score"] is not None]
    ages = [run["age"] for run in runs if run["age"] is not None]
    return [
        words("state"),
        span([run["step"] for run in runs]) + (f"/{span(asked)}" if asked else ""),
        f"{sum(scores) / len(scores):.3f}" if scores else "",
        ago(min(ages)) if ages else "",
        words("kept"),
    ]


def ago(seconds: float) -> str:
    """Seconds in the largest unit that they fill: 3 h."""
    return next((f"{int(seconds // size)} {unit}" for unit, size in UNITS if seconds >= size), "0 s")


def _aligned(rows: list[list[str]], below: Sequence[str] = ()) -> str:
    widths = [max((len(row[n]) for row in rows if len(row[n]) <= WIDEST), default=0) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *below])


def settings(folder: Path) -> dict[str, Any]:
    """The configuration of a run, or of an arm's first run. Raises Missing."""
    found = load.runs_at(folder)
    if len({run.parent for run in found}) > 1:
        raise load.Missing(
            f"{folder}: holds several arms; name one of {', '.join(sorted({r.parent.name for r in found}))}"
        )
    with load.undamaged(folder):
        if not found or not load.settings(found[0]):
            raise load.Missing(f"{folder}: no run there with a configuration")
        return load.settings(found[0])


def difference(names: tuple[str, str], trees: tuple[dict[str, Any], dict[str, Any]]) -> str:
    """The keys in which two configurations differ, with both values; — where one does not have the
    key. What is alike in every item of a list is said once, for `[*]`."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for key, one, other in _differing("", *trees):
        rows.setdefault((re.sub(r"\[[^\]]*\]", "[*]", key), one, other), []).append(key)
    made = [[every if len(keys) > 1 else keys[0], one, other] for (every, one, other), keys in rows.items()]
    return _aligned([["key", *names], *made]) if made else "no difference"


def _differing(key: str, one: Any, other: Any) -> Iterator[tuple[str, str, str]]:
    """(key, value, value) of what differs. An empty value is no other than a key that is not there,
    which may be younger than the configuration."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys((*one, *other)):
            below = f"{key}.{name}" if key else str(name)
            yield from _differing(below, one.get(name, ABSENT), other.get(name, ABSENT))
    elif (ours := _by_name(one)) is not None and (theirs := _by_name(other)) is not None:
        for name in dict.fromkeys((*ours, *theirs)):
            yield from _differing(f"{key}[{name}]", ours.get(name, ABSENT), theirs.get(name, ABSENT))
    elif one != other and not (ABSENT in (one, other) and all(v in (*EMPTY, ABSENT) for v in (one, other))):
        yield key, _said(one), _said(other)


def _by_name(value: Any) -> dict[str, Any] | None:
    """The items of a list by their names, each with its own; None for any other value."""
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) and v.get("name") for v in value):
        return None
    made = {str(item["name"]): item for item in value}
    return made if len(made) == len(value) else None


def _said(value: Any) -> str:
    """A value in one line, without what is empty in it."""
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if v not in EMPTY}
    return value if value is ABSENT else json.dumps(value, ensure_ascii=False)
