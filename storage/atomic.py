"""Durable, exclusive creation of files: a file appears whole or not at all, and never replaces another.

A file is written under a temporary name in the same folder, flushed to disk, and given its final name with ``os.link``,
which fails if the name is taken. The first writer to link wins.

In an object store a conditional put has the same effect. There are no folders to create, and nothing needs flushing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import logging
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from ..errors import IntegrityError, ReadOnlyError, UnreachableError, UserError
from . import AnyPath, Entry, RemotePath, list_names, path_exists, read_many, unreachable_error, unreachable_on_error
from .regular import IrregularFileError, open_regular
from .text import visible

TEMPORARY_PREFIX = ".tmp-"
_BATCH = 256
"""Objects that are fetched at a time."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class OversizeError(UserError):
    """A file would be larger than what is read of its kind."""


class NoHardLinksError(UserError):
    """The file system has no hard links."""


_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system answers to an operation that it does not have."""
_log = logging.getLogger(__name__)
_noted: set[tuple[str, int]] = set()
"""What this process has said about a file system, by its device number."""

_flushed: set[Path] = set()
"""Folders whose directory entries this process has flushed."""


def cannot_write(path: AnyPath, error: OSError) -> UserError:
    """Return the error for a path that could not be written.

    Parameters
    ----------
    path
        The file or folder.
    error
        What the operating system or the store reported.

    Returns
    -------
    UserError
        Names the cause and the remedy; a ReadOnlyError if permission is missing.
    """
    what = f"{path}: cannot be written ({error.strerror or error})."
    if error.errno in _FULL:
        return UserError(f"{what} Free some space there and run the command again: finished work is kept.")
    if error.errno == errno.EFBIG:
        return UserError(f"{what} Raise the file size limit (ulimit -f) or lower --shard-size.")
    if error.errno in _NOT_ALLOWED:
        return ReadOnlyError(f"{what} Get write permission there, or use another folder.")
    return UserError(what)


def fsync_folder(folder: AnyPath) -> None:
    """Flush a folder's directory entries, or a file, to disk; does nothing in an object store.

    Some network and FUSE file systems cannot flush folders, which is noted once.

    Raises
    ------
    UserError
        If the file system cannot flush a file.
    """
    if isinstance(folder, RemotePath):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            _fsync_entries(handle, folder)
        else:
            fsync_file(handle, folder)
    finally:
        os.close(handle)


def flush_name(path: AnyPath) -> None:
    """Flush the name of a file that another process created, since that process may not have come to it.

    What relies on such a file would otherwise be on disk without it after a power failure.

    Raises
    ------
    UserError
        If the file's folder cannot be flushed.
    """
    try:
        fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def fsync_file(handle: int, path: Path) -> None:
    """Flush an open file to disk. Raises UserError if its file system cannot do so."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        raise UserError(
            f"{path}: this file system cannot flush files to disk ({error.strerror}), without which a crash may lose "
            "what was written. Use a folder on another file system."
        ) from error


def _fsync_entries(handle: int, folder: Path) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _note_once(
            "flush",
            handle,
            f"{folder}: this file system cannot flush folders to disk ({error.strerror}). Files are flushed, but after a "
            "power failure the newest may be missing: run 'cache verify' then.",
        )


def _note_once(what: str, handle: int, text: str) -> None:
    """Log a warning once per process and file system."""
    key = what, os.fstat(handle).st_dev
    if key not in _noted:
        _noted.add(key)
        _log.warning("distil-cache: %s", visible(text))


def fsync_tree(path: AnyPath) -> None:
    """Flush a file, or a folder and everything below it: files first, each folder after its contents."""
    if path.is_dir():
        for name in sorted(list_names(path)):
            fsync_tree(path / name)
    fsync_folder(path)


