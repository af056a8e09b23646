"""A file of an object store as a stream of bytes, each read a request for a range."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RemoteStream(io.RawIOBase):
    """An object opened for reading; to be put into a buffer, so that small reads are not requests of their own.

    read_range : returns the bytes between two places. size : of the object.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, as files do."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"{start + offset} is before the file")
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer as far as the object goes."""
        view = memoryview(buffer).cast("B")
        stop = min(self._size, self._place + len(view))
        if stop <= self._place:
            return 0
        data = self._read_range(self._place, stop)
        view[: len(data)] = data
        self._place = stop
        return len(data)
