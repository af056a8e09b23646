"""A read-through cache of shards on a local disk, of bounded size, for a cache that is remote or slow.

    DIR/local-copy.json                 marks the folder as a local copy
    DIR/eps-1f3a…/SHARD-NONCE.zarr      a shard's data, as in the cache; its time is that of its last checksum
    DIR/eps-1f3a…/SHARD.json            its marker; its time is that of its last use
    DIR/.tmp-BYTES-NONCE/               a shard being fetched, and the space reserved for it
    DIR/.locks/                         lock files

A shard is fetched whole, checked against its marker's checksum, and renamed to its final path. Any number of processes
share a folder: they lock it while they free space or add a shard, and no two fetch the same shard at once.

The least recently used shards are evicted to make room, except those used within the last hour since the command
started. An epoch reads every shard about once in random order, so evicting one to fetch another would refetch most of
them again and again. A shard for which there is no room is read from the cache itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from ...errors import IntegrityError, UnreachableError, UserError
from ...storage import AnyPath, path_exists
from ...storage.atomic import cannot_write, fsync_folder, fsync_tree
from ...storage.text import visible
from ..shards.data import remove_data
from ..shards.format import Rows, ShardReader, checksum, data_files
from ..shards.marker import Marker, check_hint, read_marker
from ..shards.open_file import open_file
from .space import LOCKS, DiskBudget, marker_path

NAME = "local-copy.json"
MAX_OPEN = 16
"""Copied shards of a feature that stay open. A deleted shard occupies the disk until it is closed."""
CHECK_SECONDS = 7 * 24 * 3600
"""Age in seconds after which a copy's checksum is verified again before use."""
_TOUCH_SECONDS = 60
_FULL_SECONDS = 60
_BLOCK = 8 << 20