def make_folder(folder: AnyPath) -> None:
    """Create a folder and its missing parents, durably; an existing folder is left as it is.

    The entry of an existing folder is flushed too, once per process: the process that created it may have been killed
    before it did so.

    Raises
    ------
    UserError
        If a folder cannot be created.
    """
    if isinstance(folder, RemotePath):
        return
    if folder.is_dir():
        if folder not in _flushed:
            with contextlib.suppress(OSError):  # the parent may be inaccessible
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
    """Create ``path`` atomically with the given bytes, unless it exists.

    A process that is killed leaves at most a temporary file. If the file exists, nothing is written, so a read-only
    folder is no error then. Its name is flushed all the same, since who created it may not have come to that.

    Parameters
    ----------
    path
        The new file.
    *data
        Its content, as pieces that are written one after the other.

    Returns
    -------
    bool
        Whether this call created the file. Either way it is on disk.

    Raises
    ------
    UserError
        If the file cannot be written (ReadOnlyError if permission is missing). The file may exist all the same, if only
        flushing its folder failed.
    """
    if isinstance(path, RemotePath):
        try:
            return path.create(*data)
        except OSError as error:
            raise cannot_write(path, error) from error
    return _create_local(path, lambda file: file.writelines(data))


def create_written(path: AnyPath, write: Callable[[IO[bytes]], None]) -> bool:
    """Create a file as :func:`create_file` does, with what ``write`` writes to an open file; called only if it is absent.

    A large file is not held in memory, unless it is put into an object store.
    """
    if not isinstance(path, RemotePath):
        return _create_local(path, write)
    buffer = io.BytesIO()
    write(buffer)
    return create_file(path, buffer.getbuffer())


def _create_local(path: Path, write: Callable[[IO[bytes]], None]) -> bool:
    if path_exists(path):
        flush_name(path)
        return False
    return create_with(path, lambda temporary: _write_new(temporary, write))


def create_with(path: Path, write: Callable[[Path], object], *, needs_links: bool = True) -> bool:
    """Let ``write`` make a file under a temporary name next to ``path``, and give it that name unless it exists.

    Parameters
    ----------
    path
        The new file, on a local disk.
    write
        Writes the content to the path that it is given, and flushes it.
    needs_links
        Refuse a file system without hard links, on which two processes that create the file at the same moment could
        both believe to have done so. Otherwise the file is moved into place there.

    Returns
    -------
    bool
        Whether this call created the file.

    Raises
    ------
    UserError
        If the file cannot be written, or has no hard links that it needs (NoHardLinksError).
    """
    try:
        with temporary_file(path, write) as temporary:
            return place_new(temporary, path, needs_links=needs_links)
    except OSError as error:
        raise cannot_write(path, error) from error


def place_new(temporary: Path, path: Path, *, needs_links: bool) -> bool:
    """Give a flushed file its final name, unless that is taken; a file system without links is treated as by :func:`create_with`.

    Returns
    -------
    bool
        Whether the name was free.

    Raises
    ------
    OSError, NoHardLinksError
        If the file cannot get the name.
    """
    try:
        return link_new(temporary, path)
    except NoHardLinksError:
        if needs_links:
            raise
        if path_exists(path):
            return False
        temporary.replace(path)
        fsync_folder(path.parent)
        return True


