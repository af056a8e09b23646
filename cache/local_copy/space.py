"""The disk space of a local copy: what it holds, what is evicted, and the locks of the processes that share it.

Files are locked with ``flock``, which excludes threads and processes alike and ends with the process. So the leftovers
of a killed process are recognised at once: nothing holds their lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import IntegrityError, UnreachableError
from ...storage.atomic import TEMPORARY_PREFIX
from ..shards.data import remove_data
from ..shards.format import data_files
from ..shards.marker import DATA_NAME

LOCKS = ".locks"
KEEP_SECONDS = 3600
_ROOM = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(\d+)-[0-9a-f]{{16}}")
_LOCK = "lock"


class CopiedShard(NamedTuple):
    """A shard in the copy.

    Attributes
    ----------
    data
        Path of its data.
    bytes
        Their size.
    used
        When it was last used, in seconds since the epoch.
    """

    data: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class DiskBudget:
    """The space of a local copy.

    Parameters
    ----------
    folder
        The folder of the copy.
    max_bytes
        Its size limit.
    started
        Shards used since then, within the last hour, are not evicted.
    """

    folder: Path
    max_bytes: int
    started: float
    _sizes: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Lock the copy: while the block runs, no other thread or process frees space or adds a shard."""
        return locked(self.folder / LOCKS / "all")

    def fetching(self, shard: str) -> contextlib.AbstractContextManager[None]:
        """Lock a shard, and 1 in 256 others with it: while the block runs, nothing else fetches it."""
        return locked(self.folder / LOCKS / shard[:2])

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[Path | None]:
        """Reserve space while the block runs.

        Parameters
        ----------
        size
            Bytes.

        Yields
        ------
        Path or None
            A folder to write to, which is deleted after the block. None if there is no reserved.

        Raises
        ------
        OSError
            If the disk is full or cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self.exclusive():
                reserved = (
                    self.folder / f"{TEMPORARY_PREFIX}{size}-{secrets.token_hex(8)}" if self._free(size) else None
                )
                if reserved is not None:
                    reserved.mkdir()
                    stack.callback(shutil.rmtree, reserved, ignore_errors=True)
                    stack.enter_context(locked(reserved / _LOCK))
            yield reserved

    def shards(self) -> list[CopiedShard]:
        """Return the shards in the copy, except those being fetched."""
        found = []
        for folder in (self.folder / name for name in _names(self.folder) if not name.startswith(".")):
            for name in _names(folder):
                if match := DATA_NAME.fullmatch(name):
                    path = folder / name
                    # it may just have been deleted, or be unreadable
                    with contextlib.suppress(IntegrityError, UnreachableError):
                        if name not in self._sizes:
                            self._sizes[name] = sum(size for _, _, size in data_files(path))
                        found.append(CopiedShard(path, self._sizes[name], _time(marker_path(path, match[1]))))
        return found

    def delete(self, data: Path) -> None:
        """Delete a shard from the copy; a process that has it open reads on. The caller holds the exclusive lock."""
        remove_data(data)
        marker_path(data, data.name[:32]).unlink(missing_ok=True)
        self._sizes.pop(data.name, None)

    def _free(self, size: int) -> bool:
        """Evict the least recently used shards until ``size`` bytes fit; nothing if that is not enough."""
        held, reserved = self.shards(), self._reserved()
        free = shutil.disk_usage(self.folder).free
        over_limit = sum(shard.bytes for shard in held) + reserved + size - self.max_bytes
        over_disk = reserved + size - free
        kept_from = max(self.started, time.time() - KEEP_SECONDS)
        unused = sorted((shard for shard in held if shard.used < kept_from), key=lambda shard: shard.used)
        evictable = sum(shard.bytes for shard in unused)
        if evictable < over_limit:
            return False
        if evictable < over_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        missing = max(over_limit, over_disk)
        for shard in unused:
            if missing <= 0:
                break
            self.delete(shard.data)
            missing -= shard.bytes
        return True

    def _reserved(self) -> int:
        """Return the bytes that other processes reserve; the leftovers of killed ones are deleted."""
        total = 0
        for name in _names(self.folder):
            if match := _ROOM.fullmatch(name):
                if _is_locked(self.folder / name / _LOCK):
                    total += int(match[1])
                else:
                    shutil.rmtree(self.folder / name, ignore_errors=True)
        return total


def marker_path(data: Path, shard: str) -> Path:
    """Return the path of a shard's marker in the copy."""
    return data.with_name(f"{shard}.json")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, exclusive among threads and processes, while the block runs; OSError if the file system has none."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(path: Path) -> bool:
    """Return whether a running process holds a lock."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _names(folder: Path) -> list[str]:
    """Return the names in a folder of the copy; nothing for a file, a link, or a folder deleted meanwhile."""
    try:
        return os.listdir(folder) if stat.S_ISDIR(folder.lstat().st_mode) else []  # noqa: PTH208
    except FileNotFoundError:
        return []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