_Opener = Callable[[AnyPath], ShardReader]
"""Opens a shard's data at a path; IntegrityError if they are not what the marker says."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalCopy:
    """A local copy of shards. It can be pickled and used in other processes.

    Parameters
    ----------
    folder
        The folder of the copy.
    max_bytes
        Its size limit.
    started
        When the command started, in seconds since the epoch. Shards used since then are kept for an hour.
    """

    folder: Path
    max_bytes: int
    started: float = field(default_factory=time.time)
    _full: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def at(cls, folder: Path, max_bytes: int | None = None) -> LocalCopy:
        """Return the copy in a folder, which is created if absent.

        Parameters
        ----------
        folder
            The folder.
        max_bytes
            Its size limit; by default half of the space that is free on its disk or already used by the copy.

        Raises
        ------
        UserError
            If the folder holds something else, cannot be written, or its file system has no locks.
        """
        mark = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = set(os.listdir(folder)) - {NAME, LOCKS}  # noqa: PTH208
            if others and not path_exists(mark):
                raise UserError(
                    f"{folder}: is neither empty nor a local copy of a cache. Give --local-copy a new folder."
                )
            (folder / LOCKS).mkdir(exist_ok=True)
            mark.touch()
            fsync_folder(folder)  # without the mark, what a power failure leaves would be refused
            copy = cls(folder, max_bytes or 0)
            with copy._budget.exclusive():
                if max_bytes is not None:
                    return copy
                free = shutil.disk_usage(folder).free
                return cls(folder, (free + sum(shard.bytes for shard in copy._budget.shards())) // 2)
        except OSError as error:
            raise cannot_write(folder, error) from error

    @cached_property
    def _budget(self) -> DiskBudget:
        return DiskBudget(self.folder, self.max_bytes, self.started)

    def open(self, feature: str, data: AnyPath, marker: Marker, opened: _Opener) -> ShardReader:
        """Open a shard in the copy, fetching it if need be.

        A copy that turns out to be damaged, or that another process deletes, is fetched again.

        Parameters
        ----------
        feature
            Name of the feature's folder.
        data
            The shard's data in the cache, which are opened instead if there is no room.
        marker
            The shard's marker.
        opened
            Opens the data at a path.

        Raises
        ------
        IntegrityError
            If the data in the cache are damaged.
        """
        for _ in range(2):
            path = self.path(feature, data, marker)
            if path is None:
                break
            try:
                return _CopiedReader(self, feature, data, marker, opened, opened(path))
            except (IntegrityError, UnreachableError):
                self.drop(path)
        return opened(data)

    def path(self, feature: str, data: AnyPath, marker: Marker) -> Path | None:
        """Return the path of a shard's data in the copy, fetching them if need be.

        Parameters
        ----------
        feature
            Name of the feature's folder.
        data
            The shard's data in the cache.
        marker
            The shard's marker.

        Returns
        -------
        Path or None
            None if there is no room.

        Raises
        ------
        IntegrityError
            If the data in the cache do not have the checksum of the marker, read twice.
        """
        target = self.folder / feature / marker.data
        if self._is_valid(target, marker):
            return target
        if marker.bytes > self.max_bytes or (self._full and time.monotonic() < self._full[0]):
            return None
        try:
            with self._budget.fetching(marker.shard):
                if self._is_valid(target, marker) or self._fetch(target, data, marker):
                    return target
        except OSError as error:
            if not self._full:
                why = visible(str(cannot_write(self.folder, error)))
                _log.warning("%s Until then shards are read from the cache itself.", why)
            self._full[:] = [time.monotonic() + _FULL_SECONDS]
        return None

    def marker(self, feature: str, shard: str) -> Marker | None:
        """Return the marker of a shard whose data are in the copy, without asking the cache; None if they are not."""
        try:
            marker = read_marker(self.folder / feature / f"{shard}.json")
        except (IntegrityError, UnreachableError):
            return None
        return marker if (self.folder / feature / marker.data).exists() else None

    def drop(self, data: Path) -> None:
        """Delete a copy that cannot be used."""
        with contextlib.suppress(OSError), self._budget.exclusive():
            self._budget.delete(data)

    def _is_valid(self, target: Path, marker: Marker) -> bool:
        """Return whether a copy can be used. One that was not verified for long is verified, and deleted if damaged."""
        try:
            checked = target.stat().st_mtime
            os.utime(marker_path(target, marker.shard))
        except OSError:
            return False
        if time.time() - checked < CHECK_SECONDS:
            return True
        if not _is_whole(target, marker):
            self.drop(target)
            return False
        with contextlib.suppress(OSError):
            os.utime(target)
        return True

    def _fetch(self, target: Path, data: AnyPath, marker: Marker) -> bool:
        """Fetch a shard; False if there is no room. OSError if the local disk fails."""
        with self._budget.reserve(marker.bytes) as reserved:
            if reserved is None:
                return False
            new = reserved / marker.data
            if not _copied_whole(data, new, marker) and not _copied_whole(data, new, marker):
                raise IntegrityError(
                    f"{data}: the data of shard {marker.shard} have a wrong checksum, read twice. {check_hint(data)}"
                )
            record = reserved / f"{marker.shard}.json"
            record.write_text(marker.model_dump_json(), encoding="utf-8")
            fsync_tree(reserved)
            with self._budget.exclusive():
                target.parent.mkdir(exist_ok=True)
                self._budget.delete(target)
                record.replace(marker_path(target, marker.shard))
                os.utime(new.rename(target))
        return True


class _CopiedReader:
    """A shard open in the copy. If its data turn out to be damaged during a read, it is fetched again."""

    def __init__(
        self, copy: LocalCopy, feature: str, data: AnyPath, marker: Marker, opened: _Opener, reader: ShardReader
    ) -> None:
        self._copy = copy
        self._source = feature, data, marker
        self._opened = opened
        self._reader = reader
        self._touched = time.monotonic()

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows; see :meth:`..shards.format.ShardReader.read`."""
        feature, data, marker = self._source
        local = self._copy.folder / feature / marker.data
        if time.monotonic() - self._touched > _TOUCH_SECONDS:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # another process deleted it while it is open here
                os.utime(marker_path(local, marker.shard))
        try:
            return self._reader.read(start, stop, view, out)
        except (IntegrityError, UnreachableError):
            self._copy.drop(local)
            path = self._copy.path(feature, data, marker)
            self._reader = self._opened(data if path is None else path)
            return self._reader.read(start, stop, view, out)


def _copied_whole(data: AnyPath, target: Path, marker: Marker) -> bool:
    """Copy a shard's data to a local path, and return whether they have the marker's checksum."""
    remove_data(target)
    _copy(data, target, marker)
    return _is_whole(target, marker)


def _copy(data: AnyPath, target: Path, marker: Marker) -> None:
    """Copy a shard's data to a new local path; IntegrityError if their size is not that of the marker."""
    files = data_files(data)
    size = sum(size for _, _, size in files)
    if size != marker.bytes or not all(_is_plain(name) for name, _, _ in files):
        raise IntegrityError(
            f"{data}: has {size:,} bytes, the marker of shard {marker.shard} says {marker.bytes:,}. {check_hint(data)}"
        )
    for name, path, length in files:
        local = target / name if name else target
        local.parent.mkdir(parents=True, exist_ok=True)
        source = open_file(path, length)
        with local.open("xb") as file:
            for start in range(0, length, _BLOCK):
                file.write(source.read(start, min(_BLOCK, length - start)))


def _is_plain(name: str) -> bool:
    """Return whether a file's name, as an untrusted store lists it, stays within the folder that it is copied to."""
    return not name.startswith("/") and ".." not in PurePosixPath(name).parts and "\0" not in name


def _is_whole(path: Path, marker: Marker) -> bool:
    try:
        return checksum(path) == (marker.bytes, marker.sha256)
    except (UnreachableError, IntegrityError):
        return False
