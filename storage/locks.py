"""Advisory locks, so that only one command at a time writes to a folder or file.

They are ``flock`` locks: they exclude threads and processes alike and end with the process, so a killed process leaves
nothing that blocks. Some network file systems have none. There commands run without a lock, and what must not happen
twice is guarded by creating a file exclusively.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import UserError


def try_lock(handle: int) -> bool:
    """Lock an open file or folder without waiting. The lock lasts until its handle is closed.

    Returns
    -------
    bool
        False if another handle has the lock.

    Raises
    ------
    OSError
        If the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def waiting_lock(path: Path) -> Iterator[bool]:
    """Hold a lock while a short block runs, waiting for it if need be; without locks the block just runs.

    Yields whether the lock is held.

    Parameters
    ----------
    path
        A folder, or a lock file, which is created if absent.
    """
    flags, locked = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, False
    with ExitStack() as stack:
        with suppress(OSError):
            handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        yield locked


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder with a unique name, lock it for a block, and delete it afterwards if it is still there.

    The folders of this prefix that killed commands left are deleted first: those that nobody has locked. On a file system
    without locks they stay.

    Parameters
    ----------
    parent
        An existing folder.
    prefix
        Beginning of the name.
    """
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        if left.is_dir() and not left.is_symlink():
            _delete_if_free(left)
    handle = None
    while handle is None:  # another command may take it for one that was left, until it is locked
        path = parent / f"{prefix}{secrets.token_hex(8)}"
        path.mkdir()
        handle = _lock_folder(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _lock_folder(path: Path) -> int | None:
    """Open and lock a folder; None if another command has deleted it, or is about to."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        free = try_lock(handle)
    except OSError:
        return handle  # a file system without locks, where nobody deletes it either
    if free and os.fstat(handle).st_nlink and path.is_dir():
        return handle
    os.close(handle)
    return None


def _delete_if_free(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if try_lock(handle):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)


class FolderLock:
    """A lock on an existing folder, held until it is closed or garbage collected.

    Parameters
    ----------
    folder
        The folder.
    refusal
        The error sentence if another process has the lock.

    Raises
    ------
    UserError
        If another process has the lock.
    """

    def __init__(self, folder: Path, refusal: str) -> None:
        self._handle: int | None = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self.locked = False
        """Whether the lock is held; False on a file system without locks."""
        with suppress(OSError):
            self.locked = try_lock(self._handle)
            if not self.locked:
                self.close()
                raise UserError(refusal)

    def close(self) -> None:
        """Release the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = close

    def __enter__(self) -> Self:
        """Hold the lock for a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.close()
