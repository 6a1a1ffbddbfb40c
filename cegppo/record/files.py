"""The one place that touches the disk: whole files, JSON lines, folders that appear complete,
pointers, locks, kept completions.

A run's folder may come from anybody, so nothing is written through a link: `open_file` is the one
way to open a file for writing, and `subfolder` the one way to a folder inside a run's.
"""

import errno
import fcntl
import gzip
import io
import json
import math
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..types import BadInput, printable  # noqa: F401

MEMBER = 2**28  # bytes of text: several times what 512 samples of 16k tokens are
LINE = 2**26  # bytes of a line: several times the evaluation of 10,000 problems
KEYS = 10_000  # of one line: a hundred times what a step logs


def open_file(path: Path, flags: int = os.O_WRONLY | os.O_APPEND) -> io.FileIO:
    """`path` opened for writing without a buffer, made where it is missing and never emptied.
    Raises OSError: it is a link, or no regular file."""
    try:
        # A FIFO without a reader would be waited for.
        handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, and nothing is written through one", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return io.FileIO(handle, "r+" if flags & os.O_RDWR else "w" if not flags & os.O_APPEND else "a")


def subfolder(path: Path) -> Path:
    """`path`, a folder inside a run's or a sweep's, made where it is missing. Raises OSError: it is
    a link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, and nothing is written through one", str(path))
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """What a regular file holds. Raises OSError, and BadInput: it is a FIFO or a device, which may
    never end, or holds more than `most` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path}: is no regular file")
        if most is not None and status.st_size > most:
            raise BadInput(f"{path}: {status.st_size >> 20} MiB, more than the {most >> 20} MiB that are ever written")
        return file.read()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The path to write to in the block; afterwards it is on the disk and has replaced `path`. A
    reader sees the old file or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)  # of a process that was killed; or a link, which would be followed
    yield unfinished
    with open(unfinished, "rb") as file:
        os.fsync(file)
    os.replace(unfinished, path)


def write_parquet(path: Path, columns: dict[str, np.ndarray], order: list[str]) -> None:
    """A table sorted by the columns `order`, zstd; appears only when it is complete."""
    import pandas as pd  # slow to import, and needed for this only

    subfolder(path.parent)
    with whole(path) as unfinished:
        pd.DataFrame(columns).sort_values(order).to_parquet(unfinished, index=False, compression="zstd")


