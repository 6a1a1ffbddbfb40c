"""The one place that touches the disk: whole files, JSON lines, folders that appear complete,
pointers, locks, kept completions."""

import fcntl
import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..types import BadInput


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The path to write to in the block; afterwards it is on the disk and has replaced `path`. A
    reader sees the old file or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    with open(unfinished, "rb") as file:
        os.fsync(file)
    os.replace(unfinished, path)


def write_parquet(path: Path, columns: dict[str, np.ndarray], order: list[str]) -> None:
    """A table sorted by the columns `order`, zstd; appears only when it is complete."""
    import pandas as pd  # slow to import, and needed for this only

    path.parent.mkdir(exist_ok=True)
    with whole(path) as unfinished:
        pd.DataFrame(columns).sort_values(order).to_parquet(unfinished, index=False, compression="zstd")


@contextmanager
def replacing(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A folder to write files `names` to in the block; afterwards they are on the disk and replace
    those of `folder`, one by one in this order. When the block fails, nothing has changed."""
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        yield unfinished
        flush(unfinished)
        for name in names:
            os.replace(unfinished / name, folder / name)
    finally:
        shutil.rmtree(unfinished)
    flush(folder)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text`, as `whole` does."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def as_lines(rows: list[dict[str, Any]]) -> str:
    """JSON lines, as every file of them is written here."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_page(tree: dict[str, Any]) -> str:
    """JSON for a person to read: meta.json."""
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One JSON object and its newline in a single write."""
    # NaN is not JSON: a quantity without a value is null.
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with open(path, "ab", buffering=0) as file:
        file.write(as_lines([row]).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of `path`; none when there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def lock(path: Path, taken: str) -> TextIO:
    """Lock file `path` for this process until what is returned is closed.

    Raises BadInput: the file cannot be written, or another process holds it (`taken` says so).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    except OSError as error:
        raise BadInput(f"{path.parent}: cannot be written ({error.strerror})") from None
    _hold(file, taken)
    return file


def _hold(file: Any, taken: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BadInput(taken) from None


class Completions:
    """An open file of completions, JSON lines in gzip, locked for this process until `close`.
    Raises BadInput when it is in use.

    Each `append` is one gzip member written at once, so what a killed process left half written is
    known and cut off.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows = path, []
        self._file = open(path, "a+b", buffering=0)
        _hold(self._file, f"{path}: another live process is writing to it")
        self._file.seek(0)
        data = self._file.read()
        whole = 0
        while whole < len(data):
            member = zlib.decompressobj(wbits=31)
            try:
                text = member.decompress(data[whole:])
            except zlib.error:
                break
            if not member.eof:
                break
            self.rows += [json.loads(line) for line in text.decode().split("\n")[:-1]]
            whole = len(data) - len(member.unused_data)
        self._file.truncate(whole)

    def append(self, rows: list[dict[str, Any]]) -> None:
        self._file.write(gzip.compress(as_lines(rows).encode(errors="replace"), mtime=0))
        os.fsync(self._file)
        self.rows += rows

    def close(self) -> None:
        self._file.close()


def flush(folder: Path) -> None:
    """Force a folder's files and its list of names to the disk."""
    for path in [*folder.iterdir(), folder]:
        if path.is_symlink() or (path.is_dir() and path != folder):
            continue
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def put_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """`write(path)` fills a new folder; only when that is complete and on the disk is it `folder`,
    in place of an older one."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir()
    write(unfinished)
    flush(unfinished)
    if folder.exists():  # of an earlier life that died before anything pointed to it
        shutil.rmtree(folder)
    unfinished.rename(folder)


def point(link: Path, name: str) -> None:
    """Make `link` point to `name` beside it, at once."""
    unfinished = link.with_name(f"{link.name}.unfinished")
    unfinished.symlink_to(name)
    os.replace(unfinished, link)


def remove_unfinished(folder: Path) -> None:
    """What a killed process left half made in `folder`."""
    for leftover in folder.glob("*.unfinished"):
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def remove_unused(folder: Path, pattern: str, links: tuple[str, ...]) -> None:
    """Remove what matches `pattern` in `folder`, but for what one of `links` points to."""
    used = {os.readlink(folder / name) for name in links if (folder / name).is_symlink()}
    for old in folder.glob(pattern):
        if old.name not in used:
            shutil.rmtree(old)
