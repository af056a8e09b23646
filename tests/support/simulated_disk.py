"""A disk that loses what was not flushed: a real folder, and the system calls below it watched.

Each call is a step of the process that makes it, and a write is two. A power failure undoes any of the changes of names
that were not flushed, and cuts files that were not flushed. With a change goes what came after it on the same name, below
it, or to a folder in which it lies: a folder was empty when it was removed. The code under test stays as it is.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_injection import stage_of
from simulated_processes import Process, pause

_FOREIGN_CALL = ("link", "rename", "replace", "unlink", "mkdir", "rmdir", "utime", "fsync", "stat", "listdir", "open")


@dataclass
class _Change:
    """A change of names that may be lost until each of ``folders`` is flushed."""

    paths: frozenset[str]
    folders: set[str]
    undo: Callable[[], None]


class SimulatedDisk:
    """The disk below ``root``; ``spare`` is a folder beside it for what may come back after a power failure."""

    def __init__(self, root: Path, spare: Path) -> None:
        self.root, self.spare = str(root), spare
        self.changes: list[_Change] = []
        self.dirty: set[int] = set()
        self._real = {name: getattr(os, name) for name in _FOREIGN_CALL}
        self._numbers = itertools.count()
        self._stage = ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the calls of this program while the block runs."""
        saved = io.open, builtins.open, fcntl.flock
        for name in _FOREIGN_CALL:
            setattr(os, name, getattr(self, f"_{name}"))
        io.open = builtins.open = self._io_open  # type: ignore[assignment]
        fcntl.flock = _flock_by_turns(fcntl.flock)
        try:
            yield
        finally:
            for name, real in self._real.items():
                setattr(os, name, real)
            io.open, builtins.open, fcntl.flock = saved

    def fail(self, loses: Callable[[int], bool]) -> int:
        """Lose power; ``loses`` says of each change whether it is lost if it may be. Returns how many were.

        Nothing may be at work.
        """
        lost: list[_Change] = []
        gone: set[str] = set()
        around: set[str] = set()
        for number, change in enumerate(self.changes):
            if loses(number) or change.paths & around or any(_with_parents(path) & gone for path in change.paths):
                lost.append(change)
                gone |= change.paths
                around |= set().union(*map(_with_parents, change.paths))
        for change in reversed(lost):
            change.undo()
        cut = 0
        for number, path in enumerate(sorted(path for path in Path(self.root).rglob("*") if path.is_file())):
            if path.stat().st_ino in self.dirty and loses(number):
                os.truncate(path, path.stat().st_size // 2)
                cut += 1
        self.changes, self.dirty = [], set()
        return len(lost) + cut

    def age(self, seconds: float) -> None:
        """Make everything older."""
        for path in (Path(self.root), *Path(self.root).rglob("*")):
            then = path.stat().st_mtime - seconds
            self._real["utime"](path, (then, then))

    # Calls

    def _below(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return the absolute path if it is on this disk."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
        elif dir_fd is not None:
            path = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{os.fspath(path)}"  # noqa: PTH115
        path = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        return path if path == self.root or path.startswith(self.root + "/") else None

    def _wait(self, path: str, operation: str) -> None:
        relative = path[len(self.root) + 1 :].partition("/")[2]
        self._stage = stage_of(relative, operation, self._stage)
        pause(self._stage, operation)

    def _changed(self, undo: Callable[[], None], *paths: str) -> None:
        self.changes.append(_Change(frozenset(paths), {os.path.dirname(path) for path in paths}, undo))  # noqa: PTH120

    def _spared(self, path: str) -> str | None:
        """Keep a file that is about to lose this name."""
        spare = str(self.spare / str(next(self._numbers)))
        try:
            self._real["link"](path, spare, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return spare

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        path = self._below(target)
        if path is None:
            return self._real["link"](source, target, **options)
        self._wait(path, "link")
        self._real["link"](source, target, **options)
        self._changed(lambda: self._real["unlink"](path), path)
        return None

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        path, before = self._below(target), self._below(source)
        if path is None or before is None:
            return self._real["rename"](source, target, **options)
        self._wait(path, "rename")
        replaced = self._spared(path)
        self._real["rename"](source, target, **options)

        def undo() -> None:
            self._real["rename"](path, before)
            if replaced:
                self._real["link"](replaced, path)

        self._changed(undo, before, path)
        return None

    _replace = _rename

    def _unlink(self, name: Any, *, dir_fd: int | None = None) -> None:
        path = self._below(name, dir_fd)
        if path is None:
            return self._real["unlink"](name, dir_fd=dir_fd)
        self._wait(path, "unlink")
        spare = self._spared(path)
        self._real["unlink"](name, dir_fd=dir_fd)
        self._changed(lambda: self._real["link"](spare, path), path)
        return None

    def _mkdir(self, name: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        path = self._below(name, dir_fd)
        if path is None:
            return self._real["mkdir"](name, mode, dir_fd=dir_fd)
        self._wait(path, "mkdir")
        self._real["mkdir"](name, mode, dir_fd=dir_fd)
        self._changed(lambda: shutil.rmtree(path), path)  # with what was flushed in it
        return None

    def _rmdir(self, name: Any, *, dir_fd: int | None = None) -> None:
        path = self._below(name, dir_fd)
        if path is None:
            return self._real["rmdir"](name, dir_fd=dir_fd)
        self._wait(path, "rmdir")
        self._real["rmdir"](name, dir_fd=dir_fd)
        self._changed(lambda: self._real["mkdir"](path), path)
        return None

    def _fsync(self, handle: int) -> None:
        path = self._below(handle)
        if path is None:
            return self._real["fsync"](handle)
        self._wait(path, "fsync")
        self.dirty.discard(os.fstat(handle).st_ino)
        kept: list[_Change] = []
        on_disk: set[str] = set()
        for change in reversed(self.changes):  # what came before a change of a name that is on the disk is there too
            change.folders.discard(path)
            if not change.folders or any(_with_parents(path) & on_disk for path in change.paths):
                on_disk |= change.paths
            else:
                kept.append(change)
        self.changes = kept[::-1]
        return None

    def _utime(self, name: Any, *rest: Any, **options: Any) -> None:
        if (path := self._below(name)) is not None:
            self._wait(path, "utime")
        self._real["utime"](name, *rest, **options)

    def _stat(self, name: Any, **options: Any) -> os.stat_result:
        if not isinstance(name, int) and (path := self._below(name, options.get("dir_fd"))) is not None:
            self._wait(path, "stat")
        return self._real["stat"](name, **options)  # type: ignore[no-any-return]

    def _listdir(self, name: Any = ".") -> list[str]:
        if (path := self._below(name)) is not None:
            self._wait(path, "list")
        return self._real["listdir"](name)  # type: ignore[no-any-return]

    def _open(self, name: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        path = self._below(name, dir_fd)
        if path is None:
            return self._real["open"](name, flags, mode, dir_fd=dir_fd)  # type: ignore[no-any-return]
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        self._wait(path, "create" if writes else "read")
        is_new = not os.path.lexists(path)
        handle: int = self._real["open"](name, flags, mode, dir_fd=dir_fd)
        if writes:
            self._opened(path, is_new)
        return handle

    def _io_open(self, name: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        real = io.FileIO if isinstance(name, int) else _File
        path = None if isinstance(name, int) else self._below(name)
        if path is None or not set(mode) & set("wxa+"):
            if path is not None:
                self._wait(path, "read")
            return _real_open(name, mode, buffering, *rest, **options)
        self._wait(path, "create")
        is_new = not os.path.lexists(path)
        raw = real(name, mode.replace("b", "").replace("t", ""))
        raw.disk, raw.path = self, path  # type: ignore[union-attr]
        self._opened(path, is_new)
        if buffering == 0:
            return raw
        file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, *rest, **options)

    def _opened(self, path: str, is_new: bool) -> None:
        if is_new:
            self._changed(lambda: self._real["unlink"](path), path)
        self.dirty.add(self._real["stat"](path).st_ino)


_real_open = io.open


class _File(io.FileIO):
    """A file that is written in two halves, with a step before each."""

    disk: SimulatedDisk
    path: str

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.disk._wait(self.path, "write")
        half = super().write(view[: len(view) // 2])
        self.disk._wait(self.path, "write rest")
        return half + super().write(view[half:])


def _with_parents(path: str) -> set[str]:
    return {path, *map(str, Path(path).parents)}


def _flock_by_turns(real: Callable[..., None]) -> Callable[..., None]:
    """Return a lock for which a process waits by letting others take their turns."""

    def flock(handle: int, operation: int) -> None:
        while isinstance(threading.current_thread(), Process) and not operation & (fcntl.LOCK_NB | fcntl.LOCK_UN):
            try:
                return real(handle, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                pause("lock", "flock")
        return real(handle, operation)

    return flock