@contextlib.contextmanager
def temporary_file(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """Let ``write`` make and flush a file with a unique name next to ``path``, and delete it after the block."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        write(temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def replace_with(path: AnyPath, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` make a file that replaces any that exists: a reader finds the old or the new one, whole.

    Raises
    ------
    OSError, UserError
        If it cannot be written.
    """
    if isinstance(path, RemotePath):
        with tempfile.NamedTemporaryFile() as file:
            write(file)
            file.flush()
            path.upload(Path(file.name))
        return
    make_folder(path.parent)
    with temporary_file(path, lambda temporary: _write_new(temporary, write)) as temporary:
        temporary.replace(path)


def append_line(path: AnyPath, line: bytes) -> None:
    """Append a line to a log file, which is created if absent. The line is not flushed to disk.

    If an earlier writer was killed or ran out of space in the middle of a line, this one still starts on a new line.
    Objects cannot grow: in an object store each line is an object below ``path``, named by the time. On a mounted store
    whose files cannot grow the file is written again, which is noted: of two writers at once, one loses its line.

    Raises
    ------
    UserError
        If the line cannot be written.
    """
    try:
        if isinstance(path, RemotePath):
            (path / f"{time.time_ns():020d}-{secrets.token_hex(4)}").create(line + b"\n")
            return
        try:
            _append(path, line)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _rewrite_with(path, line, error)
    except OSError as error:
        raise cannot_write(path, error) from error


def _append(path: Path, line: bytes) -> None:
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        written = file.write(line + b"\n")
        if written != len(line) + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _rewrite_with(path: Path, line: bytes, cause: OSError) -> None:
    """Replace a file by its content and one more line."""
    old = path.read_bytes() if path.exists() else b""
    gap = b"" if not old or old.endswith(b"\n") else b"\n"
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(old + gap + line + b"\n")
            text = f"{path}: this file system cannot append to files ({cause.strerror}), so the log is written again."
            _note_once("append", file.fileno(), text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: AnyPath, max_bytes: int) -> bytes:
    """Return the end of a log written by :func:`append_line`, in the order of writing.

    Parameters
    ----------
    path
        The log.
    max_bytes
        The most bytes to return. In an object store only whole lines are returned; in a file the first may be cut.

    Raises
    ------
    OSError
        If the log cannot be read.
    """
    if isinstance(path, RemotePath):
        entries: list[Entry] = []
        for entry in reversed(path.children()):
            max_bytes -= entry.size
            if max_bytes < 0:
                break
            entries.append(entry)
        return b"".join(data for data in read_many(entries[::-1]) if isinstance(data, bytes))
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
        return file.read(max_bytes)


def read_file(path: AnyPath, limit: int) -> bytes:
    """Return the content of a small file.

    Parameters
    ----------
    path
        The file.
    limit
        The most bytes that a valid file of its kind has.

    Raises
    ------
    IntegrityError
        If the file is absent (its cause is then a FileNotFoundError), is not a regular file, or exceeds ``limit``.
    UnreachableError
        If the file exists and cannot be read at the moment.
    """
    if isinstance(path, RemotePath):
        return _read_object(path, limit)
    with _damage_of(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, limit)
        data = file.read(min(size, limit) + 1)  # read(n) allocates n bytes, however short the file is
    check_size(path, len(data), limit)
    return data


def stream_lines(path: AnyPath, longest: int) -> Iterator[bytes]:
    """Yield the lines of a file without their ends, of which memory holds one at a time.

    Parameters
    ----------
    path
        The file.
    longest
        The most bytes that a valid line has.

    Raises
    ------
    IntegrityError
        If the file is absent or not a regular file, as for :func:`read_file`, or has a longer line.
    UnreachableError
        If the file exists and cannot be read at the moment.
    """
    with _damage_of(path), open_regular(path) as file:
        while line := file.readline(longest + 2):
            line = line.removesuffix(b"\n")
            if len(line) > longest:
                raise IntegrityError(f"{path}: has a line of more than {longest:,} bytes, so the file is damaged.")
            yield line


@contextlib.contextmanager
def _damage_of(path: AnyPath) -> Iterator[None]:
    """Turn errors of reading into IntegrityError if the file is absent or not a file, else into UnreachableError."""
    try:
        with unreachable_on_error(path):
            yield
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnreachableError as error:
        if isinstance(error.__cause__, IrregularFileError):
            raise IntegrityError(f"{path}: is not a regular file.") from error
        raise


def read_files(folder: AnyPath, names: Iterable[str], limit: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield small files of a folder; in an object store it is listed once, and several are fetched at a time.

    Parameters
    ----------
    folder
        The folder.
    names
        The files' names.
    limit
        The most bytes that a valid file of their kind has.

    Yields
    ------
    tuple of (str, bytes or None)
        Name and content, in the order of ``names``. None for what :func:`read_file` refuses as absent or damaged.

    Raises
    ------
    UnreachableError
        If a file exists and cannot be read at the moment, or the folder of a store not be listed.
    """
    if isinstance(folder, RemotePath):
        yield from _read_objects(folder, list(names), limit)
        return
    for name in names:
        try:
            data = read_file(folder / name, limit)
        except IntegrityError:
            yield name, None
        else:
            yield name, data


def _read_objects(folder: RemotePath, names: list[str], limit: int) -> Iterator[tuple[str, bytes | None]]:
    with unreachable_on_error(folder):
        listed = {entry.path.name: entry for entry in folder.children() if entry.size <= limit}
    for start in range(0, len(names), _BATCH):
        block = names[start : start + _BATCH]
        there = [listed[name] for name in block if name in listed]
        found = {entry.path.name: data for entry, data in zip(there, read_many(there), strict=True)}
        for name in block:
            data = found.get(name)
            if isinstance(data, OSError) and not isinstance(data, FileNotFoundError):
                raise unreachable_error(folder / name, data)
            yield name, data if isinstance(data, bytes) else None


def new_file_time(path: AnyPath) -> float:
    """Return the current time of a file system: the modification time of a new file, which is deleted again.

    Parameters
    ----------
    path
        A path that does not exist.

    Returns
    -------
    float
        Seconds since the epoch, by the clock of the file system or store.

    Raises
    ------
    UserError
        If the file cannot be written.
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


def set_time(path: AnyPath, content: bytes) -> None:
    """Set the time of a file to now; in a store an object with ``content`` is put in its place.

    Raises
    ------
    FileNotFoundError
        If there is none on the disk.
    OSError
        If the time cannot be set.
    """
    if isinstance(path, RemotePath):
        path.write(content)
    else:
        os.utime(path)


def _read_object(path: RemotePath, limit: int) -> bytes:
    try:
        with unreachable_on_error(path):
            size = path.stat().st_size
            check_size(path, size, limit)
            return path.read_range(0, size)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}).") from error


