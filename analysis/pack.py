"""A sweep's pack, read: runs.jsonl and the parquet beside it. docs/record.md has the format;
cegppo/record/pack.py writes it on the other side of the wall."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

RUNS, METRICS, EVALUATIONS = "runs.jsonl", "metrics.parquet", "evaluations.parquet"


def runs(sweep: Path) -> dict[str, dict]:
    """arm, seed, config and meta of a pack's runs, by arm/seed<k>; {} when there is no pack."""
    return _read(_runs, sweep / RUNS)


def lines(path: Path) -> dict[str, list[dict]]:
    """The lines of metrics.jsonl or eval.jsonl of a pack's runs, by arm/seed<k>, from `path`."""
    return _read(_lines, path)


def _read(read: Callable[..., dict], path: Path) -> dict:
    """What `read` makes of `path`, read once for as long as the file stays the same."""
    if not path.is_file():
        return {}
    status = path.stat()
    return read(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _runs(path: Path, *_: int) -> dict[str, dict]:
    made: dict[str, dict] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        shared = made[line.pop("like")]["config"] if "like" in line else {}
        made[f"{line['arm']}/seed{line['seed']}"] = line | {"config": shared | line["config"]}
    return made


@lru_cache(maxsize=8)
def _lines(path: Path, *_: int) -> dict[str, list[dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for name in set(columns) - {"_run", "_keys"}:
        if pa.types.is_string(table[name].type):  # JSON text
            columns[name] = [None if text is None else json.loads(text) for text in columns[name]]
    made: dict[str, list[dict]] = {}
    for n, (run, keys) in enumerate(zip(columns["_run"], columns["_keys"])):
        made.setdefault(run, []).append({key: columns[key][n] for key in json.loads(keys)})
    return made
