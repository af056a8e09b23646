"""Durable writing without renaming: whole files that appear at once, and only where nothing was before.

A file is written under a temporary name beside its target, flushed to the disk, and then given its final name with
``os.link``, which fails when the name is taken. Whoever links first wins; nobody ever replaces a file.

In an object store a conditional put does the same, there are no folders to make, and what was put needs no flushing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import IntegrityError, ReadOnlyError, UserError
from . import AnyPath, Entry, RemotePath, list_names, path_exists, read_many, unreachable_on_error

TEMPORARY_PREFIX = ".tmp-"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class NoHardLinksError(UserError):
    """The file system has no hard links."""


_flushed: set[Path] = set()
"""Folders whose names this process has flushed."""


def cannot_write(path: AnyPath, error: OSError) -> UserError:
    """Return the error that says why ``path`` was not written and what to do; a ReadOnlyError where writing is forbidden."""
    what = f"{path}: cannot be written ({error.strerror or error})."
    if error.errno in _FULL:
        return UserError(f"{what} Make room there and run the command again: what was finished is kept.")
    if error.errno == errno.EFBIG:
        return UserError(f"{what} Raise the limit on the size of files (ulimit -f) or lower --shard-size.")
    if error.errno in _NOT_ALLOWED:
        return ReadOnlyError(f"{what} Get the right to write there, or use another folder.")
    return UserError(what)


def fsync_folder(folder: AnyPath) -> None:
    """Flush a folder's list of names to the disk."""
    if isinstance(folder, RemotePath):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(path: AnyPath) -> None:
    """Flush a file, or a folder with everything below it (files first, each folder after what it holds)."""
    if path.is_dir():
        for name in sorted(list_names(path)):
            fsync_tree(path / name)
    fsync_folder(path)


def make_folder(folder: AnyPath) -> None:
    """Create a folder and its missing parents so that they outlive a power failure; one that exists is fine.

    The name of one that exists is flushed too, once a process: who made it may have been killed before that.
    """
    if isinstance(folder, RemotePath):
        return
    if folder.is_dir():
        if folder not in _flushed:
            with contextlib.suppress(OSError):  # the folder above may be out of reach
                fsync_folder(folder.parent)
            _flushed.add(folder)
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    _flushed.add(folder)


def create_file(path: AnyPath, *data: bytes | memoryview) -> bool:
    """Create ``path`` with ``data``, the pieces one after the other, in one step, unless it exists.

    Returns whether this call created it. The file is on the disk when the call returns True. A process killed on the
    way leaves at most a temporary file. Where the file exists already, nothing is written, so that a folder which
    cannot be written to will do. UserError if it cannot be written (ReadOnlyError for lack of the right to): the file
    may be there all the same, if flushing its folder was what failed.
    """
    if isinstance(path, RemotePath):
        try:
            return path.create(*data)
        except OSError as error:
            raise cannot_write(path, error) from error
    if path_exists(path):
        return False
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        try:
            _write_new(temporary, data)
            return link_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def append_line(path: AnyPath, line: bytes) -> None:
    """Append a line to a file, made if it is absent. It is not flushed to the disk. UserError if it cannot be written.

    The line begins on a new one even if a writer was killed, or found the disk full, in the middle of its own.
    An object cannot grow: in an object store each line is an object below ``path``, named by the time.
    """
    try:
        if isinstance(path, RemotePath):
            (path / f"{time.time_ns():020d}-{secrets.token_hex(4)}").create(line + b"\n")
            return
        with path.open("a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            written = file.write(line + b"\n")
            if written != len(line) + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise cannot_write(path, error) from error


def read_lines(path: AnyPath, most: int) -> bytes:
    """Return what :func:`append_line` wrote, lines in the order of writing: at most the last ``most`` bytes. OSError."""
    if isinstance(path, RemotePath):
        entries: list[Entry] = []
        for entry in reversed(path.children()):
            most -= entry.size
            if most < 0:
                break
            entries.append(entry)
        return b"".join(data for data in read_many(entries[::-1]) if isinstance(data, bytes))
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def read_file(path: AnyPath, limit: int) -> bytes:
    """Return a small file's bytes.

    IntegrityError if it is absent (then a FileNotFoundError is its cause), no plain file, or larger than ``limit`` bytes;
    UnreachableError if it is there and cannot be read now.
    """
    if isinstance(path, RemotePath):
        return _read_object(path, limit)
    try:
        with unreachable_on_error(path):
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for otherwise
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror or error}).") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{path}: is no file.")
        with unreachable_on_error(path), open(handle, "rb", closefd=False) as file:
            data = file.read(min(status.st_size, limit) + 1)  # read(n) sets n bytes aside, however short the file is
    finally:
        os.close(handle)
    check_size(path, len(data), limit)
    return data


def new_file_time(path: AnyPath) -> float:
    """Return the present time of a file system in seconds: that of a new file, which is deleted again.

    path : where no file is. Raises UserError if it cannot be written.
    """
    try:
        if isinstance(path, RemotePath):
            path.write(b"")
        else:
            path.touch(exist_ok=False)
        try:
            return path.stat().st_mtime
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _read_object(path: RemotePath, limit: int) -> bytes:
    try:
        with unreachable_on_error(path):
            size = path.stat().st_size
            check_size(path, size, limit)
            return path.read_range(0, size)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}).") from error


def check_size(path: AnyPath, size: int, limit: int) -> None:
    """Raise IntegrityError for a file of a cache that is larger than any of its kind is."""
    if size > limit:
        raise IntegrityError(f"{path}: is larger than {limit:,} bytes, which no such file of a cache is.")


def _write_new(path: Path, data: Iterable[bytes | memoryview]) -> None:
    with path.open("xb") as file:
        file.writelines(data)
        file.flush()
        os.fsync(file.fileno())


def link_new(temporary: Path, path: Path) -> bool:
    """Give a flushed file its final name unless that is taken; return whether it was free.

    Raises NoHardLinksError where the file system has no hard links, and OSError if the link cannot be made.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        if temporary.stat().st_nlink == 1:
            return False  # with 2, this link was made: a network file system asked twice and lost the first answer
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise NoHardLinksError(
                f"{path.parent}: this file system has no hard links, and a cache needs them to be safe after a crash. "
                "Put the cache on another file system."
            ) from error
        raise
    fsync_folder(path.parent)
    return True
