"""The rows of a scan in little memory: one record for each usable file, on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...cache.records.datasets import SCHEMA
from ...cache.shards.keys import BINARY, binary_keys, hex_keys
from ...storage.disk_array import DiskArray, Records, group_starts, numbered, sort_records, whole_groups
from ...storage.lazy_sequence import ITEMS, LazySequence, batched
from ..sources.file import SourceFile
from ..sources.file_table import FileKind, FileTable

ROW = np.dtype(
    [
        ("key", BINARY),
        ("file", "<i8"),
        ("kind", "<i4"),
        ("look", "<i4"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("bytes", "<i8"),
        ("metadata_bytes", "<i8"),
    ]
)
"""A row; ``file``, ``kind`` and ``look`` are numbers in the table of files, and in its and the rows' lists."""


class ScannedRow(NamedTuple):
    """One usable occurrence of an image.

    Attributes
    ----------
    file
        The file.
    key
        Key of its bytes, 32 hex digits.
    width, height
        Size in pixels as displayed.
    format
        File format in lower case.
    bytes
        Size of the file.
    turned, metadata_bytes, traits
        For an audit, see :class:`.memory.ScanEntry`. ``traits`` is empty for a row that was not scanned.
    """

    file: SourceFile
    key: str
    width: int
    height: int
    format: str
    bytes: int
    turned: bool = False
    metadata_bytes: int = 0
    traits: str = ""


class Look(NamedTuple):
    """What the headers of many files have in common, see :class:`ScannedRow`."""

    format: str
    turned: bool
    traits: str