@contextmanager
def replacing(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A folder to write files `names` to in the block; afterwards they are on the disk and replace
    those of `folder`, one by one in this order. When the block fails, nothing has changed."""
    unfinished = folder / ".unfinished"
    unfinished.unlink() if unfinished.is_symlink() else shutil.rmtree(unfinished, ignore_errors=True)  # of a killed one
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
    """One JSON object and its newline, all of it or nothing. Raises OSError."""
    # NaN is not JSON: a quantity without a value is null.
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with open_file(path) as file:
        append(file, as_lines([row]).encode())


def append(file: io.FileIO, data: bytes) -> None:
    """`data` at the end of an unbuffered file: all of it, or nothing and an OSError. A disk that
    fills up takes a part of what it is given first, and has room again later."""
    end, left = os.fstat(file.fileno()).st_size, memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        os.ftruncate(file.fileno(), end)
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of `path`; none when there is no file. Raises BadInput: one of them
    is no JSON object."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        if len(line) > LINE:
            raise BadInput(f"{path}: line {number} has {len(line) >> 20} MiB, more than the {LINE >> 20} of any line")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BadInput(f"{path}: line {number} is damaged (no JSON object)")
        if len(row) > KEYS:
            raise BadInput(f"{path}: line {number} has {len(row):,} keys, more than the {KEYS:,} of any line")
        rows.append(row)
    return rows


def lock(path: Path, taken: str) -> io.FileIO:
    """Lock file `path` for this process until what is returned is closed.

    Raises BadInput: the file cannot be written, or another process holds it (`taken` says so).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_file(path, os.O_WRONLY)
    except OSError as error:
        what = path if error.errno in (errno.ELOOP, errno.EINVAL) else path.parent
        raise BadInput(f"{what}: cannot be written ({error.strerror})") from None
    _hold(file, taken)
    return file


def _hold(file: Any, taken: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BadInput(taken) from None


def refuse_aliases(text: str, path: Path) -> None:
    """Raises BadInput when the recorded configuration `text` of `path` has a YAML alias, none of
    which is ever written: a few lines of them stand for more than memory has."""
    if "&" not in text or "*" not in text:
        return
    import yaml

    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                where = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
                raise BadInput(f"{path}: {where}a YAML alias, which no recorded one has")
    except (yaml.YAMLError, ValueError, RecursionError):
        pass  # whoever reads it says what is wrong


class Completions:
    """An open file of completions, JSON lines in gzip, locked for this process until `close`.
    Raises BadInput when it is in use, or damaged.

    Each `append` is one gzip member, so what a killed process left half written at the end is known
    and cut off. Anything else that cannot be read is no such thing, and stays untouched.
    """

    def __init__(self, path: Path):
        subfolder(path.parent)
        self.path = path
        self._file = open_file(path, os.O_RDWR | os.O_APPEND)
        _hold(self._file, f"{path}: another live process is writing to it")
        try:
            self._file.seek(0)
            self.rows, whole = members(path, self._file.readall())
        except BadInput:
            self._file.close()
            raise
        self._file.truncate(whole)

    def append(self, rows: list[dict[str, Any]]) -> None:
        append(self._file, gzip.compress(as_lines(rows).encode(errors="replace"), mtime=0))
        os.fsync(self._file)
        self.rows += rows

    def close(self) -> None:
        self._file.close()


def members(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """(rows, bytes) of the complete gzip members of completions file `path`. Raises BadInput: it is
    damaged, or a member is larger than any that is written."""
    rows: list[dict[str, Any]] = []
    whole = 0
    while data[whole:].strip(b"\0"):  # zeros at the end are what a lost power supply leaves of a piece
        member = zlib.decompressobj(wbits=31)
        damaged = f"{path}: damaged after {len(rows)} problems (byte {whole}); move it away to sample them again"
        try:
            text = member.decompress(data[whole:], MEMBER)
            if len(text) == MEMBER:
                raise BadInput(f"{path}: more than {MEMBER >> 20} MiB in one piece (byte {whole}); not written here")
            if not member.eof:  # the start of a member and nothing after it: a process died here
                break
            made = [json.loads(line) for line in text.decode().split("\n")[:-1]]
        except (zlib.error, ValueError, RecursionError):
            raise BadInput(damaged) from None
        if not all(isinstance(row, dict) for row in made):
            raise BadInput(damaged)
        rows += made
        whole = len(data) - len(member.unused_data)
    return rows, whole


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
    if link.is_dir() and not link.is_symlink():  # of a copy whose links became folders
        link.rename(link.with_name(f"{link.name}.copied.unfinished"))
    os.replace(unfinished, link)


def remove_unfinished(folder: Path) -> None:
    """What a killed process left half made in `folder`."""
    for leftover in folder.glob("*.unfinished"):
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def remove_unused(folder: Path, pattern: re.Pattern[str], links: tuple[str, ...], newest: int) -> None:
    """Remove the folders in `folder` whose whole name matches `pattern`, but for what one of
    `links` points to and the last `newest` of them by name (0: all stay)."""
    used = {os.readlink(folder / name) for name in links if (folder / name).is_symlink()}
    found = [old for old in folder.iterdir() if pattern.fullmatch(old.name) and old.is_dir() and not old.is_symlink()]
    oldest = sorted(found, key=lambda old: (len(old.name), old.name))[:-newest] if newest else []
    for old in oldest:
        if old.name not in used:
            shutil.rmtree(old)


def sync(path: Path) -> None:
    """What was appended to `path` is on the disk, if there is such a file."""
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file)
