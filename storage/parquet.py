"""Bounded reading of untrusted Parquet files: the decoded size is limited by the size on disk.

A few kilobytes of Parquet can decode to terabytes: pages are compressed, and a dictionary page can repeat a long string
a million times. So the declared sizes are compared with the file size before decoding, and dictionary columns are
expanded only once their decoded length is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import AnyPath, RemotePath, unreachable_on_error
from .regular import regular_status

SMALL_ROWS = 2**20
SMALL_BYTES = 256 * 2**20
"""Decoded rows and bytes that a file of any size may hold."""
_BUFFER = 2**20
"""Bytes that are read of a local file at a time."""
_REMOTE_BUFFER = 16 * 2**20
RATIO = 100
"""Decoded bytes allowed per byte of a larger file. The tables of a cache have about 15."""
BATCH_ROWS = 2**15
"""Rows of a piece of a table that is read in pieces."""


def fetch_source(path: AnyPath) -> Path | pa.Buffer:
    """Return what the functions of this module read: the path itself, or the bytes of an object, fetched once.

    Raises
    ------
    FileNotFoundError
        If there is no such object.
    UnreachableError
        If the store cannot be reached.
    """
    if not isinstance(path, RemotePath):
        return path
    with unreachable_on_error(path):
        return pa.py_buffer(path.read_bytes())


def read_schema(source: Path | pa.Buffer | RemotePath) -> pa.Schema:
    """Return a Parquet file's schema; errors are those of pyarrow."""
    if not isinstance(source, pa.Buffer):
        regular_status(source)
    return pq.read_schema(for_pyarrow(source))


