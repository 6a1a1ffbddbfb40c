"""A pack: the records of a sweep's finished runs in three files, without loss (docs/record.md).

    runs.jsonl           a line a run: arm, seed, config, meta; `like` names the run whose
                         configuration it shares but for the sections that its `config` has
    metrics.parquet      a row a line of the runs' metrics.jsonl
    evaluations.parquet  a row a line of their eval.jsonl

In the parquet, `_run` says whose line it is ("grpo/seed0"), `_keys` the line's keys in their order
(JSON), so that null and absent differ, and each key is a column: whole numbers as int64, others as
float64, everything else, mixed columns too, as JSON text. The lines come back byte for byte.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..types import BadInput
from . import tables
from .files import as_lines, read_lines, whole, write_whole
from .names import run_name

RUNS, METRICS, EVALUATIONS = "runs.jsonl", "metrics.parquet", "evaluations.parquet"
_RUN, _KEYS = "_run", "_keys"
Lines = list[dict[str, Any]]


def name_of(folder: Path) -> str:
    """What a pack calls the run in `folder`: arm/seed."""
    return f"{folder.parent.name}/{folder.name}"


def runs(sweep: Path) -> dict[str, dict[str, Any]]:
    """The lines of runs.jsonl by name of the run, each with its whole configuration."""
    return _read(_read_runs, sweep / RUNS)


def lines(path: Path) -> dict[str, Lines]:
    """The lines of a pack's parquet file by name of the run; {} when there is no file."""
    return _read(_read_lines, path)


def _read(read: Any, path: Path) -> dict[str, Any]:
    """What `read` makes of `path`, read once for as long as the file stays the same."""
    if not path.is_file():
        return {}
    status = path.stat()
    return read(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read_runs(path: Path, *_: int) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}: line {number}"
        name, like = run_name(line.get("arm"), line.get("seed"), where), line.pop("like", None)
        if like is not None and like not in made:
            raise BadInput(f"{where}: is like {like!r:.80}, which no line before it is")
        if not isinstance(line.get("config"), dict) or not isinstance(line.get("meta"), dict):
            raise BadInput(f"{where}: 'config' and 'meta' are mappings")
        made[name] = line | {"config": (made[like]["config"] if like else {}) | line["config"]}
    return made


@lru_cache(maxsize=8)
def _read_lines(path: Path, *_: int) -> dict[str, Lines]:
    columns = {name: values.tolist() for name, values in tables.read(path).items()}
    made: dict[str, Lines] = {}
    try:
        for name in set(columns) - {_RUN, _KEYS}:
            columns[name] = [json.loads(cell) if isinstance(cell, str) else cell for cell in columns[name]]
        for n, (run, keys) in enumerate(zip(columns[_RUN], columns[_KEYS])):
            made.setdefault(run, []).append({key: columns[key][n] for key in json.loads(keys)})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    return made


def write_runs(sweep: Path, rows: Iterable[dict[str, Any]]) -> None:
    """runs.jsonl: the lines that `runs` gives."""
    written: Lines = []
    first: dict[str, Any] | None = None
    for row in rows:
        if first is None:
            first = row
        elif json.dumps(first["config"] | (rest := _other(row, first))) == json.dumps(row["config"]):
            row = {"arm": row["arm"], "seed": row["seed"], "like": f"{first['arm']}/seed{first['seed']}"} | {
                "config": rest,
                "meta": row["meta"],
            }
        written.append(row)
    write_whole(sweep / RUNS, as_lines(written))


def _other(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """The sections of `row`'s configuration that are not as in `first`'s (1 is not 1.0)."""
    same = lambda key, value: key in first["config"] and json.dumps(first["config"][key]) == json.dumps(value)
    return {key: value for key, value in row["config"].items() if not same(key, value)}


def write_lines(path: Path, by_run: dict[str, Lines]) -> None:
    """A parquet file of JSON lines, which `lines` gives back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [(run, row) for run, rows in by_run.items() for row in rows]
    columns = {
        _RUN: pa.array([run for run, _ in flat], pa.string()),
        _KEYS: pa.array([json.dumps(list(row), ensure_ascii=False) for _, row in flat], pa.string()),
    }
    for key in dict.fromkeys(key for _, row in flat for key in row):
        columns[key] = _column([row.get(key) for _, row in flat])
    floats = [name for name, column in columns.items() if column.type == pa.float64()]
    with whole(path) as unfinished:
        pq.write_table(
            pa.table(columns), unfinished, compression="zstd", compression_level=19,
            use_byte_stream_split=floats, use_dictionary=[name for name in columns if name not in floats],
        )  # fmt: skip


def _column(values: list[Any]) -> Any:
    """The values of a key as an arrow array."""
    import pyarrow as pa

    types = {type(value) for value in values if value is not None}
    if types <= {float}:
        return pa.array(values, pa.float64())
    if types == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pa.array(values, pa.int64())
    return pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values], pa.string())
