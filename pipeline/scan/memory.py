"""The scan memory: results of earlier scans in a Parquet file that is safe to delete.

An entry depends only on a file's bytes, so it stays valid for other limits. Its key is the bytes of the file's absolute
path or URL. A memory that is damaged, or of another version, counts as empty.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet

from ...errors import UserError
from ...images.file import ImageRejected, Reason
from ...images.headers import parse_traits
from ...storage import AnyPath
from ...storage.atomic import replace_file
from ...storage.parquet import fetch_source, read_bounded, read_schema

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary()),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("turned", pa.bool_()),
        pa.field("metadata_bytes", pa.int64()),
        pa.field("traits", pa.string()),
    ],
    metadata={"distil_cache.scan": "3"},  # raised when files are refused by other rules
)
_REPEATED = ("format", "reason", "detail", "traits")
"""Columns with few distinct values."""


class ScanEntry(NamedTuple):
    """What a scan found in one file.

    Attributes
    ----------
    size
        Size in bytes.
    mtime_ns
        Modification time in ns.
    key
        Key of the file's bytes, 32 hex digits.
    width, height
        Size in pixels as displayed.
    format
        File format in lower case.
    reason, detail
        Why the file cannot be used; empty if it can.
    turned
        Whether width and height are stored the other way round.
    metadata_bytes, traits
        See :class:`...images.headers.FileHeader`; 0 and empty if the header cannot be read.
    """

    size: int
    mtime_ns: int
    key: str
    width: int = 0
    height: int = 0
    format: str = ""
    reason: str = ""
    detail: str = ""
    turned: bool = False
    metadata_bytes: int = 0
    traits: str = ""

    def rejected(self) -> ImageRejected:
        """Return the rejection of a file that has a ``reason``."""
        return ImageRejected(cast(Reason, self.reason), self.detail)


def load_scan_memory(memory: AnyPath) -> dict[bytes, ScanEntry]:
    """Read a scan memory: path -> entry. Empty if there is none, or it cannot be read."""
    try:
        source = fetch_source(memory)
        if not read_schema(source).equals(_SCHEMA, check_metadata=True):
            return {}
        table = read_bounded(source)
    except (OSError, ValueError, pa.ArrowException):
        return {}
    if any(column.null_count for column in table.columns):
        return {}
    try:
        paths, *columns = (_values(table.column(name), name in _REPEATED) for name in _SCHEMA.names)
        for traits in set(columns[-1]) - {""}:
            parse_traits(traits)
    except ValueError:
        return {}
    return dict(zip(paths, map(ScanEntry._make, zip(*columns, strict=True)), strict=True))


def _values(column: pa.ChunkedArray, repeated: bool) -> Sequence[Any]:
    """Return a column as Python values; with ``repeated``, equal values share one object."""
    if not repeated:
        values: list[Any] = column.to_pylist()
        return values
    coded = column.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    return [names[number] for number in coded.indices.to_pylist()]


def save_scan_memory(memory: AnyPath, entries: Mapping[bytes, ScanEntry]) -> None:
    """Replace a scan memory. It only saves time, so errors in writing are ignored.

    A file whose date is beyond 64 bits of nanoseconds (before 1678, after 2262) is left out and read by every scan.
    """
    entries = {path: entry for path, entry in entries.items() if -(2**63) <= entry.mtime_ns < 2**63}
    columns = [list(entries), *map(list, zip(*entries.values(), strict=True))] if entries else [[] for _ in _SCHEMA]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    buffer = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(arrays, schema=_SCHEMA), buffer, compression="zstd", write_page_checksum=True)
    with contextlib.suppress(OSError, UserError):
        replace_file(memory, buffer.getvalue().to_pybytes())


def drop_scan_entries(memory: AnyPath, keys: Collection[bytes]) -> None:
    """Drop entries, so that the next scan opens these files again."""
    known = load_scan_memory(memory)
    kept = {key: entry for key, entry in known.items() if key not in keys}
    if len(kept) < len(known):
        save_scan_memory(memory, kept)
