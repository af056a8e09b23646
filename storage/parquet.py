"""Reading a Parquet file that may come from a stranger: bounded by what its size on the disk allows, before it is decoded.

A few kilobytes of Parquet can stand for terabytes: pages compress, and a dictionary page writes one long text a million
times. So the declared sizes are held against the file's, and columns that are stored with a dictionary are read as such
and only written out when their length is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import AnyPath, RemotePath, unreachable_on_error

SMALL_ROWS = 2**20
SMALL_BYTES = 256 * 2**20
"""What a file of any size may hold, decoded."""
RATIO = 100
"""Bytes, decoded, for each byte of a larger file. Tables of a cache have about 15."""


def fetch_source(path: AnyPath) -> Path | pa.Buffer:
    """Return what the functions here read a file from: its path, or the bytes of an object, fetched once.

    FileNotFoundError if there is no such object, UnreachableError if its store cannot be reached.
    """
    if not isinstance(path, RemotePath):
        return path
    with unreachable_on_error(path):
        return pa.py_buffer(path.read_bytes())


def read_schema(source: Path | pa.Buffer) -> pa.Schema:
    """Return a Parquet file's schema; errors as pyarrow raises them."""
    return pq.read_schema(_opened(source))


def read_bounded(source: Path | pa.Buffer, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file's table, or only these of its columns.

    Raises ValueError if the file declares, or holds, more than a file of its size does; OSError and pyarrow's
    ArrowException as pyarrow does.
    """
    size = source.stat().st_size if isinstance(source, Path) else source.size
    with pq.ParquetFile(_opened(source)) as file:
        metadata = file.metadata
        _check_declared(metadata, size)
        coded = _with_dictionary(metadata)
    try:
        with pq.ParquetFile(
            _opened(source), read_dictionary=coded, metadata=metadata, page_checksum_verification=True
        ) as file:
            table = file.read(None if columns is None else list(columns))
    except KeyError as error:
        raise ValueError(f"its two schemas differ in the column {error}") from error
    _check_bytes(
        table.nbytes + sum(_text_bytes(table.column(name)) for name in coded if name in table.column_names), size
    )
    plain = [field.with_type(field.type.value_type) if _is_coded(field.type) else field for field in table.schema]
    return table.cast(pa.schema(plain, table.schema.metadata))


def _opened(source: Path | pa.Buffer) -> Any:
    """Return what pyarrow takes: a path, or a reader of its own for each use of the bytes."""
    return source if isinstance(source, Path) else pa.BufferReader(source)


def _check_declared(metadata: pq.FileMetaData, size: int) -> None:
    if metadata.num_rows > max(SMALL_ROWS, size):
        raise ValueError(f"it declares {metadata.num_rows:,} rows in {size:,} bytes")
    declared = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            part = metadata.row_group(group).column(number).total_uncompressed_size
            if part < 0:
                raise ValueError("it declares a column of a negative size")
            declared += part
    _check_bytes(declared, size)


def _check_bytes(decoded: int, size: int) -> None:
    if decoded > max(SMALL_BYTES, RATIO * size):
        raise ValueError(f"its {size:,} bytes stand for {decoded:,}")


def _with_dictionary(metadata: pq.FileMetaData) -> list[str]:
    """Return the columns of text or bytes that are stored with a dictionary in some row group."""
    found = set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                found.add(column.path_in_schema)
    return sorted(found)


def _is_coded(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind))


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes that a dictionary column takes when each row is written out."""
    total = 0
    for chunk in column.chunks:
        if _is_coded(chunk.type):
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total
