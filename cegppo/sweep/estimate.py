"""How long a sweep will take, by what the same work took before: read from recorded runs, or not
known."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from ..config import Config, flatten
from ..record.read import read_config, read_meta, run_folders
from ..types import BadInput

# What a step and an evaluation cost. The method is not among it: an arm's own runs are asked first.
COST = (
    "model.path", "model.dtype", "testbed.hidden", "testbed.layers", "prompts_per_step", "group_size",
    "updates_per_step", "rollout.engine", "rollout.max_tokens", "advantage.kind", "diagnostics.every",
    "diagnostics.parts", "eval_every", "eval.k", "eval.size", "eval.limit",
)  # fmt: skip


def text(todo: Sequence[tuple[Config, int]], sweeps: Sequence[str], workers: int) -> str:
    """One line about the runs `todo` (configuration, steps that are left), from the finished runs
    of `sweeps` (names under the same root)."""
    if not todo:
        return "nothing to run"
    recorded = _recorded(Path(todo[0][0].results), sweeps)
    if not recorded:
        return f"time: unknown; no finished run of {' or '.join(sweeps)} is recorded"
    total, used, other = 0.0, set(), set()
    for config, steps in todo:
        cost = _cost(config)
        differ = {row[0]: {key for key in COST if row[1][key] != cost[key]} for row in recorded}
        least = min(map(len, differ.values()))
        alike = [row for row in recorded if len(differ[row[0]]) == least]
        mine = [row for row in alike if row[0].parent.name == config.arm] or alike
        total += steps * median(row[2] for row in mine)
        used |= {(row[0], row[3]) for row in mine}
        other |= {key for row in mine for key in differ[row[0]]}
    machines = "; ".join(sorted({machine for _, machine in used}))
    return (
        f"time: about {_words(total / min(workers, len(todo)))} with {workers} at a time, by {len(used)} recorded runs"
        f" ({machines})" + (f", which have another {', '.join(sorted(other))}" if other else "")
    )


def _cost(config: Config) -> dict[str, Any]:
    values = flatten(config.to_dict())
    return {key: values.get(key) for key in COST}


def _recorded(results: Path, sweeps: Sequence[str]) -> list[tuple[Path, dict[str, Any], float, str]]:
    """(folder, cost, seconds a step, machine) of finished runs; loading and evaluations count."""
    made = []
    for folder in [folder for name in sweeps for folder in run_folders(results / name)]:
        meta = read_meta(folder)
        spans = [(s.get("start"), s.get("end")) for s in meta.get("sessions", ())]
        known = all(start and end for start, end in spans)
        if meta.get("status") != "finished" or "taken_from" in meta or not spans or not known or not meta.get("steps"):
            continue
        try:
            cost = _cost(read_config(folder))
            took = [
                (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in spans
            ]
        except (BadInput, TypeError, ValueError):  # of a version that knew other keys; no times
            continue
        if min(took) < 0:  # the clock was set back meanwhile
            continue
        seconds = sum(took)
        made.append((folder, cost, seconds / meta["steps"], meta["sessions"][-1].get("machine", "unknown machine")))
    return made


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
