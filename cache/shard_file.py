"""One open file of a shard: exact reads at a place, in any thread and after a fork, closed when nobody uses it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from ..errors import IntegrityError
from .marker import how_to_check


class ShardFile:
    """A file opened for reading.

    No position is shared: each read names its place. The file is closed with the last reference, so a reader that one
    thread sets aside stays whole in another that still reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self.unusable(f"cannot be opened: {error.strerror}") from error
        self.close = weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size

    def fill(self, buffer: bytearray | memoryview, place: int) -> None:
        """Fill a buffer of bytes with the bytes from ``place`` on; IntegrityError if the file does not have them."""
        size = len(buffer)
        try:
            got = os.preadv(self._handle, [buffer], place)
        except OSError as error:
            raise self.unusable(f"cannot be read: {error.strerror}") from error
        if got != size:
            raise self.unusable(f"has {got:,} of {size:,} bytes at place {place:,}")

    def read(self, place: int, size: int) -> bytearray:
        """Return ``size`` bytes from ``place`` on; IntegrityError if the file does not have them."""
        data = bytearray(size)
        self.fill(data, place)
        return data

    def unusable(self, why: str) -> IntegrityError:
        """Return the error that names the file, what is wrong with it, and how to look for more."""
        return IntegrityError(f"{self.path}: cannot be used ({why}). {how_to_check(self.path)}")
