"""Every file operation of a process below one folder, reading ones too, of which some fail with an error of the system.

The functions of ``os``, ``io`` and ``builtins`` are replaced, below :mod:`pathlib`, ``shutil`` and ``tempfile``, so it is
seen what these make of an error: ``Path.exists``, ``Path.glob`` and ``os.walk`` pass over some, and not the same ones in
every version of Python. pyarrow and safetensors open files natively: of them the functions that are given a path are
replaced. What their native code does with an open file (reading) does not pass through here.
"""

from __future__ import annotations

import errno
import functools
import glob
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_injection import Watch, WatchedFile

_LISTING = frozenset({"listdir", "scandir", "readdir"})
_OPENING = frozenset({"open", "create", "listdir", "scandir"})
_GROWING = frozenset(
    {"create", "mkdir", "link", "rename", "replace", "write", "half", "pwrite", "fsync"}
    | {"truncate", "ftruncate", "sendfile", "copy_file_range"}
)
_BY_NAME = frozenset(
    {"stat", "lstat", "statvfs", "readlink", "listdir", "scandir", "open", "create", "truncate", "chmod", "utime"}
    | {"mkdir", "rmdir", "unlink", "remove", "link", "rename", "replace"}
)
CALLS: dict[int, frozenset[str] | None] = {
    errno.EACCES: _BY_NAME,
    errno.EIO: None,
    errno.EMFILE: _OPENING,
    errno.ENOSPC: _GROWING,
    errno.ESTALE: None,
}
"""The calls that an operating system fails with an error; None: all."""
EXHAUSTED = (errno.EMFILE, errno.ENOSPC)
"""Errors that say nothing about a path: while they last, they hit every call that can fail with them."""
_ADDED = (
    "stat", "lstat", "fstat", "statvfs", "readlink", "listdir", "remove", "chmod", "truncate", "ftruncate",
    "read", "pread", "readv", "preadv", "pwrite", "sendfile", "copy_file_range",
)  # fmt: skip
"""What :class:`Watch` leaves alone."""
_NATIVE = (
    ("pyarrow.parquet.core", "ParquetFile", "open"), ("pyarrow.parquet.core", "read_schema", "open"),
    ("pyarrow.parquet.core", "read_table", "open"), ("pyarrow.parquet.core", "write_table", "create"),
    ("safetensors", "safe_open", "open"), ("safetensors.torch", "load_file", "open"),
    ("safetensors.torch", "save_file", "create"),
)  # fmt: skip
"""What opens a path that it is given natively: module, name, the call that it comes to."""


@dataclass(frozen=True)
class Refusal:
    """What fails.

    at : number of the operation, among those that can fail with ``error``; 0 for none. lasting : from then on the same kind
    of call on the same path fails each time, or with an error of ``EXHAUSTED`` every one. shut : instead of a number, a
    folder relative to the root: what names something below it fails, and so does listing it.
    """

    error: int
    at: int = 0
    lasting: bool = False
    shut: str = ""


