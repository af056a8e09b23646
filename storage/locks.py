"""One command at a time writes to a folder or a file: advisory locks, which other commands ask for before they write.

They are ``flock``'s, so they hold among threads and processes alike and end with the process: a killed one leaves nothing
that blocks. Some network file systems have none. There, work goes on without, and what must not happen twice is made
sure of by creating a file that only one can create.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import UserError


def try_lock(handle: int) -> bool:
    """Lock an open file or folder until its handle is closed; False if another has it, OSError if there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Run a short block while nobody else runs one under the lock ``path``: a folder, or a file, made if it is absent."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    with ExitStack() as stack:
        with suppress(OSError):
            handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class FolderLock:
    """Keeps an existing folder for this process until it is closed or forgotten. ``refusal``: the sentence for the second."""

    def __init__(self, folder: Path, refusal: str) -> None:
        self._handle: int | None = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            if not try_lock(self._handle):
                self.close()
                raise UserError(refusal)

    def close(self) -> None:
        """Give the folder back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = close

    def __enter__(self) -> Self:
        """Keep the folder for a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder back."""
        self.close()
