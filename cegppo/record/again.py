"""A run made again from its record alone: its configuration in a folder of its own, what is not as
it was then, and whether the same came out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, as_override
from ..types import BadInput
from .provenance import changed, session
from .read import packed, read_config, read_evaluations, read_meta, read_metrics

LINES = {
    "metrics.jsonl": (read_metrics, lambda row: f"step {row['step']}"),
    "eval.jsonl": (read_evaluations, lambda row: f"step {row['step']}, {row['benchmark']}"),
}


def config_again(folder: Path, overrides: Sequence[str]) -> Config:
    """The configuration that run `folder` recorded, in a folder of its own: `again-<name>-<n>`
    beside it, unless the overrides name one. Raises BadInput: there is no such run, or an override
    makes it another run."""
    if not packed(folder) and not (folder / "meta.json").is_file():
        raise BadInput(f"{folder}: no run there (it has no meta.json)")
    recorded = read_config(folder)
    placed = any(item.split("=")[0] in ("run_dir", "results") for item in overrides)
    made = read_config(folder, [as_override("run_dir", "" if placed else str(_beside(folder))), *overrides])
    before, now = recorded.identity(), made.identity()
    if other := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
        raise BadInput(f"command line: --from runs {folder} again, and with another {other[0]} it is another run")
    if made.folder.resolve() == folder.resolve():
        raise BadInput(f"command line: {made.folder} is the run itself; choose another run_dir")
    return made


def _beside(folder: Path) -> Path:
    """The last `again-<name>-<n>` if it is not finished, so that the same command goes on; else the
    next."""
    number = 1
    while read_meta(there := folder.with_name(f"again-{folder.name}-{number}")).get("status") == "finished":
        number += 1
    return there


def say_what_differs(folder: Path) -> None:
    """On stderr, a line for each: what of code, versions and machine is not what it was when run
    `folder` was last started."""
    for line in differences(read_meta(folder).get("sessions", []), session()):
        print(f"{folder}: {line}", file=sys.stderr)


def differences(sessions: list[dict[str, Any]], now: dict[str, Any]) -> list[str]:
    """What of code, versions and machine differs between the last of `sessions` and `now`; and that
    is not known, or was not one thing then."""
    if not sessions:
        return ["its record does not say what made it"]
    made, then = [], sessions[-1]
    if any(changed(one, other) for one, other in zip(sessions, sessions[1:])):
        made.append("it was itself made by more than one state of the code")
    if what := changed(then, now):
        made.append(f"the code is not what it was: {what}")
    flat = lambda it: {k: it.get(k) for k in ("python", "machine", "host", "ranks")} | it.get("versions", {})
    before, after = flat(then), flat(now)
    made += [f"{key} was {before[key]}, is now {after.get(key)}" for key in before if before[key] != after.get(key)]
    return made


def comparison(source: Path, folder: Path) -> list[str]:
    """Lines that say whether the run in `folder` began with what `source` did and logged what it
    did, bit for bit but for times; and where it first did not."""
    then, now = read_meta(source), read_meta(folder)
    began = {"starting model": "start_model", "starting weights": "start_weights", "reward rule": "reward_rule"}
    made = [
        f"its {words} was {then[key]}, is now {now.get(key)}"
        for words, key in began.items()
        if key in then and then[key] != now.get(key)
    ]
    for name, (read, place) in LINES.items():
        pairs = list(zip(read(source), read(folder)))
        first = next(((place(a), *d) for a, b in pairs if (d := _first_difference(a, b))), None)
        if not pairs:
            continue
        if first is None:
            made.append(f"{name}: {len(pairs)} of {len(read(source))} lines are the same, bit for bit")
        else:
            made.append(f"{name}: first difference at {first[0]}: {first[1]} was {first[2]}, is now {first[3]}")
    return made


def _first_difference(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, Any, Any] | None:
    keys = [key for key in dict.fromkeys([*a, *b]) if not key.startswith("time/")]
    return next(((key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)), None)