class RowTable(LazySequence[ScannedRow]):
    """Rows in the order of their files, of which memory holds the distinct kinds and looks alone.

    Parameters
    ----------
    files
        The files, of which each row names one.

    Attributes
    ----------
    looks
        The distinct looks, in the order of their first rows.
    """

    def __init__(self, files: FileTable, looks: list[Look] | None = None) -> None:
        self.files = files
        self.looks: list[Look] = [] if looks is None else looks
        self._number_of = {look: number for number, look in enumerate(self.looks)}
        self._rows = DiskArray(ROW)
        self._counts: Counter[FileKind] | None = None

    @classmethod
    def of(cls, rows: Iterable[ScannedRow]) -> RowTable:
        """Return rows as a table, or the table that they are."""
        if isinstance(rows, cls):
            return rows
        files = FileTable()
        table = cls(files)
        for block in batched(rows):
            numbers = np.arange(len(files), len(files) + len(block))
            files.extend([row.file for row in block])
            table.add(block, numbers)
        return table

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    @property
    def kinds(self) -> list[FileKind]:
        """The distinct kinds of the files."""
        return self.files.kinds

    def add(self, rows: Sequence[ScannedRow], numbers: NDArray[np.int64]) -> None:
        """Add rows of the files with these numbers, (N,), ascending."""
        records = np.empty(len(rows), ROW)
        records["key"] = binary_keys([row.key for row in rows])
        records["file"] = numbers
        records["kind"] = self.files.kind_numbers(numbers)
        records["look"] = [self._look(row) for row in rows]
        for name in ("width", "height", "bytes", "metadata_bytes"):
            records[name] = [getattr(row, name) for row in rows]
        self.append(records)

    def append(self, records: Records) -> None:
        """Add records of the dtype ``ROW``."""
        self._counts = None
        self._rows.append(records)

    def items(self, start: int, stop: int) -> list[ScannedRow]:
        """See :class:`LazySequence`."""
        return self.made(self._rows.read(start, stop))

    def made(self, records: Records) -> list[ScannedRow]:
        """Return the rows that these records stand for."""
        looks = [self.looks[number] for number in records["look"].tolist()]
        columns = (records[name].tolist() for name in ("width", "height", "bytes", "metadata_bytes"))
        return [
            ScannedRow(file, key, width, height, look.format, size, look.turned, metadata_bytes, look.traits)
            for file, key, look, width, height, size, metadata_bytes in zip(
                self.files.at(records["file"]), hex_keys(records["key"]), looks, *columns, strict=True
            )
        ]

    def at(self, numbers: NDArray[np.int64]) -> list[ScannedRow]:
        """Return the rows with these numbers, (N,)."""
        return self.made(self._rows.take(numbers))

    def blocks(self) -> Iterator[Records]:
        """Yield all records, of the dtype ``ROW``, some ten thousands at a time."""
        return self._rows.blocks()

    def chosen(self, masks: Iterable[NDArray[np.bool_]]) -> RowTable:
        """Return the rows that are chosen by a mask for each of :meth:`blocks`."""
        table = RowTable(self.files, self.looks)
        for block, mask in zip(self.blocks(), masks, strict=True):
            table.append(block[mask])
        return table

    def counts(self) -> Counter[FileKind]:
        """Return the number of rows of each kind that occurs."""
        if self._counts is None:
            found = np.zeros(len(self.kinds), np.int64)
            for block in self.blocks():
                found += np.bincount(block["kind"], minlength=len(found))
            self._counts = Counter(
                {kind: count for kind, count in zip(self.kinds, found.tolist(), strict=True) if count}
            )
        return self._counts

    def all_have_traits(self) -> bool:
        """Return whether no row is without traits."""
        without = np.array([not look.traits for look in self.looks], bool)
        return not any(without[block["look"]].any() for block in self.blocks())

    def first_of_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return for each of a few keys the number of the first row with it."""
        wanted = np.unique(binary_keys(keys))
        found = np.full(len(wanted), -1, np.int64)
        start = 0
        for block in self.blocks():
            rows = np.flatnonzero(np.isin(block["key"], wanted))[::-1]
            place = np.searchsorted(wanted, block["key"][rows])
            here = np.full(len(wanted), -1, np.int64)
            here[place] = rows + start  # of several, the last assigned stays: the first row
            found = np.where(found < 0, here, found)
            start += len(block)
        return dict(zip(hex_keys(wanted), found.tolist(), strict=True))

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows in pieces, as tables with the columns of :data:`...cache.records.datasets.SCHEMA`."""
        for block in self.blocks():
            for start in range(0, len(block), ITEMS * 8):
                yield self._table(block[start : start + ITEMS * 8])

    def _table(self, records: Records) -> pa.Table:
        columns: dict[str, pa.Array] = {
            "key": pa.array(hex_keys(records["key"])),
            "path": pa.array(self.files.paths(records["file"])),
            "format": pa.array([look.format for look in self.looks], pa.string()).take(pa.array(records["look"])),
        }
        kind = pa.array(records["kind"])
        for name in ("label", "split", "generator", "family", "group"):
            columns[name] = pa.array([getattr(one, name) for one in self.kinds]).take(kind)
        columns["source"] = pa.array([one.root for one in self.kinds]).take(kind)
        columns |= {name: pa.array(records[name]) for name in ("width", "height", "bytes")}
        return pa.table([columns[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)

    def _look(self, row: ScannedRow) -> int:
        look = Look(row.format, row.turned, row.traits)
        number = self._number_of.get(look)
        if number is None:
            number = self._number_of[look] = len(self.looks)
            self.looks.append(look)
        return number


_KEYED = np.dtype([("key", BINARY), ("row", ">u8"), ("file", ">u8")])
_STEP = 256
"""Records between two keys of the sparse index of :class:`FilesByKey`."""


class FilesByKey(Mapping[str, SourceFile]):
    """The first file of each key. Keys are sorted on disk; memory holds each 256th of them.

    Parameters
    ----------
    rows
        The rows of a scan.
    """

    def __init__(self, rows: RowTable) -> None:
        self._files = rows.files
        self._keyed = sort_records(_keyed(rows), _KEYED)
        every = [self._keyed.read(start, start + 1)["key"] for start in range(0, len(self._keyed), _STEP)]
        self._sparse = np.concatenate([np.empty(0, BINARY), *every])
        self._length = sum(len(group_starts(block["key"])) for block in whole_groups(self._keyed.blocks(), "key"))

    def __getitem__(self, key: str) -> SourceFile:
        """Return the first file with these bytes."""
        wanted = binary_keys([key])
        start = max(int(np.searchsorted(self._sparse, wanted)[0]) - 1, 0) * _STEP
        near = self._keyed.read(start, start + _STEP + 1)
        place = int(np.searchsorted(near["key"], wanted)[0])
        if place == len(near) or near["key"][place] != wanted[0]:
            raise KeyError(key)
        return self._files[int(near["file"][place])]

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, sorted."""
        for block in whole_groups(self._keyed.blocks(), "key"):
            yield from hex_keys(block["key"][group_starts(block["key"])])

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._length


def _keyed(rows: RowTable) -> Iterator[Records]:
    for numbers, block in numbered(rows.blocks()):
        found = np.empty(len(block), _KEYED)
        found["key"], found["file"], found["row"] = block["key"], block["file"], numbers
        yield found


def to_table(rows: Iterable[ScannedRow]) -> pa.Table:
    """Return the rows as a table with the columns of :data:`...cache.records.datasets.SCHEMA`."""
    return pa.concat_tables([SCHEMA.empty_table(), *RowTable.of(rows).tables()])


def scanned_rows(pieces: Iterable[pa.Table]) -> Iterator[ScannedRow]:
    """Yield the rows of a dataset's table as those of a scan."""
    for piece in pieces:
        columns = (piece.column(name).to_pylist() for name in SCHEMA.names)
        for key, source, path, label, split, generator, family, group, width, height, form, size in zip(
            *columns, strict=True
        ):
            file = SourceFile(source, path, label, split, generator, family, group)
            yield ScannedRow(file, key, width, height, form, size)