def read_bounded(source: Path | pa.Buffer | RemotePath, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file's table.

    Parameters
    ----------
    source
        What :func:`fetch_source` returned; or an object, of which only the ranges of the columns are read.
    columns
        The columns to read, none within structures; all by default. The others are not checked.

    Raises
    ------
    ValueError
        If the file declares or holds more than a file of its size may.
    OSError, pyarrow.ArrowException
        As pyarrow raises them.
    """
    size = _size_of(source)
    with _opened(source, size, columns) as (file, encoded):
        table = file.read(None if columns is None else list(columns))
    _check_bytes(
        table.nbytes + sum(_text_bytes(table.column(name)) for name in encoded if name in table.column_names), size
    )
    return table.cast(_plain(table.schema))


def read_batches(
    source: Path | pa.Buffer | RemotePath, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS
) -> Iterator[pa.Table]:
    """Yield a Parquet file's table in pieces; otherwise as :func:`read_bounded`.

    Parameters
    ----------
    source, columns
        As for :func:`read_bounded`.
    rows
        Rows of a piece.

    Raises
    ------
    ValueError
        If the file declares or holds more than a file of its size may; perhaps after the first pieces.
    OSError, pyarrow.ArrowException
        As pyarrow raises them.
    """
    size, decoded = _size_of(source), 0
    with _opened(source, size, columns) as (file, _):
        wanted = None if columns is None else list(columns)
        for batch in file.iter_batches(batch_size=rows, columns=wanted, use_threads=False):
            piece = pa.Table.from_batches([batch])
            for column in piece.columns:
                is_text = _is_dictionary(column.type)
                decoded += 4 * len(column) + _text_bytes(column) if is_text else column.nbytes
            _check_bytes(decoded, size)
            yield piece.cast(_plain(piece.schema))


@contextlib.contextmanager
def _opened(
    source: Path | pa.Buffer | RemotePath, size: int, columns: Sequence[str] | None
) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """Open a file of ``size`` bytes that declares no more than it may; with the columns that are read as dictionaries."""
    with pq.ParquetFile(for_pyarrow(source)) as file:
        metadata = file.metadata
        check_declared(metadata, size, columns)
        encoded = _dictionary_columns(metadata, columns)
    try:
        with pq.ParquetFile(
            for_pyarrow(source), read_dictionary=encoded, metadata=metadata, page_checksum_verification=True
        ) as file:
            yield file, encoded
    except KeyError as error:
        raise ValueError(f"its two schemas differ in the column {error}") from error


def _size_of(source: Path | pa.Buffer | RemotePath) -> int:
    return source.size if isinstance(source, pa.Buffer) else regular_status(source).st_size


def read_nested_text(source: Path | pa.Buffer | RemotePath, column: str) -> list[str | None]:
    """Return a column of text within structures.

    Parameters
    ----------
    source
        As for :func:`read_bounded`.
    column
        Its name, with dots.

    Raises
    ------
    ValueError
        If the file declares or holds more than a file of its size may.
    OSError, pyarrow.ArrowException
        As pyarrow raises them.
    """
    size = _size_of(source)
    found: list[str | None] = []
    decoded = 0
    with pq.ParquetFile(for_pyarrow(source), page_checksum_verification=True) as file:
        check_declared(file.metadata, size, [column])
        # Few rows at a time: a dictionary within a structure cannot be left undecoded over several row groups.
        for batch in file.iter_batches(columns=[column], batch_size=64, use_threads=False):
            array = batch.column(0)
            while pa.types.is_struct(array.type):
                (array,) = array.flatten()
            decoded += array.nbytes
            _check_bytes(decoded, size)
            found += array.to_pylist()
    return found


def for_pyarrow(source: Path | pa.Buffer | RemotePath) -> Any:
    """Return what pyarrow takes: a path, or a new reader over the bytes or the object."""
    if isinstance(source, RemotePath):
        return pa.PythonFile(source.open())
    return source if isinstance(source, Path) else pa.BufferReader(source)


def open_rows(path: AnyPath, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a file or an object to decode it a few rows at a time, in bounded memory.

    Parameters
    ----------
    path
        The file or object.
    metadata
        Its footer, if it was read before.

    Raises
    ------
    OSError, pyarrow.ArrowException
        As pyarrow raises them.
    """
    return pq.ParquetFile(
        for_pyarrow(path),
        metadata=metadata,
        pre_buffer=False,
        buffer_size=_REMOTE_BUFFER if isinstance(path, RemotePath) else _BUFFER,
        page_checksum_verification=True,
    )


def check_declared(metadata: pq.FileMetaData, size: int, columns: Sequence[str] | None = None) -> None:
    """Raise ValueError if a file of this size declares more rows, or more bytes in these columns, than it may hold."""
    if metadata.num_rows > max(SMALL_ROWS, size):
        raise ValueError(f"it declares {metadata.num_rows:,} rows in {size:,} bytes")
    declared = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if not _is_wanted(column.path_in_schema, columns):
                continue
            part = column.total_uncompressed_size
            if part < 0:
                raise ValueError("it declares a column with a negative size")
            declared += part
    _check_bytes(declared, size)


def _check_bytes(decoded: int, size: int) -> None:
    if decoded > max(SMALL_BYTES, RATIO * size):
        raise ValueError(f"its {size:,} bytes decode to {decoded:,}")


def _is_wanted(path: str, columns: Sequence[str] | None) -> bool:
    """Check whether a column is one of ``columns``, or within one."""
    return columns is None or any(f"{path}.".startswith(f"{name}.") for name in columns)


def _dictionary_columns(metadata: pq.FileMetaData, columns: Sequence[str] | None) -> list[str]:
    """Return the wanted string and binary columns that are dictionary-encoded in some row group."""
    found = set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if (
                column.physical_type == "BYTE_ARRAY"
                and column.has_dictionary_page
                and _is_wanted(column.path_in_schema, columns)
            ):
                found.add(column.path_in_schema)
    return sorted(found)


def _is_dictionary(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(dtype))


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the types of the values in place of dictionaries."""
    fields = [field.with_type(field.type.value_type) if _is_dictionary(field.type) else field for field in schema]
    return pa.schema(fields, schema.metadata)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a dictionary column once it is expanded."""
    total = 0
    for chunk in column.chunks:
        if _is_dictionary(chunk.type):
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total
