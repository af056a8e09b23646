"""The bytes of an image, from a file, an object of an object store, or a stretch of a tar in either.

Sizes are bounded before anything is read, and what somebody writes meanwhile is refused. A local file shows that by its
status before and after. Of an object one request gets the bytes of one version, so they cannot be mixed; that they are
not of the version that was listed shows in their number, at the end of a scan for tars (:func:`altered_tars`), and by the
key when the pixels are wanted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from ...errors import UserError
from ...images.file import MAX_BYTES, ImageRejected, content_key
from ...storage import AnyPath, RemotePath
from .file import ListedObject, SourceFile, TarMember, is_storable, is_url, source_place

REMOTE_READERS = 64
"""Threads that read from an object store at a time: each waits for an answer most of the time."""

MAX_UNREADABLE = 64
"""Objects that could not be read, after which it is the store, or the right to read it, that is missing."""


class FileStatus(Protocol):
    """What is asked of a file's status: its bytes, and its modification time in ns."""

    @property
    def st_size(self) -> int:
        """Bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """Modification time in ns."""


def read_image(file: SourceFile) -> tuple[bytes, int]:
    """Return an image's bytes, and the modification time in ns of the file or tar that holds them.

    Raises ImageRejected: ``too-large``, ``missing``, ``not-a-file``, ``unreadable`` or ``changed-while-reading``.
    """
    if file.member is not None:
        data = _remote_member(file, file.member) if file.is_remote else _local_member(file.root, file.member)
        return data, file.member.tar_mtime_ns
    if file.is_remote:
        data, listed = _read_object(file.holder, file.listed)
        return data, listed.mtime_ns
    data, status = read_stable(file.location)
    return data, status.st_mtime_ns


def read_source(file: SourceFile, expected_key: str) -> bytes:
    """Return the bytes of a file that has been scanned and whose key is known.

    Raises ImageRejected: ``changed`` if they are no longer those of ``expected_key``, or as :func:`read_image`.
    """
    data, _ = read_image(file)
    if content_key(data) != expected_key:
        raise ImageRejected("changed", "the file is not the one that was scanned: build again")
    return data


def readers(files: Iterable[SourceFile], workers: int) -> int:
    """Return how many threads read files at a time: ``workers``, or more of them if an object store has some."""
    return max(workers, REMOTE_READERS) if any(map(is_url, {file.root for file in files})) else workers


def path_of_source(location: str) -> AnyPath:
    """Return the place that a path or a URL names. Raises ImageRejected (``unreadable-name``) for a URL that names none."""
    if not is_url(location):
        return Path(location)
    if not is_storable(location):
        raise ImageRejected("unreadable-name", "the name is not valid UTF-8")
    try:
        return source_place(location)
    except UserError as error:
        raise ImageRejected("unreadable-name", str(error)) from None


def read_source_bytes(location: str) -> bytes:
    """Return the bytes of a file that a path or a URL names. Raises ImageRejected as :func:`read_image`."""
    place = path_of_source(location)
    return _read_object(place, None)[0] if isinstance(place, RemotePath) else read_stable(str(place))[0]


def file_status(location: str) -> FileStatus:
    """Return a file's or an object's status. Raises ImageRejected if it is absent, no regular file, or out of reach."""
    if is_url(location):
        return _object_status(RemotePath(location))
    try:
        status = os.stat(location)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRejected("missing", "there is no such file") from None
    except OSError as error:
        raise _unreadable(error) from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageRejected("not-a-file", "it is a folder or a device")
    return status


def read_stable(location: str) -> tuple[bytes, os.stat_result]:
    """Read a whole local file that nobody writes meanwhile; a second time if somebody did.

    Returns its bytes and the status that belongs to them. Raises ImageRejected.
    """
    try:
        handle = os.open(location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would else wait for a writer
    except OSError as error:
        file_status(location)
        raise _unreadable(error) from None
    try:
        for _ in range(2):
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise ImageRejected("not-a-file", "it is a folder or a device")
            _check_size(before.st_size)
            data = _read_whole(handle, before.st_size)
            after = os.fstat(handle)
            if len(data) == before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns:
                return data, after
            os.lseek(handle, 0, os.SEEK_SET)
    except OSError as error:
        raise _unreadable(error) from None
    finally:
        os.close(handle)
    raise ImageRejected("changed-while-reading", "another program is writing it: build again when it has finished")


def altered_tars(files: Iterable[SourceFile]) -> set[tuple[str, str]]:
    """Return (root, tar) of the tars in object stores that are no longer as they were listed, of those that hold ``files``."""
    tars = {(file.root, file.member.tar): file for file in files if file.member is not None and file.is_remote}
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        return {tar for tar, altered in zip(tars, pool.map(_is_altered, tars.values()), strict=True) if altered}


def _read_whole(handle: int, size: int) -> bytes:
    """Return ``size`` bytes from here on, and one more if the file has grown; fewer if it ends early."""
    data = os.read(handle, size + 1)
    if len(data) >= size:
        return data
    pieces = [data]  # a read gives what the system likes to, at most 2 GiB
    while pieces[-1] and (lacking := size + 1 - sum(map(len, pieces))):
        pieces.append(os.read(handle, lacking))
    return b"".join(pieces)


def _read_object(place: RemotePath, listed: ListedObject | None) -> tuple[bytes, ListedObject]:
    """Return an object's bytes, and its size and time as they were listed, or as they are where nobody has listed it."""
    if listed is None:
        status = _object_status(place)
        listed = ListedObject(status.st_size, status.st_mtime_ns)
    _check_size(listed.bytes)
    try:
        return place.read_range(0, listed.bytes), listed
    except OSError as error:
        if _object_status(place).st_size != listed.bytes:
            raise ImageRejected("changed-while-reading", "it changed after it was listed: build again") from None
        raise _unreadable(error) from None


def _object_status(place: RemotePath) -> FileStatus:
    try:
        return place.stat()
    except FileNotFoundError:
        raise ImageRejected("missing", "there is no such file") from None
    except OSError as error:
        raise _unreadable(error) from None


def _local_member(root: str, member: TarMember) -> bytes:
    _check_size(member.length)
    try:
        with open(os.path.join(root, member.tar), "rb") as file:  # noqa: PTH118, PTH123
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) == (member.tar_bytes, member.tar_mtime_ns):
                file.seek(member.offset)
                data = file.read(member.length)
                if len(data) == member.length:
                    return data
    except FileNotFoundError:
        raise ImageRejected("missing", "its tar is gone") from None
    except OSError as error:
        raise _unreadable(error) from None
    raise _tar_changed()


def _remote_member(file: SourceFile, member: TarMember) -> bytes:
    """Return the bytes of the stretch; whether the tar is still the one that was listed is asked only if they do not come."""
    _check_size(member.length)
    try:
        return file.holder.read_range(member.offset, member.offset + member.length)
    except FileNotFoundError:
        raise ImageRejected("missing", "its tar is gone") from None
    except OSError as error:
        if _is_altered(file):
            raise _tar_changed() from None
        raise _unreadable(error) from None


def _is_altered(file: SourceFile) -> bool:
    """Say whether a tar in an object store is seen to be another than the one that was listed."""
    assert file.member is not None
    try:
        status = file.holder.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) != (file.member.tar_bytes, file.member.tar_mtime_ns)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageRejected("too-large", f"a file of {size:,} bytes, more than {MAX_BYTES:,}")


def _tar_changed() -> ImageRejected:
    return ImageRejected("changed-while-reading", "its tar changed after it was listed: build again")


def _unreadable(error: OSError) -> ImageRejected:
    return ImageRejected("unreadable", error.strerror or str(error))