class Refused(Watch):
    """Watches all file operations below ``root`` from now on in this process, and fails some.

    seen : all that can fail with the error so far, (call, path relative to the root). hit : the first that failed.
    """

    reads_too = True

    def __init__(self, root: Path, refusal: Refusal) -> None:
        self.refusal = refusal
        self.seen: list[tuple[str, str]] = []
        self.hit: tuple[str, str] | None = None
        self._lock = threading.Lock()
        self._failing = threading.local()
        super().__init__(root, act=self._fail)
        self.file = _RefusedFile
        for name in _ADDED:
            self._wrap(name, getattr(os, name))
        self._wrap_scandir()
        self._wrap_mmap()
        for module, name, call in _NATIVE:
            self._wrap_native(module, name, call)

    def below(self, path: Any, dir_fd: int | None = None) -> str | None:
        if not isinstance(path, int):
            path = os.fsdecode(path)
            if dir_fd is None:
                path = os.path.abspath(path)  # noqa: PTH100  (it looks at nothing)
        return super().below(path, dir_fd)

    def opening(self, writes: bool) -> str:
        return "create" if writes else "open"

    def due(self, relative: str, call: str) -> bool:
        """Note the operation that comes next and say whether it fails."""
        what = self.refusal
        calls = CALLS[what.error]
        if calls is not None and call not in calls:
            return False
        with self._lock:
            self.seen.append((call, relative))
            fails = self._is_shut(call, relative) if what.shut else self._comes(call, relative)
            if fails and self.hit is None:
                self.hit = (call, relative)
        self._failing.name = relative
        return fails

    def _comes(self, call: str, relative: str) -> bool:
        what = self.refusal
        if self.hit is None or not what.lasting:
            return len(self.seen) == what.at
        return what.error in EXHAUSTED or kind_of(call, relative) == kind_of(*self.hit)

    def _is_shut(self, call: str, relative: str) -> bool:
        shut = self.refusal.shut
        inside = relative != "." if shut == "." else relative.startswith(f"{shut}/")
        return (inside and call in _BY_NAME) or (relative == shut and call in _LISTING)

    def _fail(self) -> None:
        error = self.refusal.error
        raise OSError(error, os.strerror(error), str(Path(self.root, self._failing.name)))

    def _wrap(
        self, name: str, real: Callable[..., Any], *, paths: int = 1, only: Callable[..., int] = lambda *_: 1
    ) -> None:
        def watched(path: Any = ".", *rest: Any, **options: Any) -> Any:
            relative = self.below(path, options.get("dir_fd"))
            if relative is None:
                return real(path, *rest, **options)
            call = name
            if name == "open" and (rest[0] if rest else options["flags"]) & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                call = "create"
            if self.due(relative, call):
                self.act()
            return real(path, *rest, **options)

        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if real in able:
                able.add(watched)
        setattr(os, name, watched)

    def _wrap_scandir(self) -> None:
        real = os.scandir

        def watched(path: Any = ".") -> Any:
            relative = self.below(path)
            if relative is None:
                return real(path)
            if self.due(relative, "scandir"):
                self.act()
            return _Scan(self, relative, real(path))

        os.supports_fd.add(watched)
        os.scandir = watched  # type: ignore[assignment]
        for globber in [kind for kind in vars(glob).values() if isinstance(kind, type)]:  # those of Python 3.13 hold it
            if getattr(globber, "scandir", None) is real:
                globber.scandir = staticmethod(watched)

    def _wrap_mmap(self) -> None:
        watch = self

        class Mapped(mmap.mmap):
            def __new__(cls, fileno: int, *rest: Any, **options: Any) -> Any:
                relative = watch.below(fileno) if fileno >= 0 else None
                if relative is not None and watch.due(relative, "mmap"):
                    watch.act()
                return super().__new__(cls, fileno, *rest, **options)

        mmap.mmap = Mapped  # type: ignore[misc]

    def _wrap_native(self, module: str, name: str, call: str) -> None:
        """Replace what opens a path natively, if it is imported: everywhere, for many import it by its name."""
        real = getattr(sys.modules.get(module), name, None)
        if real is None:
            return

        @functools.wraps(real, updated=())
        def watched(*given: Any, **options: Any) -> Any:
            for path in given[:2]:
                relative = self.below(path) if isinstance(path, str | os.PathLike) else None
                if relative is not None and self.due(relative, call):
                    self.act()
            return real(*given, **options)

        for holder in list(sys.modules.values()):
            if getattr(holder, "__dict__", {}).get(name) is real:
                setattr(holder, name, watched)


def kind_of(call: str, relative: str) -> tuple[str, str]:
    """Return what fails as long as a lasting fault lasts: a folder is listed by several calls."""
    return ("list" if call in _LISTING else call, relative)


class _RefusedFile(WatchedFile):
    """A file whose reads may fail, too."""

    def _before_reading(self) -> None:
        if self.watch.due(self.relative, "read"):
            self.watch.act()

    def read(self, size: int | None = -1) -> Any:
        if size is not None and size >= 0:  # without a size it comes to readall
            self._before_reading()
        return super().read(size)

    def readall(self) -> bytes:
        self._before_reading()
        return super().readall()

    def readinto(self, buffer: Any) -> Any:
        self._before_reading()
        return super().readinto(buffer)


class _Scan:
    """What ``os.scandir`` gives; reading the names may fail."""

    def __init__(self, watch: Refused, relative: str, real: Any) -> None:
        self.watch, self.relative, self.real = watch, relative, real
        self.begun = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self.begun:
            self.begun = True
            if self.watch.due(self.relative, "readdir"):
                self.watch.act()
        return _Entry(self.watch, self.relative, next(self.real))

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.real.close()


class _Entry:
    """An ``os.DirEntry`` whose ``stat`` may fail."""

    def __init__(self, watch: Refused, folder: str, real: os.DirEntry[str]) -> None:
        self.watch, self.real = watch, real
        self.relative = f"{folder}/{os.fsdecode(real.name)}".removeprefix("./")

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.watch.due(self.relative, "stat" if follow_symlinks else "lstat"):
            self.watch.act()
        return self.real.stat(follow_symlinks=follow_symlinks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __fspath__(self) -> str:
        return self.real.path
