"""The files of a source in little memory: their paths are on disk, and what most of them share is kept once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...storage.disk_array import DiskArray, Records
from ...storage.lazy_sequence import LazySequence, batched
from .file import MEMBER_KINDS, ListedObject, Member, SourceFile

_FILE = np.dtype([("start", "<i8"), ("path", "<i4"), ("place", "<i4"), ("kind", "<i4")])
"""Where a file's text starts, the bytes of its path and, behind it, of its place, and the number of its kind."""
_NEAR_BYTES = 2**12
"""Text to read over between two files rather than read twice."""


class FileKind(NamedTuple):
    """What many files have in common, see :class:`.file.SourceFile`."""

    root: str
    label: int
    split: str
    generator: str
    family: str
    group: str


class FileTable(LazySequence[SourceFile]):
    """Files in a fixed order, of which memory holds the distinct kinds alone.

    Parameters
    ----------
    files
        The files.

    Attributes
    ----------
    kinds
        The distinct kinds, in the order of their first files.
    """

    def __init__(self, files: Iterable[SourceFile] = ()) -> None:
        self.kinds: list[FileKind] = []
        self._number_of: dict[FileKind, int] = {}
        self._files = DiskArray(_FILE)
        self._text = DiskArray(np.uint8)
        self.extend(files)

    @classmethod
    def of(cls, files: Iterable[SourceFile]) -> FileTable:
        """Return the files as a table, or the table that they are."""
        return files if isinstance(files, cls) else cls(files)

    @classmethod
    def joined(cls, tables: Sequence[Sequence[SourceFile]]) -> FileTable:
        """Return the files of all tables, one after the other."""
        return cls.of(tables[0]) if len(tables) == 1 else cls(file for table in tables for file in table)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._files)

    def items(self, start: int, stop: int) -> list[SourceFile]:
        """See :class:`LazySequence`."""
        return list(self._made(self._files.read(start, stop)))

    def at(self, numbers: NDArray[np.int64]) -> list[SourceFile]:
        """Return the files at these numbers, (N,), quickest in ascending order."""
        records = self._files.take(numbers)
        gaps = np.diff(records["start"])
        pieces = np.split(records, np.flatnonzero((gaps < 0) | (gaps > _NEAR_BYTES)) + 1)
        return [file for piece in pieces for file in self._made(piece)]

    def paths(self, numbers: NDArray[np.int64]) -> list[str]:
        """Return the paths of the files at these numbers, (N,)."""
        return [file.path for file in self.at(numbers)]

    def kind_numbers(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the number of the kind of each of these files, (N,)."""
        return np.array(self._files.take(numbers)["kind"])

    def counts(self) -> dict[FileKind, int]:
        """Return the number of files of each kind."""
        found = np.zeros(len(self.kinds), np.int64)
        for block in self._files.blocks():
            found += np.bincount(block["kind"], minlength=len(found))
        return dict(zip(self.kinds, found.tolist(), strict=True))

    def extend(self, files: Iterable[SourceFile]) -> None:
        """Add files at the end."""
        for block in batched(files):
            self._append(block)

    def _append(self, files: Sequence[SourceFile]) -> None:
        paths = [file.path.encode(errors="surrogatepass") for file in files]
        places = [_place(file) for file in files]
        records = np.empty(len(files), _FILE)
        records["path"] = list(map(len, paths))
        records["place"] = list(map(len, places))
        sizes = records["path"].astype(np.int64) + records["place"]
        records["start"] = len(self._text) + np.cumsum(sizes) - sizes
        records["kind"] = [self._kind(file) for file in files]
        text = b"".join(part for pair in zip(paths, places, strict=True) for part in pair)
        self._text.append(np.frombuffer(text, np.uint8))
        self._files.append(records)

    def _kind(self, file: SourceFile) -> int:
        kind = FileKind(file.root, file.label, file.split, file.generator, file.family, file.group)
        number = self._number_of.get(kind)
        if number is None:
            number = self._number_of[kind] = len(self.kinds)
            self.kinds.append(kind)
        return number

    def _made(self, records: Records) -> Iterator[SourceFile]:
        if not len(records):
            return
        first = int(records["start"][0])
        last = int(records["start"][-1]) + int(records["path"][-1]) + int(records["place"][-1])
        text = self._text.read(first, last).tobytes()
        columns = (records[name].tolist() for name in ("start", "path", "place", "kind"))
        for start, path_bytes, place_bytes, kind in zip(*columns, strict=True):
            middle = start - first + path_bytes
            path = text[start - first : middle].decode(errors="surrogatepass")
            member, listed = _parse_place(text[middle : middle + place_bytes]) if place_bytes else (None, None)
            root, label, split, generator, family, group = self.kinds[kind]
            yield SourceFile(root, path, label, split, generator, family, group, member, listed)


def _place(file: SourceFile) -> bytes:
    """Return where an image is in an archive, and its listing, as JSON; empty for most files."""
    if file.member is None and file.listed is None:
        return b""
    member = file.member and [file.member.kind, *astuple(file.member)]
    return json.dumps([member, file.listed], separators=(",", ":")).encode()


def _parse_place(text: bytes) -> tuple[Member | None, ListedObject | None]:
    member, listed = json.loads(text)
    return (
        None if member is None else MEMBER_KINDS[member[0]](*member[1:]),
        None if listed is None else ListedObject(*listed),
    )
