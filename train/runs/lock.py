"""The lock of a run folder: only one command at a time trains there, and leftovers of killed commands are removed."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from ...errors import UserError
from ...storage.atomic import TEMPORARY_PREFIX, make_folder
from ...storage.locks import try_lock

LOCK = "training.lock"
_MOST_BYTES = 1000


class RunLock:
    """Locks a run folder from :meth:`take` until the block ends.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Return the lock without taking it, so that a refused command creates no folder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def take(self) -> None:
        """Lock the folder, creating it if it does not exist. Does nothing if this object holds the lock already.

        Temporary files of killed commands are deleted.

        Raises
        ------
        UserError
            Another command holds the lock.
        """
        if self._handle is not None:
            return
        make_folder(self.folder)
        path = self.folder / LOCK
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            free = try_lock(self._handle)
        except OSError:
            return  # not writable, which the first file to be written reports; or a file system without locks
        if not free:
            raise UserError(
                f"{self.folder}: another command is using this run ({_holder(self._handle)}). "
                "Wait until it has ended, or choose another --run folder."
            )
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
            os.pwrite(self._handle, f"process {os.getpid()} on {platform.node()}, since {since} UTC\n".encode(), 0)
        _delete_leftovers(self.folder)


def leftover(path: Path) -> bool:
    """Return whether a file in a run folder holds no results: the lock, or a temporary file of a killed command."""
    return path.name == LOCK or path.name.startswith(TEMPORARY_PREFIX)


def _delete_leftovers(folder: Path) -> None:
    for path in (*folder.glob(f"{TEMPORARY_PREFIX}*"), *folder.glob(f"checkpoints/{TEMPORARY_PREFIX}*")):
        if path.is_file():  # an evaluation being written is a folder
            path.unlink(missing_ok=True)


def _holder(handle: int) -> str:
    text = os.pread(handle, _MOST_BYTES, 0).decode(errors="replace").strip()
    return text or "just started"
