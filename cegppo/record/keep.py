"""The finished runs of a sweep into its pack, and out of it again."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..config import dump, nearest
from ..types import BadInput
from . import pack
from .files import as_lines, as_page, lock, read_bytes, read_lines, replacing, write_whole
from .names import is_linked
from .read import packed, read_evaluations, read_meta, read_metrics, recorded_yaml, run_folders, source, taken_from

FILES = ("meta.json", "metrics.jsonl", "eval.jsonl", "config.yaml", ".lock")  # meta.json first: see read.py
PARTS = {"metrics.jsonl": pack.METRICS, "eval.jsonl": pack.EVALUATIONS}


class NotKept(Exception):
    """Why a run stays as it is."""


def sweep_folder(name: str, results: str) -> Path:
    """The folder that `keep` is asked for: a sweep file, a sweep's name, or its folder. Raises
    BadInput."""
    path = Path(name)
    found = path if path.is_dir() else Path(results) / path.stem if path.suffix == ".yaml" else Path(results) / name
    if not found.is_dir():
        known = [p.name for p in Path(results).iterdir() if p.is_dir()] if Path(results).is_dir() else []
        raise BadInput(f"{found}: no such folder{nearest(path.stem, known) if known else ''}")
    if not run_folders(found):
        raise BadInput(f"{found}: no runs there (<arm>/seed<k>)")
    return found


def keep(sweep: Path) -> Iterator[str]:
    """Move the records of the finished runs of `sweep` into its pack; lines that say what was done.

    Nothing is removed before the whole new pack is on the disk and read back as it went in.
    Checkpoints, tokens, completions and whatever else a folder holds stay; an empty folder goes.
    """
    with ExitStack() as held:
        held.enter_context(lock(sweep / ".lock", f"{sweep}: another live process is keeping it"))
        taken: dict[Path, dict[str, Any]] = {}
        refused = 0
        for folder in run_folders(sweep):
            if not folder.is_dir():
                continue
            try:
                if is_linked(folder):
                    raise NotKept(f"{folder}: is a link to a run that belongs elsewhere")
                held.enter_context(lock(folder / ".lock", f"{folder}: a live process writes to it"))
                if packed(folder):  # kept before; a process that died then may have left some of its files
                    _remove(folder)
                else:
                    taken[folder] = _record(folder)
            except (NotKept, BadInput) as error:
                refused += 1
                yield f"left as it is: {error}"
        if taken:
            _write(sweep, taken)
        for folder in taken:
            _remove(folder)
    referring = sum(not any(made["lines"].values()) for made in taken.values())
    size = sum((sweep / name).stat().st_size for name in (pack.RUNS, *PARTS.values()) if (sweep / name).is_file())
    yield (
        f"{sweep}: {len(taken)} runs kept now ({referring} of them refer to another sweep's), "
        f"{len(pack.runs(sweep))} in the pack, {size / 1e6:.2f} MB; {refused} left as they are"
    )


def unpack(folder: Path) -> None:
    """Write the record of a run that is in a pack into its folder, byte for byte as it was. A run
    that is not in a pack stays as it is."""
    line = packed(folder)
    if line is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", dump(line["config"]))
    for live, kept in PARTS.items():
        rows = pack.lines(folder.parent.parent / kept).get(pack.name_of(folder))
        if rows or (live == "metrics.jsonl" and "taken_from" not in line["meta"]):
            write_whole(folder / live, as_lines(rows or []))
    write_whole(folder / "meta.json", as_page(line["meta"]))


def _record(folder: Path) -> dict[str, Any]:
    """Everything recorded of a live run: config, meta, lines by file. Raises NotKept: it is not
    finished, or a file of it could not come back byte for byte."""
    meta = read_meta(folder)
    if meta.get("status") != "finished":
        raise NotKept(f"{folder}: not finished ({meta.get('status', 'no readable meta.json')})")
    config = recorded_yaml(folder)
    lines = {} if _refers(folder, meta) else {name: read_lines(folder / name) for name in PARTS}
    made = {"config.yaml": dump(config), "meta.json": as_page(meta)}
    for name, text in (made | {name: as_lines(rows) for name, rows in lines.items()}).items():
        if _text(folder / name) != text:
            raise NotKept(f"{folder / name}: not as a run writes it, so it could not come back byte for byte")
    return {"config": config, "meta": meta, "lines": lines}


def _refers(folder: Path, meta: dict[str, Any]) -> bool:
    """Whether the run it was taken from has all its lines, so that the pack need not. Raises
    BadInput when they are nowhere."""
    there = taken_from(folder)
    if there is None:
        return False
    if not (folder / "metrics.jsonl").is_file():
        source(folder)  # is there, or this says that it is not
        return True
    if not read_meta(there):
        return False
    first = lambda rows: as_lines([row for row in rows if row["step"] <= meta["steps"]])
    return first(read_metrics(there)) == _text(folder / "metrics.jsonl") and first(read_evaluations(there)) == _text(
        folder / "eval.jsonl"
    )


def _text(path: Path) -> str:
    return read_bytes(path).decode() if path.is_file() else ""


def _write(sweep: Path, taken: dict[Path, dict[str, Any]]) -> None:
    """Put `taken` into the pack of `sweep`, in place of what it had of the same runs."""
    runs = dict(pack.runs(sweep))
    by_run = {kept: dict(pack.lines(sweep / kept)) for kept in PARTS.values()}
    for folder, made in taken.items():
        name = pack.name_of(folder)
        runs[name] = {
            "arm": folder.parent.name,
            "seed": int(folder.name.removeprefix("seed")),
            "config": made["config"],
            "meta": made["meta"],
        }
        for live, kept in PARTS.items():
            by_run[kept].pop(name, None)
            if made["lines"].get(live):
                by_run[kept][name] = made["lines"][live]
    order = sorted(runs, key=lambda name: (runs[name]["arm"], runs[name]["seed"]))
    runs = {name: runs[name] for name in order}
    by_run = {kept: {name: rows[name] for name in order if name in rows} for kept, rows in by_run.items()}
    # The list last: what it does not name is not read.
    with replacing(sweep, (*PARTS.values(), pack.RUNS)) as beside:
        pack.write_runs(beside, runs.values())
        for kept, rows in by_run.items():
            pack.write_lines(beside / kept, rows)
        if _as_text(pack.runs(beside)) != _as_text(runs) or any(
            _as_text(pack.lines(beside / kept)) != _as_text(rows) for kept, rows in by_run.items()
        ):
            raise BadInput(f"{sweep}: the pack does not read back as it was written; nothing was changed")


def _as_text(tree: Any) -> str:
    """JSON, in which 1 is not 1.0 and the order of keys counts."""
    return json.dumps(tree, ensure_ascii=False)


def _remove(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for empty in (folder / "checkpoints", folder / "tokens", folder / "completions", folder, folder.parent):
        if empty.is_dir() and not empty.is_symlink() and not any(empty.iterdir()):
            empty.rmdir()
