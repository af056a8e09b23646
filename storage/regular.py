"""Read files that a stranger may have made: regular files only, never more than asked for, and as one version.

Opening a named pipe waits for a writer, and a device has no end. So everything that a user names, and everything below it,
is opened here, or checked here before a library opens it by its name. What is refused is an OSError with a reason that
ends a sentence such as ``PATH: cannot be read (REASON).``
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from .paths import AnyPath, is_url
from .remote import RemotePath

_KINDS = {
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a named pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
}


class IrregularFileError(OSError):
    """It is a folder, a pipe, a socket or a device."""


class LargeFileError(OSError):
    """It has more bytes than a file of its kind."""


class ChangedFileError(OSError):
    """It changed while it was read."""


class AlteredFileError(OSError):
    """It is not the version that was listed."""


class FileStatus(Protocol):
    """The part of a file's status that is used: size in bytes and modification time in ns."""

    @property
    def st_size(self) -> int:
        """Bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """Modification time in ns."""


def regular_status(path: AnyPath | str) -> FileStatus:
    """Return size and time of a file or an object, without opening it.

    Parameters
    ----------
    path
        The file or object; a string is a path or a URL.

    Raises
    ------
    IrregularFileError
        If it is no regular file.
    OSError
        If there is none, or its status cannot be read.
    """
    path = _parsed(path)
    if isinstance(path, RemotePath):
        return path.stat()
    status = os.stat(path)  # noqa: PTH116  (a million strings: Path is slow)
    _check_regular(status, path)
    return status


def open_regular(path: AnyPath | str) -> BinaryIO:
    """Open a file or an object for buffered reading, never waiting for a writer; errors as :func:`regular_status`."""
    path = _parsed(path)
    if isinstance(path, RemotePath):
        return path.open()
    handle = _opened(path)
    try:
        _check_regular(os.fstat(handle), path)
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: AnyPath, limit: int) -> bytes:
    """Return the bytes of a file or an object; errors as :func:`read_stable`."""
    if isinstance(path, RemotePath):
        size = path.stat().st_size
        _check_size(size, limit, path)
        return path.read_range(0, size)
    return read_stable(path, limit)[0]


def read_stable(path: AnyPath | str, limit: int, listed: FileStatus | None = None) -> tuple[bytes, FileStatus]:
    """Read one version of a whole file or object, a file once more if it changed during the read.

    Parameters
    ----------
    path
        The file or object; a string is a path or a URL.
    limit
        The most bytes that a file of its kind has. More are never held.
    listed
        An object's status from a listing, which saves asking for it.

    Returns
    -------
    tuple of (bytes, FileStatus)
        The content, and its status.

    Raises
    ------
    IrregularFileError, LargeFileError
        If it is no regular file, or too large.
    ChangedFileError
        If a file changed during both reads.
    AlteredFileError
        If an object has not the listed size.
    OSError
        If there is none, or it cannot be read.
    """
    path = _parsed(path)
    if isinstance(path, RemotePath):
        return _read_object(path, limit, listed)
    handle = _opened(path)
    try:
        for _ in range(2):
            before = os.fstat(handle)
            _check_regular(before, path)
            _check_size(before.st_size, limit, path)
            data = _read_whole(handle, before.st_size)
            after = os.fstat(handle)
            if len(data) == before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns:
                return data, after
            os.lseek(handle, 0, os.SEEK_SET)
    finally:
        os.close(handle)
    raise ChangedFileError(errno.EAGAIN, "it changed while it was read", str(path))


def _read_object(path: RemotePath, limit: int, listed: FileStatus | None) -> tuple[bytes, FileStatus]:
    status = path.stat() if listed is None else listed
    _check_size(status.st_size, limit, path)
    try:
        return path.read_range(0, status.st_size), status
    except OSError as error:
        if path.stat().st_size != status.st_size:
            raise AlteredFileError(errno.ESTALE, "it changed after it was listed", str(path)) from error
        raise


def read_range(path: AnyPath | str, start: int, stop: int, listed: FileStatus) -> bytes:
    """Return the bytes of a file or an object from ``start`` up to ``stop``.

    Parameters
    ----------
    path
        The file or object; a string is a path or a URL.
    start, stop
        The range in bytes.
    listed
        The version that is wanted. An object is not asked for it, which would be a request: see :func:`is_altered`.

    Raises
    ------
    AlteredFileError
        If a file is another version.
    IrregularFileError
        If it is no regular file.
    OSError
        If there is none, or it cannot be read.
    """
    path = _parsed(path)
    if isinstance(path, RemotePath):
        return path.read_range(start, stop)
    with open_regular(path) as file:
        _check_version(os.fstat(file.fileno()), listed, path)
        file.seek(start)
        data = file.read(stop - start)
    if len(data) != stop - start:
        raise AlteredFileError(errno.ESTALE, "it is shorter than when it was listed", str(path))
    return data


def check_version(path: AnyPath, listed: FileStatus) -> None:
    """Raise AlteredFileError if a file is not the listed version; an object is not asked for, see :func:`is_altered`.

    Raises
    ------
    OSError
        If there is no such file, or its status cannot be read.
    """
    if not isinstance(path, RemotePath):
        _check_version(path.stat(), listed, path)


def is_altered(path: AnyPath | str, listed: FileStatus) -> bool:
    """Return whether a file or an object is gone or another version; False if that cannot be determined."""
    try:
        _check_version(regular_status(path), listed, path)
    except (FileNotFoundError, IrregularFileError, AlteredFileError):
        return True
    except OSError:
        return False
    return False


def _check_version(status: FileStatus, listed: FileStatus, path: AnyPath | str) -> None:
    if (status.st_size, status.st_mtime_ns) != (listed.st_size, listed.st_mtime_ns):
        raise AlteredFileError(errno.ESTALE, "it changed after it was listed", str(path))


def _parsed(path: AnyPath | str) -> AnyPath | str:
    """Return a path with a URL parsed; a local path may stay a string, as a million of them are faster."""
    return RemotePath(path) if isinstance(path, str) and is_url(path) else path


def _opened(path: str | Path) -> int:
    """Return a descriptor; a pipe does not wait for its writer. A socket cannot be opened, and is named all the same."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            _check_regular(os.stat(path), path)  # noqa: PTH116
        raise


def _check_regular(status: os.stat_result, path: AnyPath | str) -> None:
    if not stat.S_ISREG(status.st_mode):
        reason = _KINDS.get(stat.S_IFMT(status.st_mode), "it is not a regular file")
        raise IrregularFileError(errno.EINVAL, reason, str(path))


def _check_size(size: int, limit: int, path: AnyPath | str) -> None:
    if size > limit:
        raise LargeFileError(errno.EFBIG, f"it has {size:,} bytes, and more than {limit:,} are not read", str(path))


def _read_whole(handle: int, size: int) -> bytes:
    """Return the next ``size`` bytes, one more if the file has grown, or fewer if it ends early."""
    data = os.read(handle, size + 1)
    if len(data) >= size:
        return data
    pieces = [data]  # a single read may return less, at most 2 GiB
    while pieces[-1] and (lacking := size + 1 - sum(map(len, pieces))):
        pieces.append(os.read(handle, lacking))
    return b"".join(pieces)
