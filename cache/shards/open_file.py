"""One open file of a shard: exact reads at a place, in any thread and after a fork, closed when nobody uses it.

A file of this machine is read where it is asked. Each read of an object in a store is a request, which takes as long for
one byte as for a mebibyte: so a reader first asks for a window over all that it is about to read.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from ...errors import IntegrityError
from ...storage import AnyPath, RemotePath, unreachable_error, unreachable_on_error
from .marker import check_hint

MAX_GAP = 1 << 20
"""Bytes nobody asked for that are fetched over rather than making another request."""
MAX_FETCHED = 3
WINDOW_BYTES = 64 << 20
"""What a reader should ask for in one window at most, so that what is held in memory stays small."""


class ShardFile(ABC):
    """A file opened for reading; no position is shared, each read names its place.

    path : where it lies. size : its bytes. by_requests : whether reads are worth bundling with :meth:`window`.
    """

    path: AnyPath
    size: int
    by_requests = False

    @abstractmethod
    def fill(self, buffer: bytearray | memoryview, place: int) -> None:
        """Fill a buffer of bytes with the bytes from ``place`` on; IntegrityError if the file does not have them."""

    def read(self, place: int, size: int) -> bytearray:
        """Return ``size`` bytes from ``place`` on; IntegrityError if the file does not have them."""
        data = bytearray(size)
        self.fill(data, place)
        return data

    def window(self, spans: Sequence[tuple[int, int]]) -> ShardFile:
        """Return what reads the same bytes within ``spans``, (place, size) each, without further requests."""
        return self

    def unusable(self, why: str) -> IntegrityError:
        """Return the error that names the file, what is wrong with it, and how to look for more."""
        return IntegrityError(f"{self.path}: cannot be used ({why}). {check_hint(self.path)}")


class LocalFile(ShardFile):
    """A file of this machine, closed with the last reference to it.

    So a reader that one thread sets aside stays whole in another that still reads, and one whose file is deleted, too.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with unreachable_on_error(path):
                self._handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise self.unusable(f"cannot be opened: {error.strerror}") from error
        self.close = weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size

    def fill(self, buffer: bytearray | memoryview, place: int) -> None:
        """Read straight into the buffer."""
        size = len(buffer)
        with unreachable_on_error(self.path):
            got = os.preadv(self._handle, [buffer], place)
        if got != size:
            raise self.unusable(f"has {got:,} of {size:,} bytes at place {place:,}")


class RemoteFile(ShardFile):
    """An object in a store. Nothing stays open: each read is a request of its own.

    What is missing or has another size than at first is an IntegrityError; a store or a network that fails even after
    several tries is an UnreachableError, for it says nothing about the cache.
    """

    path: RemotePath
    by_requests = True

    def __init__(self, path: RemotePath, size: int | None = None) -> None:
        self.path = path
        self.size = self._size() if size is None else size

    def fill(self, buffer: bytearray | memoryview, place: int) -> None:
        """Make one request and copy what it brings."""
        buffer[:] = self._fetch(place, len(buffer))

    def window(self, spans: Sequence[tuple[int, int]]) -> ShardFile:
        """Fetch the spans, those that lie closely together in one request."""
        return RangeWindow(self, [(start, self._fetch(start, stop - start)) for start, stop in merge_ranges(spans)])

    def _fetch(self, place: int, size: int) -> bytes:
        if place + size > self.size:
            raise self.unusable(f"has {max(0, self.size - place):,} of {size:,} bytes at place {place:,}")
        try:
            return self.path.read_range(place, place + size)
        except OSError as error:
            now = self._size()
            if now != self.size:
                raise self.unusable(f"has {now:,} bytes now and had {self.size:,}") from error
            raise unreachable_error(self.path, error) from error

    def _size(self) -> int:
        try:
            with unreachable_on_error(self.path):
                return self.path.stat().st_size
        except FileNotFoundError as error:
            raise self.unusable(f"cannot be opened: {os.strerror(2)}") from error


class RangeWindow(ShardFile):
    """Parts of an object that were fetched: (place, bytes) each, in rising order."""

    def __init__(self, file: ShardFile, parts: Sequence[tuple[int, bytes]]) -> None:
        self.path = file.path
        self.size = file.size
        self._parts = parts

    def fill(self, buffer: bytearray | memoryview, place: int) -> None:
        """Copy from the range that holds the bytes; ValueError if none does."""
        for start, data in self._parts:
            if start <= place and place + len(buffer) <= start + len(data):
                buffer[:] = memoryview(data)[place - start : place - start + len(buffer)]
                return
        raise ValueError(f"{len(buffer):,} bytes at place {place:,} were not asked for")


def open_file(path: AnyPath, size: int | None = None) -> ShardFile:
    """Open a file for reading; IntegrityError if it is not there.

    size : that of an object in a store, where a listing has given it; without it the store is asked.
    """
    return RemoteFile(path, size) if isinstance(path, RemotePath) else LocalFile(path)


def merge_ranges(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (start, stop) of what to fetch for ``spans``, (place, size) each, in rising order.

    Two are fetched in one if little lies between them, and as long as at most ``MAX_FETCHED`` times what was asked is.
    """
    found: list[tuple[int, int]] = []
    asked = 0
    for place, size in sorted(spans):
        if found:
            start, end = found[-1]
            stop = max(end, place + size)
            if place - end <= MAX_GAP and stop - start <= MAX_FETCHED * (asked + size):
                found[-1] = start, stop
                asked += size
                continue
        found.append((place, place + size))
        asked = size
    return found
