"""A read-through copy of shards on a disk of this machine, of bounded size, for a cache that is far away.

    DIR/local-copy.json                 says that the folder is such a copy
    DIR/eps-1f3a…/SHARD-NONCE.zarr      a shard's data, as in the cache; its time is that of its last full check
    DIR/eps-1f3a…/SHARD.json            its marker; its time is that of its last use
    DIR/.tmp-BYTES-NONCE/               what is being fetched, and the room that is kept for it
    DIR/.locks/                         files that processes lock

A shard is fetched whole, held against its marker's checksum, and then renamed into place. Any number of processes share
a folder: they lock it while they make room or put something in its place, and no two fetch the same shard at once.

Room is made by deleting what was not used for the longest time. But what was used since the command began, within the
last hour, stays: an epoch reads every shard about once in random order, so that throwing out one to fetch another would
fetch most of them again and again. What finds no room is read from the cache itself.
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
from ...storage.atomic import cannot_write, fsync_tree
from ..shards.data import remove_data
from ..shards.format import Rows, ShardReader, checksum, data_files
from ..shards.marker import Marker, check_hint, read_marker
from ..shards.open_file import open_file
from .space import LOCKS, DiskBudget, marker_path

NAME = "local-copy.json"
MAX_OPEN = 16
"""Copied shards of a feature that stay open: what is deleted keeps its room on the disk until it is closed."""
CHECK_SECONDS = 7 * 24 * 3600
"""A copy whose checksum was found right so long ago is held against it again before it is used."""
_TOUCH_SECONDS = 60
_FULL_SECONDS = 60
_BLOCK = 8 << 20

Open = Callable[[AnyPath], ShardReader]
"""Opens a shard's data, of the marker that is at hand, wherever they lie; IntegrityError if they are not what it says."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalCopy:
    """The copy in ``folder``, of at most ``most_bytes`` bytes. It can be pickled and handed to other processes.

    began : what was used since then stays, for an hour.
    """

    folder: Path
    most_bytes: int
    began: float = field(default_factory=time.time)
    _full: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def at(cls, folder: Path, most_bytes: int | None = None) -> LocalCopy:
        """Return the copy in a folder, which is made if it is absent.

        most_bytes : by default half of what is free on its disk or held by the copy already.
        Raises UserError if the folder holds something else, cannot be written, or its file system has no locks.
        """
        mark = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strange = set(os.listdir(folder)) - {NAME, LOCKS}  # noqa: PTH208
            if strange and not path_exists(mark):
                raise UserError(
                    f"{folder}: is neither empty nor a local copy of a cache. Give --local-copy a new folder."
                )
            (folder / LOCKS).mkdir(exist_ok=True)
            mark.touch()
            copy = cls(folder, most_bytes or 0)
            with copy._room.alone():
                if most_bytes is not None:
                    return copy
                free = shutil.disk_usage(folder).free
                return cls(folder, (free + sum(one.bytes for one in copy._room.held())) // 2)
        except OSError as error:
            raise cannot_write(folder, error) from error

    @cached_property
    def _room(self) -> DiskBudget:
        return DiskBudget(self.folder, self.most_bytes, self.began)

    def open(self, feature: str, data: AnyPath, marker: Marker, opened: Open) -> ShardReader:
        """Open a shard from the copy, fetched first if need be, or ``data`` themselves if there is no room.

        feature : the name of its folder in the cache. A copy that turns out to be damaged, or that another process deletes
        just now, is fetched again.
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
        """Return the copy of a shard's data, fetched first if it is not there; None if there is no room for it.

        Raises IntegrityError if the data in the cache do not have the checksum of ``marker``, read twice.
        """
        target = self.folder / feature / marker.data
        if self._is_there(target, marker):
            return target
        if marker.bytes > self.most_bytes or (self._full and time.monotonic() < self._full[0]):
            return None
        try:
            with self._room.fetching(marker.shard):
                if self._is_there(target, marker) or self._fetch(target, data, marker):
                    return target
        except OSError as error:
            if not self._full:
                _log.warning("%s Until then shards are read from the cache itself.", cannot_write(self.folder, error))
            self._full[:] = [time.monotonic() + _FULL_SECONDS]
        return None

    def marker(self, feature: str, shard: str) -> Marker | None:
        """Return the marker of a shard whose copy is there, without asking the cache; None if there is none."""
        try:
            marker = read_marker(self.folder / feature / f"{shard}.json")
        except (IntegrityError, UnreachableError):
            return None
        return marker if (self.folder / feature / marker.data).exists() else None

    def drop(self, data: Path) -> None:
        """Delete a copy that cannot be used."""
        with contextlib.suppress(OSError), self._room.alone():
            self._room.delete(data)

    def _is_there(self, target: Path, marker: Marker) -> bool:
        """Say whether a copy can be used; one that was not checked for long is checked, and deleted if it is damaged."""
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
        """Fetch a shard; False if there is no room. OSError if this disk cannot take it."""
        with self._room.kept(marker.bytes) as room:
            if room is None:
                return False
            new = room / marker.data
            if not _copied_whole(data, new, marker) and not _copied_whole(data, new, marker):
                raise IntegrityError(
                    f"{data}: the data of shard {marker.shard} do not have their checksum, read twice. {check_hint(data)}"
                )
            record = room / f"{marker.shard}.json"
            record.write_text(marker.model_dump_json(), encoding="utf-8")
            fsync_tree(room)
            with self._room.alone():
                target.parent.mkdir(exist_ok=True)
                self._room.delete(target)
                record.replace(marker_path(target, marker.shard))
                os.utime(new.rename(target))
        return True


class _CopiedReader:
    """A shard opened in the copy, which is fetched again if it turns out to be damaged where it is read."""

    def __init__(
        self, copy: LocalCopy, feature: str, data: AnyPath, marker: Marker, opened: Open, reader: ShardReader
    ) -> None:
        self._copy = copy
        self._where = feature, data, marker
        self._opened = opened
        self._reader = reader
        self._touched = time.monotonic()

    def read(self, start: int, stop: int, view: int | None, out: Rows | None = None) -> Rows:
        """Return rows as every reader does."""
        feature, data, marker = self._where
        here = self._copy.folder / feature / marker.data
        if time.monotonic() - self._touched > _TOUCH_SECONDS:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # deleted by another process while it is open here
                os.utime(marker_path(here, marker.shard))
        try:
            return self._reader.read(start, stop, view, out)
        except (IntegrityError, UnreachableError):
            self._copy.drop(here)
            path = self._copy.path(feature, data, marker)
            self._reader = self._opened(data if path is None else path)
            return self._reader.read(start, stop, view, out)


def _copied_whole(data: AnyPath, target: Path, marker: Marker) -> bool:
    """Copy a shard's data to a place here, and say whether they have the marker's checksum."""
    remove_data(target)
    _copy(data, target, marker)
    return _is_whole(target, marker)


def _copy(data: AnyPath, target: Path, marker: Marker) -> None:
    """Copy a shard's data to a new place here; IntegrityError if they have other sizes than the marker says."""
    files = data_files(data)
    size = sum(size for _, _, size in files)
    if size != marker.bytes or not all(_is_plain(name) for name, _, _ in files):
        raise IntegrityError(
            f"{data}: has {size:,} bytes, the marker of shard {marker.shard} says {marker.bytes:,}. {check_hint(data)}"
        )
    for name, place, length in files:
        local = target / name if name else target
        local.parent.mkdir(parents=True, exist_ok=True)
        source = open_file(place, length)
        with local.open("xb") as file:
            for start in range(0, length, _BLOCK):
                file.write(source.read(start, min(_BLOCK, length - start)))


def _is_plain(name: str) -> bool:
    """Say whether a file's name, as a stranger's store lists it, stays within the folder that it is copied to."""
    return not name.startswith("/") and ".." not in PurePosixPath(name).parts and "\0" not in name


def _is_whole(path: Path, marker: Marker) -> bool:
    try:
        return checksum(path) == (marker.bytes, marker.sha256)
    except (UnreachableError, IntegrityError):
        return False
