"""What a mirror shows of a run, from the lines and files of its record: while they are written, and
once more for steps that a mirror has lost."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config, Wandb
from . import tables
from .files import read_lines
from .histograms import Columns, histograms, most_moving
from .mirror import Shown
from .seen import NAME as SEEN


def of_evaluation(rows: list[dict[str, Any]], mean: float) -> Shown:
    """Lines of eval.jsonl, one per benchmark, and their mean accuracy."""
    numbers = {"eval/mean": mean} if rows else {}  # one number for a wandb sweep to look at
    for row in rows:
        shares = {f"verdict/{v}": n / (row["n"] * row["k"]) for v, n in row["verdicts"].items()}
        own = {k: v for k, v in (row | shares).items() if isinstance(v, float)}
        numbers |= {f"eval/{row['benchmark']}/{k}": v for k, v in own.items()}
    return Shown(numbers)


def of_tokens(path: Path, columns: Columns, wandb: Wandb) -> Shown:
    """A token record, which is also in file `path`."""
    if not len(columns["step"]):
        return Shown()
    made = {"tables/tokens": most_moving(columns, wandb.token_rows)} if wandb.token_rows else {}
    return Shown({}, histograms(columns), made, (path,) if wandb.token_files else ())


def of_completions(rows: list[dict[str, Any]]) -> Shown:
    """Lines of completions/seen.jsonl: a table per benchmark, with one row per completion."""
    made: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        shared = {key: row[key] for key in ("step", "id", "prompt", "answer")}
        each = zip(row["completions"], row["verdicts"], row["finish"], row["tokens"])
        table = [shared | dict(zip(("completion", "verdict", "finish", "tokens"), one)) for one in each]
        made.setdefault(f"completions/{row['benchmark']}", []).extend(table)
    return Shown(tables={name: table for name, table in made.items() if table})


def recorded(folder: Path, last: int) -> set[int]:
    """The steps up to `last` that the run in `folder` has recorded."""
    rows = [*read_lines(folder / "metrics.jsonl"), *read_lines(folder / "eval.jsonl")]
    return {row["step"] for row in rows if row["step"] <= last}


def again(config: Config, folder: Path, steps: Set[int]) -> Iterator[tuple[int, Shown]]:
    """What the record in `folder` has of `steps`, in their order."""
    of = lambda name: [row for row in read_lines(folder / name) if row["step"] in steps]
    metrics, evaluations, seen = of("metrics.jsonl"), of("eval.jsonl"), of(SEEN)
    for step in sorted(steps):
        at = lambda rows, step=step: [row for row in rows if row["step"] == step]
        yield from ((step, Shown(row)) for row in at(metrics))
        if tests := at(evaluations):
            mean = float(np.mean([row[f"avg@{row['k']}"] for row in tests]))
            yield step, of_evaluation(tests, mean)
        yield step, of_completions(at(seen))
        path = folder / "tokens" / f"step{step:06d}.parquet"
        if path.is_file():
            yield step, of_tokens(path, tables.read(path), config.wandb)