def check_size(path: AnyPath, size: int, limit: int) -> None:
    """Raise IntegrityError if a cache file is larger than any valid file of its kind."""
    if size > limit:
        raise IntegrityError(f"{path}: is larger than {limit:,} bytes, more than a valid file of this kind.")


def check_new_size(path: AnyPath, size: int, limit: int, advice: str) -> None:
    """Raise OversizeError if a file would be larger than what is read of its kind.

    Parameters
    ----------
    path
        The new file.
    size
        Its bytes.
    limit
        The most bytes that are read.
    advice
        What to do instead, a sentence.
    """
    if size > limit:
        raise OversizeError(
            f"{path}: was not written: it would have {size:,} bytes, and more than {limit:,} are not read. {advice}"
        )


def _write_new(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    with path.open("xb") as file:
        write(file)
        file.flush()
        fsync_file(file.fileno(), path)


def link_new(temporary: Path, path: Path) -> bool:
    """Give a flushed file its final name, unless that is taken.

    Returns
    -------
    bool
        Whether the name was free.

    Raises
    ------
    NoHardLinksError
        If the file system has no hard links.
    OSError
        If the link cannot be created.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        if temporary.stat().st_nlink == 1:
            fsync_folder(path.parent)
            return False  # 2 means that our link exists: a network file system lost the first answer and retried
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise NoHardLinksError(
                f"{path.parent}: this file system has no hard links, which a cache needs for crash safety. "
                "Put the cache on another file system."
            ) from error
        raise
    fsync_folder(path.parent)
    return True


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders at once, so that at no moment either name is missing.

    Linux has ``renameat2`` for it, macOS ``renamex_np``.

    Returns
    -------
    bool
        False, with nothing changed, if the system or the file system cannot do it.

    Raises
    ------
    FileNotFoundError
        If one of them does not exist.
    """
    here = -100  # AT_FDCWD of Linux
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            code = library.renamex_np(os.fsencode(one), os.fsencode(other), 2)
        else:
            code = library.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2)
    except (AttributeError, OSError):
        return False
    if code == 0:
        return True
    if ctypes.get_errno() == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(one))
    return False


def probe_conditional_put(root: AnyPath) -> None:
    """Check that an object store refuses to create an object twice; a local disk needs no check.

    Raises
    ------
    UserError
        If the store cannot be written, or if it overwrites the object: two builders would then both believe that their
        marker is the one that counts.
    """
    if not isinstance(root, RemotePath):
        return
    probe = root / f"{TEMPORARY_PREFIX}probe-{secrets.token_hex(8)}"
    try:
        refuses = probe.create(b"1") and not probe.create(b"2") and probe.read_bytes() == b"1"
        probe.unlink()
    except FileNotFoundError as error:
        raise UserError(f"{root}: the bucket does not exist or cannot be reached. Create the bucket first.") from error
    except (OSError, NotImplementedError, TypeError) as error:
        raise cannot_write(root, error if isinstance(error, OSError) else OSError(0, str(error))) from error
    if not refuses:
        raise UserError(
            f"{root}: this store does not support conditional puts (it overwrites existing objects), and a cache "
            "relies on them. Use another store, or a newer version of its server."
        )
