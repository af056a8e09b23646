"""One open file for reading at any offset, safe across threads and forks, closed with the last reference.

In an object store a request for one byte takes as long as one for a mebibyte. So a reader first fetches a window that
covers all it is about to read. A local file is read directly.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from ..errors import IntegrityError
from .paths import AnyPath, unreachable_error, unreachable_on_error
from .remote import RemotePath

MAX_GAP = 1 << 20
"""Largest gap in bytes between two ranges that are fetched with one request."""
MAX_FETCHED = 3
"""Most bytes fetched per byte asked for when ranges are merged."""
WINDOW_BYTES = 64 << 20
"""Most bytes that a reader should ask for in one window, which bounds its memory."""


class RangeFile(ABC):
    """A file opened for positioned reads; there is no shared position.

    Attributes
    ----------
    path
        The file.
    size
        Its size in bytes.
    hint
        The sentence that follows in an error of damage, such as how to check the folder.
    by_requests
        Whether each read is a request, so that bundling reads with :meth:`window` pays.
    """

    path: AnyPath
    size: int
    hint: str
    by_requests = False

    @abstractmethod
    def fill(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from ``offset`` on; IntegrityError if the file is too short."""

    def read(self, offset: int, size: int) -> bytearray:
        """Return ``size`` bytes from ``offset`` on; IntegrityError if the file is too short."""
        data = bytearray(size)
        self.fill(data, offset)
        return data

    def window(self, spans: Sequence[tuple[int, int]]) -> RangeFile:
        """Return a file from which the given ranges can be read without further requests.

        Parameters
        ----------
        spans
            (offset, size) of each range.
        """
        return self

    def unusable(self, why: str) -> IntegrityError:
        """Return the error that names the file and the problem, with the hint."""
        return IntegrityError(f"{self.path}: cannot be used ({why}). {self.hint}".rstrip())


class LocalFile(RangeFile):
    """A file on a local disk, closed with the last reference to it.

    So a reader that one thread evicts stays usable in another, as does one whose file is deleted.

    Raises
    ------
    IntegrityError
        If the file is absent.
    UnreachableError
        If it cannot be opened at the moment.
    """

    path: Path

    def __init__(self, path: Path, hint: str) -> None:
        self.path = path
        self.hint = hint
        try:
            with unreachable_on_error(path):
                self._handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise self.unusable(f"cannot be opened: {error.strerror}") from error
        self.close = weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size

    def fill(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Read directly into the buffer."""
        size = len(buffer)
        with unreachable_on_error(self.path):
            got = os.preadv(self._handle, [buffer], offset)
        if got != size:
            raise self.unusable(f"has {got:,} of {size:,} bytes at offset {offset:,}")


class RemoteFile(RangeFile):
    """An object in a store. Nothing stays open: each read is a request.

    An object that is missing, or whose size has changed, is an IntegrityError. A store or network that still fails
    after retries is an UnreachableError, since that says nothing about the cache.

    Parameters
    ----------
    path
        The object.
    size
        Its size in bytes, if a listing has given it; otherwise the store is asked.
    hint
        As in :class:`RangeFile`.
    """

    path: RemotePath
    by_requests = True

    def __init__(self, path: RemotePath, size: int | None, hint: str) -> None:
        self.path = path
        self.hint = hint
        self.size = self._size() if size is None else size

    def fill(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fetch the range with one request."""
        buffer[:] = self._fetch(offset, len(buffer))

    def window(self, spans: Sequence[tuple[int, int]]) -> RangeFile:
        """Fetch the ranges; those close to each other share a request."""
        return RangeWindow(self, [(start, self._fetch(start, stop - start)) for start, stop in merge_ranges(spans)])

    def _fetch(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            raise self.unusable(f"has {max(0, self.size - offset):,} of {size:,} bytes at offset {offset:,}")
        try:
            return self.path.read_range(offset, offset + size)
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


class RangeWindow(RangeFile):
    """Ranges of an object that were fetched.

    Parameters
    ----------
    file
        The object.
    parts
        (offset, bytes) of each range, in ascending order.
    """

    def __init__(self, file: RangeFile, parts: Sequence[tuple[int, bytes]]) -> None:
        self.path = file.path
        self.size = file.size
        self.hint = file.hint
        self._parts = parts

    def fill(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Copy from the range that covers the bytes; ValueError if none does."""
        for start, data in self._parts:
            if start <= offset and offset + len(buffer) <= start + len(data):
                buffer[:] = memoryview(data)[offset - start : offset - start + len(buffer)]
                return
        raise ValueError(f"{len(buffer):,} bytes at offset {offset:,} were not asked for")


def open_ranges(path: AnyPath, size: int | None = None, hint: str = "") -> RangeFile:
    """Open a file for positioned reads.

    Parameters
    ----------
    path
        The file or object.
    size
        An object's size in bytes, if a listing has given it; otherwise the store is asked.
    hint
        The sentence that follows in an error of damage.

    Raises
    ------
    IntegrityError
        If it does not exist.
    UnreachableError
        If it cannot be opened at the moment.
    """
    return RemoteFile(path, size, hint) if isinstance(path, RemotePath) else LocalFile(path, hint)


def merge_ranges(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge the ranges to fetch from an object store.

    Two ranges are merged if the gap between them is at most ``MAX_GAP`` and the merged range has at most
    ``MAX_FETCHED`` times the bytes asked for.

    Parameters
    ----------
    spans
        (offset, size) of each range.

    Returns
    -------
    list of tuple
        (start, stop) of each range to fetch, in ascending order.
    """
    found: list[tuple[int, int]] = []
    asked = 0
    for offset, size in sorted(spans):
        if found:
            start, end = found[-1]
            stop = max(end, offset + size)
            if offset - end <= MAX_GAP and stop - start <= MAX_FETCHED * (asked + size):
                found[-1] = start, stop
                asked += size
                continue
        found.append((offset, offset + size))
        asked = size
    return found
