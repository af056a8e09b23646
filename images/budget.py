"""Bound the memory that images take while they are decoded, over all threads of a process.

A thread that decodes a large image waits until the others have finished enough of theirs. Each process has a budget of
its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

BUDGET_BYTES = 3 * 1024**3
"""Most bytes of images that are being decoded at a time: as much as the largest accepted JPEG or PNG takes alone."""

_USUAL = 18
_BYTES_PER_PIXEL = {"webp": 24, "avif": 24, "jp2": 32, "heic": 24, "heif": 24, "jxl": 32}
"""Measured: 15.3 for JPEG, PNG, BMP, GIF and TIFF, 23.3 for WebP; the others are guesses on the safe side."""


class MemoryBudget:
    """A budget of bytes, handed out in the order of the requests.

    Parameters
    ----------
    total
        Bytes. A request for more waits until all others are done, and is then alone.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = Condition()

    def resize(self, total: int) -> None:
        """Change the budget, also while some of it is held."""
        with self._changed:
            self._free += total - self.total
            self.total = total
            self._changed.notify_all()

    @contextmanager
    def hold(self, wanted: int) -> Iterator[None]:
        """Take bytes out of the budget, waiting for them if need be, and give them back at the end."""
        ticket = object()
        taken = 0
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= min(wanted, self.total))
                taken = min(wanted, self.total)
                self._free -= taken
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


PIXELS_IN_FLIGHT = MemoryBudget(BUDGET_BYTES)


def decoding_bytes(width: int, height: int, kind: str = "") -> int:
    """Return an estimate of the bytes that it takes to decode and resize an image of a format."""
    return width * height * _BYTES_PER_PIXEL.get(kind, _USUAL)
