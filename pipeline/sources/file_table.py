"""The files of a source in little memory: their paths are on disk, and what most of them share is kept once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...storage.disk_array import DiskArray, Records
from ...storage.lazy_sequence import ITEMS, LazySequence, batched
from .file import MEMBER_KINDS, ListedObject, Member, SourceFile

_FILE = np.dtype(
    [
        *(("start", "<i8"), ("path", "<i4"), ("place", "<i4"), ("kind", "<i4")),
        *(("listed", "?"), ("bytes", "<i8"), ("mtime_ns", "<i8")),
    ]
)
"""Where a file's text starts, the bytes of its path and, behind it, of its place, the number of its kind, its listing."""
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
        apart = (np.diff(numbers) < 0) | (np.diff(records["start"]) > _NEAR_BYTES)
        pieces = np.split(records, np.flatnonzero(apart) + 1)
        return [file for piece in pieces for file in self._made(piece)]

    def paths(self, numbers: NDArray[np.int64]) -> list[str]:
        """Return the paths of the files at these numbers, (N,)."""
        return [file.path for file in self.at(numbers)]

    def kind_numbers(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the number of the kind of each of these files, (N,)."""
        return np.array(self._files.take(numbers)["kind"])

    def keys(self, prefixes: Sequence[bytes]) -> Iterator[bytes]:
        """Yield for each file the prefix of its kind, its path in UTF-8, and its stamp if it is in an archive.

        This makes no :class:`.file.SourceFile`.
        """
        for block in self._files.blocks(ITEMS):
            text, starts = self._text_of(block)
            columns = (block[name].tolist() for name in ("path", "place", "kind"))
            for start, path_bytes, place_bytes, kind in zip(starts, *columns, strict=True):
                middle = start + path_bytes
                stamp = _parse_place(text[middle : middle + place_bytes]).stamp if place_bytes else b""
                yield prefixes[kind] + text[start:middle] + stamp

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
        places = [_place(file.member) for file in files]
        listings = [file.listed for file in files]
        records = np.empty(len(files), _FILE)
        records["path"] = list(map(len, paths))
        records["place"] = list(map(len, places))
        sizes = records["path"].astype(np.int64) + records["place"]
        records["start"] = len(self._text) + np.cumsum(sizes) - sizes
        records["kind"] = [self._kind(file) for file in files]
        records["listed"] = [listing is not None for listing in listings]
        records["bytes"], records["mtime_ns"] = zip(*(listing or (0, 0) for listing in listings), strict=True)
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
        text, starts = self._text_of(records)
        columns = (records[name].tolist() for name in ("path", "place", "kind", "listed", "bytes", "mtime_ns"))
        for start, path_bytes, place_bytes, kind, is_listed, size, mtime_ns in zip(starts, *columns, strict=True):
            middle = start + path_bytes
            path = text[start:middle].decode(errors="surrogatepass")
            member = _parse_place(text[middle : middle + place_bytes]) if place_bytes else None
            listed = ListedObject(size, mtime_ns) if is_listed else None
            root, label, split, generator, family, group = self.kinds[kind]
            yield SourceFile(root, path, label, split, generator, family, group, member, listed)

    def _text_of(self, records: Records) -> tuple[bytes, list[int]]:
        """Return the text of files in ascending order, some of it between them, and where each begins in it."""
        first, last = int(records["start"][0]), records[-1]
        text = self._text.read(first, int(last["start"]) + int(last["path"]) + int(last["place"]))
        return text.tobytes(), (records["start"] - first).tolist()


def _place(member: Member | None) -> bytes:
    """Return where an image is in an archive, as JSON; empty for most files."""
    return b"" if member is None else json.dumps([member.kind, *astuple(member)], separators=(",", ":")).encode()


def _parse_place(text: bytes) -> Member:
    kind, *fields = json.loads(text)
    return MEMBER_KINDS[kind](*fields)
