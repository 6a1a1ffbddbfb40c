"""The one place that touches the disk: whole-file writes, JSON lines, kept completions, locks."""

import fcntl
import gzip
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..types import BadInput


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader sees the old file or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_parquet(path: Path, columns: dict[str, np.ndarray], order: list[str]) -> None:
    """A table sorted by the columns `order`, zstd; appears only when it is complete."""
    import pandas as pd  # slow to import, and needed for this only

    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    pd.DataFrame(columns).sort_values(order).to_parquet(unfinished, index=False, compression="zstd")
    os.replace(unfinished, path)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One JSON object and its newline in a single write."""
    # NaN is not JSON: a quantity without a value is null.
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of `path`; none when there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


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
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{path}: another live process is writing to it") from None
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
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write(gzip.compress(text.encode(errors="replace"), mtime=0))
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
