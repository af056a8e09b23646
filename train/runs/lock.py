"""The lock of a run folder: only one command at a time trains there, and leftovers of killed commands are removed.

Where the file system has no locks, a lease takes the place of one, as in a cache; see :mod:`...cache.lease`.
"""

from __future__ import annotations

import os
import platform
import random
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from ...cache.lease import FOLDER, lease, read_leases
from ...errors import UserError
from ...storage.atomic import TEMPORARY_PREFIX, make_folder
from ...storage.locks import try_lock
from .forms import own_file

LOCK = "training.lock"
_MOST_BYTES = 1000
_ATTEMPTS = 4


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
        self._lease = ExitStack()

    def __enter__(self) -> Self:
        """Return the lock without taking it, so that a refused command creates no folder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._lease.close()
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
        path = own_file(self.folder / LOCK)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError:
            return  # not writable, which the first file to be written reports
        try:
            free = try_lock(self._handle)
        except OSError:
            self._take_lease()
        else:
            if not free:
                raise self._in_use(_holder(self._handle))
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
            os.pwrite(self._handle, f"process {os.getpid()} on {platform.node()}, since {since} UTC\n".encode(), 0)
        delete_leftovers(self.folder)
        delete_leftovers(self.folder / "checkpoints")

    def _take_lease(self) -> None:
        """Hold a lease. Two commands that take theirs at the same moment both step back, and try again."""
        for attempt in range(_ATTEMPTS):
            mine = self._lease.enter_context(lease(self.folder, "train", ()))
            found = read_leases(self.folder)
            if len(found.live) <= 1:
                for path in found.stale:
                    path.unlink(missing_ok=True)
                return
            self._lease.close()
            other = next((one for one in found.live if f"{one.host}-{one.pid}-" not in mine.name), found.live[0])
            if attempt < _ATTEMPTS - 1:
                time.sleep(random.SystemRandom().uniform(0.05, 0.5))
        raise self._in_use(f"process {other.pid} on {other.host}, since {other.started:%Y-%m-%d %H:%M} UTC")

    def _in_use(self, holder: str) -> UserError:
        return UserError(
            f"{self.folder}: another command is using this run ({holder}). "
            "Wait until it has ended, or choose another --run folder."
        )


def leftover(path: Path) -> bool:
    """Return whether a file in a run folder holds no results: lock, leases, or a temporary file of a killed command."""
    return path.name in (LOCK, FOLDER) or path.name.startswith(TEMPORARY_PREFIX)


def delete_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed commands; only the holder of the lock on a folder may call this."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_file():  # an evaluation being written is a folder
            path.unlink(missing_ok=True)


def _holder(handle: int) -> str:
    text = os.pread(handle, _MOST_BYTES, 0).decode(errors="replace").strip()
    return text or "just started"
