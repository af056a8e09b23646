"""One command at a time writes to a folder or a file: advisory locks, which others ask for before they write.

They are ``flock``'s, so they hold among threads and processes alike and end with the process: a killed one leaves nothing
that blocks. Some network file systems have none. There, work goes on without, and what must not happen twice is made
sure of by creating a file that only one can create (``checkpoint.create_file``).
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from ..cache.atomic import TEMPORARY_PREFIX, make_folder
from ..errors import UserError

LOCK = "training.lock"
_MOST_BYTES = 1000


class Hold:
    """Keeps a run folder for one command, from :meth:`take` until the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take nothing yet, so that a command that is refused leaves no folder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def take(self) -> None:
        """Take the folder, which is made if it is absent; taking it twice is taking it once.

        Temporary files of killed commands are deleted. Raises UserError if another command has the folder.
        """
        if self._handle is not None:
            return
        make_folder(self.folder)
        path = self.folder / LOCK
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            free = try_lock(self._handle)
        except OSError:
            return  # no right to write, of which the first file that is written tells; or a file system without locks
        if not free:
            raise UserError(
                f"{self.folder}: another command works in this run ({_holder(self._handle)}). "
                "Wait until it has ended, or choose another --run folder."
            )
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
            os.pwrite(self._handle, f"process {os.getpid()} on {platform.node()}, since {since} UTC\n".encode(), 0)
        _delete_leftovers(self.folder)


def try_lock(handle: int) -> bool:
    """Lock an open file or folder until its handle is closed; False if another has it, OSError if there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Run a short block while nobody else runs one under the lock ``path``: a folder, or a file, made if it is absent."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    with ExitStack() as stack:
        with suppress(OSError):
            handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class HeldFolder:
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


def leftover(path: Path) -> bool:
    """Say whether a file in a run folder is only what a command that ended, or was killed, left: it holds no results."""
    return path.name == LOCK or path.name.startswith(TEMPORARY_PREFIX)


def _delete_leftovers(folder: Path) -> None:
    for path in (*folder.glob(f"{TEMPORARY_PREFIX}*"), *folder.glob(f"checkpoints/{TEMPORARY_PREFIX}*")):
        if path.is_file():  # an evaluation that is being written is a folder
            path.unlink(missing_ok=True)


def _holder(handle: int) -> str:
    text = os.pread(handle, _MOST_BYTES, 0).decode(errors="replace").strip()
    return text or "it has just begun"
