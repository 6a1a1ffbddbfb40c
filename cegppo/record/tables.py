"""Parquet files, read within bounds: a file of a few kilobytes may stand for more rows, or longer
texts, than memory has, since equal values cost it nothing.

A text is read once, however many rows have it, so that only the number of cells and the size of
what is unpacked have to be bounded.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..types import BadInput

CELLS = 16  # a byte of the file; what is written here has less than one
UNPACKED = 200  # bytes a byte of the file; what is written here has less than ten
FLOOR = 2**26  # bytes, or cells, that any file may stand for


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of parquet file `path`, [rows] each; texts and numbers beside nulls as objects,
    None for a null. Raises BadInput: it is damaged, nested, or stands for more than it could hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise BadInput(f"{path}: is no regular file")
    try:
        meta = pq.read_metadata(path)
        _check(path, meta)
        schema = meta.schema.to_arrow_schema()
        nested = [field.name for field in schema if pa.types.is_nested(field.type)]
        if nested:
            raise BadInput(f"{path}: column '{nested[0]}' is nested; no column that is written here is")
        texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
        table = pq.ParquetFile(path, read_dictionary=texts).read()
        return {name: _values(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None


def rows(path: Path) -> int:
    """How many rows parquet file `path` has. Raises BadInput as `read` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: damaged ({type(error).__name__})") from None
    _check(path, meta)
    return int(meta.num_rows)


def _check(path: Path, meta: Any) -> None:
    """Raises BadInput when what `meta` announces is out of proportion to the file."""
    size = path.stat().st_size
    cells = meta.num_rows * meta.num_columns
    unpacked = sum(meta.row_group(n).total_byte_size for n in range(meta.num_row_groups))
    if cells > max(CELLS * size, FLOOR // 64):
        raise BadInput(f"{path}: {cells:,} cells in {size:,} bytes; not written here, and not read")
    if unpacked > max(UNPACKED * size, FLOOR):
        raise BadInput(f"{path}: {unpacked:,} bytes packed in {size:,}; not written here, and not read")


def _values(column: Any) -> np.ndarray:
    """A column's values; equal texts of a piece are one object."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.to_numpy() if not column.null_count else _objects(column.to_pylist())
    parts = []
    for chunk in column.chunks:
        words = _objects([*chunk.dictionary.to_pylist(), None])
        codes = chunk.indices.fill_null(len(words) - 1) if chunk.indices.null_count else chunk.indices
        parts.append(words[codes.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts) if parts else _objects([])


def _objects(values: list[Any]) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made
