"""The scan memory: results of earlier scans in a Parquet file that is safe to delete.

An entry depends only on a file's bytes, so it stays valid for other limits. Its key is the bytes of the file's absolute
path or URL. A memory that is damaged, or of another version, counts as empty.

It is read and written in pieces, and files find their entries by digests of their paths, which are sorted on disk, see
:mod:`...storage.disk_array`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...cache.records.datasets import RowKinds
from ...cache.shards.keys import BINARY, binary_keys, hex_keys, keys_of_column
from ...errors import UserError
from ...images.file import ImageRejected, Reason
from ...images.headers import parse_traits
from ...storage import AnyPath
from ...storage.atomic import replace_with
from ...storage.disk_array import DiskArray, Records, group_starts, numbered, sort_records, whole_groups
from ...storage.lazy_sequence import ITEMS, LazySequence, batched
from ...storage.parquet import fetch_source, read_batches, read_schema

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
_LOOK = ("format", "reason", "detail", "turned", "traits")
"""Columns with few distinct values, which memory holds once."""
_GROUP_ROWS = 2**16
"""Rows of a row group."""
_NUMBERS = ("size", "mtime_ns", "width", "height", "metadata_bytes")
_ENTRY = np.dtype(
    [
        *(("size", "<i8"), ("mtime_ns", "<i8"), ("width", "<i4"), ("height", "<i4"), ("metadata_bytes", "<i8")),
        *(("key", BINARY), ("look", "<i4")),
    ]
)
_DIGEST = np.dtype("S16")
"""BLAKE2b of a path: as wide as the keys of the images."""


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


_NONE = -1
"""In place of the number of a look: there is no entry."""


class EntryTable(LazySequence["ScanEntry | None"]):
    """Entries in the order of their files, None for a file without one; memory holds what many share once.

    An entry with a number that the scan memory cannot store, such as a date before 1678 or after 2262, becomes None.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[Any, ...]] = []
        self._number_of: dict[tuple[Any, ...], int] = {}
        self.records = DiskArray(_ENTRY)
        self.stored = 0
        """Number of entries that are not None."""

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.records)

    def append(self, entries: Sequence[ScanEntry | None]) -> None:
        """Add entries at the end."""
        records = np.zeros(len(entries), _ENTRY)
        records["look"] = _NONE
        numbers, held = [], []
        for number, entry in enumerate(entries):
            if (
                entry is not None
                and -(2**63) <= entry.mtime_ns < 2**63
                and entry.width < 2**31
                and entry.height < 2**31
            ):
                numbers.append(number)
                held.append(entry)
        if held:
            columns = dict(zip(ScanEntry._fields, zip(*held, strict=True), strict=True))
            for name in _NUMBERS:
                records[name][numbers] = columns[name]
            records["key"][numbers] = binary_keys(columns["key"])
            looks = zip(*(columns[name] for name in _LOOK), strict=True)
            records["look"][numbers] = list(map(self._look, looks))
        self.records.append(records)
        self.stored += len(held)

    def append_table(self, table: pa.Table) -> None:
        """Add the entries of a piece of a scan memory at the end. Raises ValueError for impossible values."""
        kinds = RowKinds(_LOOK)
        numbers = kinds.numbers(table)
        for look in kinds.found:
            if look[-1]:
                parse_traits(look[-1])
        own = np.array(list(map(self._look, kinds.found)), np.int64)
        records = np.empty(len(table), _ENTRY)
        for name in _NUMBERS:
            records[name] = table.column(name).to_numpy()
        records["key"] = keys_of_column(table.column("key"))
        records["look"] = own[numbers]
        self.records.append(records)
        self.stored += len(records)

    def table(self, paths: Sequence[bytes], start: int) -> pa.Table:
        """Return a piece of a scan memory: the entries from ``start``, with the keys of their files."""
        records = self.records.read(start, start + len(paths))
        there = np.flatnonzero(records["look"] != _NONE)
        records = records[there]
        columns: dict[str, pa.Array] = {name: pa.array(records[name]) for name in _NUMBERS}
        columns["path"] = pa.array([paths[number] for number in there.tolist()], pa.binary())
        columns["key"] = pa.array(hex_keys(records["key"]), pa.string())
        used, number = np.unique(records["look"], return_inverse=True)
        looks = [self._looks[look] for look in used.tolist()]
        for place, name in enumerate(_LOOK):
            values = pa.array([look[place] for look in looks], _SCHEMA.field(name).type)
            columns[name] = values.take(pa.array(number))
        return pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)

    def items(self, start: int, stop: int) -> list[ScanEntry | None]:
        """See :class:`LazySequence`."""
        return self.made(self.records.read(start, stop))

    def made(self, records: Records) -> list[ScanEntry | None]:
        """Return the entries that these records stand for."""
        columns = [records[name].tolist() for name in (*_NUMBERS, "look")]
        found: list[ScanEntry | None] = []
        for key, size, mtime_ns, width, height, metadata_bytes, look in zip(
            hex_keys(records["key"]), *columns, strict=True
        ):
            if look == _NONE:
                found.append(None)
                continue
            kind, reason, detail, turned, traits = self._looks[look]
            found.append(
                ScanEntry(size, mtime_ns, key, width, height, kind, reason, detail, turned, metadata_bytes, traits)
            )
        return found

    def _look(self, look: tuple[Any, ...]) -> int:
        number = self._number_of.get(look)
        if number is None:
            number = self._number_of[look] = len(self._looks)
            self._looks.append(look)
        return number


