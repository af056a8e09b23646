"""Room in the folder of a local copy: what is held there, what must go, and the locks of those who share it.

Files are locked with ``flock``, which holds among threads and processes alike and ends with the process. So what a killed
one has left is known at once: nobody holds its lock.
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
    """A shard in the copy: its data, its bytes, and when it was last used."""

    data: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class DiskBudget:
    """Room for ``most_bytes`` bytes of data in ``folder``.

    began : what was used since then, within the last hour, is not deleted.
    """

    folder: Path
    most_bytes: int
    began: float
    _sizes: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """While the block runs, nobody else makes room or puts anything in its place."""
        return locked(self.folder / LOCKS / "all")

    def fetching(self, shard: str) -> contextlib.AbstractContextManager[None]:
        """While the block runs, nobody else fetches this shard, nor one of a 256th of the others."""
        return locked(self.folder / LOCKS / shard[:2])

    @contextlib.contextmanager
    def kept(self, size: int) -> Iterator[Path | None]:
        """Keep room for ``size`` bytes while the block runs: a folder for them, which goes with it.

        None if there is no room; OSError if this disk has none, or cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self.alone():
                room = self.folder / f"{TEMPORARY_PREFIX}{size}-{secrets.token_hex(8)}" if self._make(size) else None
                if room is not None:
                    room.mkdir()
                    stack.callback(shutil.rmtree, room, ignore_errors=True)
                    stack.enter_context(locked(room / _LOCK))
            yield room

    def held(self) -> list[CopiedShard]:
        """Return the shards in the copy, without those that are just being fetched."""
        found = []
        for folder in (self.folder / name for name in _names(self.folder) if not name.startswith(".")):
            for name in _names(folder):
                if match := DATA_NAME.fullmatch(name):
                    path = folder / name
                    with contextlib.suppress(
                        IntegrityError, UnreachableError
                    ):  # deleted just now, or it cannot be read
                        if name not in self._sizes:
                            self._sizes[name] = sum(size for _, _, size in data_files(path))
                        found.append(CopiedShard(path, self._sizes[name], _time(marker_path(path, match[1]))))
        return found

    def delete(self, data: Path) -> None:
        """Delete a shard from the copy; who has it open reads on. To be called by who is alone."""
        remove_data(data)
        marker_path(data, data.name[:32]).unlink(missing_ok=True)
        self._sizes.pop(data.name, None)

    def _make(self, size: int) -> bool:
        """Delete what was not used for the longest time until ``size`` bytes fit; nothing if they cannot fit so."""
        held, reserved = self.held(), self._reserved()
        free = shutil.disk_usage(self.folder).free
        too_much = sum(one.bytes for one in held) + reserved + size - self.most_bytes
        too_much_here = reserved + size - free
        kept_from = max(self.began, time.time() - KEEP_SECONDS)
        unused = sorted((one for one in held if one.used < kept_from), key=lambda one: one.used)
        room = sum(one.bytes for one in unused)
        if room < too_much:
            return False
        if room < too_much_here:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        missing = max(too_much, too_much_here)
        for one in unused:
            if missing <= 0:
                break
            self.delete(one.data)
            missing -= one.bytes
        return True

    def _reserved(self) -> int:
        """Return the bytes for which others keep room; what killed processes left is deleted."""
        total = 0
        for name in _names(self.folder):
            if match := _ROOM.fullmatch(name):
                if _is_locked(self.folder / name / _LOCK):
                    total += int(match[1])
                else:
                    shutil.rmtree(self.folder / name, ignore_errors=True)
        return total


def marker_path(data: Path, shard: str) -> Path:
    """Return where the marker of a shard lies in the copy."""
    return data.with_name(f"{shard}.json")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, among threads and processes alike, while the block runs. OSError if there are none here."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(path: Path) -> bool:
    """Say whether a living process holds a lock."""
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
    """Return what lies in a folder of the copy; nothing for a file, a link, or what was deleted just now. OSError."""
    try:
        return os.listdir(folder) if stat.S_ISDIR(folder.lstat().st_mode) else []  # noqa: PTH208
    except FileNotFoundError:
        return []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