class KnownEntries(LazySequence["ScanEntry | None"]):
    """The entry of each file in a scan memory; None for a file without one.

    Parameters
    ----------
    files
        Number of files.
    memory
        Number of the entries in the scan memory.
    entries
        Those of the scan memory.
    places
        Of each file, with the field ``memory``: the number of its entry, or -1; None if file and entry have the same
        numbers.
    """

    def __init__(self, files: int, entries: EntryTable, places: DiskArray | None = None) -> None:
        self._files = files
        self.entries = entries
        self._places = places

    def __len__(self) -> int:
        """Return the number of files."""
        return self._files

    def items(self, start: int, stop: int) -> list[ScanEntry | None]:
        """See :class:`LazySequence`."""
        if not len(self.entries):
            return [None] * (stop - start)
        if self._places is None:
            return self.entries.items(start, stop)
        places = self._places.read(start, stop)["memory"]
        found: list[ScanEntry | None] = [None] * len(places)
        there = np.flatnonzero(places >= 0)
        for number, entry in zip(there, self.entries.made(self.entries.records.take(places[there])), strict=True):
            found[number] = entry
        return found


def nothing_known(files: int) -> KnownEntries:
    """Return the entries of files of which no scan memory has one."""
    return KnownEntries(files, EntryTable())


def known_entries(memory: AnyPath, files: int, paths: Callable[[], Iterable[bytes]]) -> KnownEntries:
    """Return the entries that a scan memory has for files; none if there is none, or it cannot be read.

    Parameters
    ----------
    memory
        The scan memory.
    files
        Number of files.
    paths
        Gives the key of each file in the scan memory, in their order; called only if there is one.
    """
    digests, entries = DiskArray(_DIGEST), EntryTable()
    try:
        for table in _tables(memory):
            entries.append_table(table)
            digests.append(_digests(table.column("path").to_pylist()))
    except (OSError, ValueError, pa.ArrowException):
        return nothing_known(files)
    if not len(entries):
        return nothing_known(files)
    wanted = DiskArray(_DIGEST)
    for block in batched(paths(), 8 * ITEMS):
        wanted.append(_digests(block))
    if len(digests) == len(wanted) and all(map(np.array_equal, digests.blocks(), wanted.blocks())):
        return KnownEntries(files, entries)
    return KnownEntries(files, entries, _places(digests, wanted))


def _digests(paths: Iterable[bytes]) -> Records:
    found = [hashlib.blake2b(path, digest_size=_DIGEST.itemsize).digest() for path in paths]
    return np.frombuffer(b"".join(found), _DIGEST)


_IN_MEMORY, _OF_FILE = 0, 1
_DIGESTED = np.dtype([("digest", _DIGEST), ("of", "u1"), ("number", ">u8")])
_PLACE = np.dtype([("file", ">u8"), ("memory", "<i8")])


def _places(memory: DiskArray, files: DiskArray) -> DiskArray:
    """Return for each file, in order, the number of the last entry in memory with its digest; -1 if there is none."""

    def digested() -> Iterator[Records]:
        for of, digests in ((_IN_MEMORY, memory), (_OF_FILE, files)):
            for numbers, block in numbered(digests.blocks()):
                records = np.empty(len(block), _DIGESTED)
                records["digest"], records["of"], records["number"] = block, of, numbers
                yield records

    def joined() -> Iterator[Records]:
        together = sort_records(digested(), _DIGESTED)
        for block in whole_groups(together.blocks(), "digest"):
            starts = group_starts(block["digest"])
            group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(block)))
            last = np.full(len(starts), -1, np.int64)
            held = block["of"] == _IN_MEMORY
            last[group[held]] = block["number"][held]  # of several, the last one stays
            places = np.empty(np.count_nonzero(~held), _PLACE)
            places["file"], places["memory"] = block["number"][~held], last[group[~held]]
            yield places

    return sort_records(joined(), _PLACE)


def _tables(memory: AnyPath) -> Iterator[pa.Table]:
    """Yield a scan memory in pieces; nothing if it is of another version. Errors are those of :func:`read_batches`."""
    source = fetch_source(memory)
    if not read_schema(source).equals(_SCHEMA, check_metadata=True):
        return
    for table in read_batches(source):
        if any(column.null_count for column in table.columns):
            raise ValueError("it has empty cells")
        yield table


def save_scan_memory(memory: AnyPath, paths: Iterable[bytes], entries: EntryTable) -> None:
    """Replace a scan memory. It only saves time, so errors in writing are ignored.

    Parameters
    ----------
    memory
        The scan memory.
    paths
        Key of each file, in their order.
    entries
        Their entries. A file without one is left out and read by every scan.
    """

    def tables() -> Iterator[pa.Table]:
        start = 0
        for block in batched(paths, 8 * ITEMS):
            yield entries.table(block, start)
            start += len(block)

    with contextlib.suppress(OSError, UserError):
        replace_with(memory, lambda file: _write(file, tables()))


def drop_scan_entries(memory: AnyPath, paths: Collection[bytes]) -> None:
    """Drop entries, so that the next scan opens these files again."""
    dropped = pa.array(list(paths), pa.binary())
    with contextlib.suppress(OSError, UserError, ValueError, pa.ArrowException):
        if any(pc.any(pc.is_in(table.column("path"), dropped)).as_py() for table in _tables(memory)):
            kept = (table.filter(pc.invert(pc.is_in(table.column("path"), dropped))) for table in _tables(memory))
            replace_with(memory, lambda file: _write(file, kept))


def _write(file: IO[bytes], tables: Iterable[pa.Table]) -> None:
    """Write tables to an open Parquet file, some of them in each of its row groups."""
    held: list[pa.Table] = []
    coded = [name for name in _LOOK if pa.types.is_string(_SCHEMA.field(name).type)]
    with pq.ParquetWriter(file, _SCHEMA, compression="zstd", use_dictionary=coded, write_page_checksum=True) as writer:
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(held))
                held = []
        writer.write_table(pa.concat_tables([_SCHEMA.empty_table(), *held]))
