"""Read the bytes of an image: a file, an object in an object store, or a member of an archive in either.

Sizes are checked before reading, and files that change during the read are rejected. For a local file, the status
before and after shows it. One request for an object returns bytes of one version. Whether that is the listed version
shows in the size, at the end of a scan for archives (:func:`altered_archives`), and in the key when the pixels are
needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import UserError
from ...images.file import MAX_BYTES, ImageRejected, content_key
from ...storage import AnyPath, RemotePath, regular, to_path
from ...storage.regular import FileStatus, open_regular, regular_status
from .archives.zip_index import inflate, request_size
from .file import ListedObject, ParquetMember, SourceFile, TarMember, ZipMember, is_storable, is_url, source_place
from .tables.parquet_rows import read_row

REMOTE_READERS = 64
"""Threads that read from an object store at a time: most of them wait for an answer."""

PARQUET_READERS = 8
"""Threads that read Parquet files of an object store at a time: each may hold a row group."""

MAX_UNREADABLE = 64
"""Unreadable objects in a row after which the store itself, or access to it, is assumed to be lost."""


def read_image(file: SourceFile) -> tuple[bytes, int]:
    """Return an image's bytes, and the modification time in ns of the file or archive that holds it.

    Raises
    ------
    ImageRejected
        ``too-large``, ``missing``, ``not-a-file``, ``unreadable`` or ``changed-while-reading``.
    """
    if file.member is not None:
        return _read_member(file), file.member.archive_mtime_ns
    if file.is_remote:
        data, listed = _read_object(file.holder, file.listed)
        return data, listed.mtime_ns
    data, status = read_stable(file.location)
    return data, status.st_mtime_ns


def read_source(file: SourceFile, expected_key: str) -> bytes:
    """Return the bytes of a file that has been scanned.

    Raises
    ------
    ImageRejected
        ``changed`` if the key of the bytes is not ``expected_key``; otherwise as :func:`read_image`.
    """
    data, _ = read_image(file)
    if content_key(data) != expected_key:
        raise ImageRejected("changed", "the file is not the one that was scanned: build again")
    return data


def readers(files: Iterable[SourceFile], workers: int) -> int:
    """Return how many threads to read files with: ``workers``, or more if some are in an object store."""
    remote = {type(file.member) for file in files if file.is_remote}
    if not remote:
        return workers
    return max(workers, PARQUET_READERS if remote == {ParquetMember} else REMOTE_READERS)


def reading_blocks(files: Iterable[SourceFile], size: int) -> Iterator[Sequence[SourceFile]]:
    """Divide files into blocks of ``size``, but keep neighbours of one row group of a Parquet file together.

    So a row group is decoded by one thread, once.
    """
    block: list[SourceFile] = []
    for file in files:
        if len(block) >= size and not reading_order(file)[:2] == reading_order(block[-1])[:2] != ("", 0):
            yield block
            block = []
        block.append(file)
    if block:
        yield block


def reading_order(file: SourceFile) -> tuple[str, int, int]:
    """Return a sort key that puts the rows of a Parquet file in its order; equal for all other files."""
    member = file.member
    if not isinstance(member, ParquetMember):
        return "", 0, 0
    return f"{file.root}/{member.archive}", member.group, member.row


def path_of_source(location: str) -> AnyPath:
    """Parse a path or a URL. Raises ImageRejected (``unreadable-name``) for an invalid URL."""
    if not is_url(location):
        return Path(location)
    if not is_storable(location):
        raise ImageRejected("unreadable-name", "the name is not valid UTF-8")
    try:
        return source_place(location)
    except UserError as error:
        raise ImageRejected("unreadable-name", str(error)) from None


def read_source_bytes(location: str) -> bytes:
    """Return the bytes of the file at a path or a URL. Raises ImageRejected as :func:`read_image` does."""
    path = path_of_source(location)
    return _read_object(path, None)[0] if isinstance(path, RemotePath) else read_stable(str(path))[0]


def file_status(location: str) -> FileStatus:
    """Return the status of a file or an object. Raises ImageRejected if it is missing, unreadable or not a file."""
    if is_url(location):
        return _object_status(RemotePath(location))
    try:
        return regular_status(location)
    except OSError as error:
        raise _unreadable(error) from None


def read_stable(location: str) -> tuple[bytes, os.stat_result]:
    """Read a whole local file, once more if it changed during the read; return its bytes and their status.

    Raises
    ------
    ImageRejected
        As :func:`read_image`.
    """
    try:
        return regular.read_stable(location, MAX_BYTES)
    except OSError as error:
        raise _unreadable(error) from None


def altered_archives(files: Iterable[SourceFile]) -> set[tuple[str, str]]:
    """Return (root, archive) of the archives of ``files`` in object stores that changed since they were listed."""
    held = {(file.root, file.member.archive): file for file in files if file.member is not None and file.is_remote}
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        return {place for place, altered in zip(held, pool.map(_is_altered, held.values()), strict=True) if altered}


def _read_object(path: RemotePath, listed: ListedObject | None) -> tuple[bytes, ListedObject]:
    """Return an object's bytes, and its size and time from the listing, or else from a request."""
    if listed is None:
        status = _object_status(path)
        listed = ListedObject(status.st_size, status.st_mtime_ns)
    _check_size(listed.bytes)
    try:
        return path.read_range(0, listed.bytes), listed
    except OSError as error:
        if _object_status(path).st_size != listed.bytes:
            raise ImageRejected("changed-while-reading", "it changed after it was listed: build again") from None
        raise _unreadable(error) from None


def _object_status(path: RemotePath) -> FileStatus:
    try:
        return path.stat()
    except FileNotFoundError:
        raise ImageRejected("missing", "there is no such file") from None
    except OSError as error:
        raise _unreadable(error) from None


def _read_member(file: SourceFile) -> bytes:
    """Return the bytes of an image in an archive."""
    member = file.member
    assert member is not None
    try:
        if isinstance(member, ParquetMember):
            return read_row(to_path(file.root) / member.archive, member)
        _check_size(member.size or 0)
        if isinstance(member, TarMember):
            return _archive_range(file, member.offset, member.length)
        assert isinstance(member, ZipMember)
        return _zip_member(file, member)
    except FileNotFoundError:
        raise ImageRejected("missing", f"its {member.kind} is gone") from None
    except OSError as error:
        if _is_altered(file):
            raise _changed(file) from None
        raise _unreadable(error) from None


def _zip_member(file: SourceFile, member: ZipMember) -> bytes:
    """Return a member of a zip: its own header and data are read at once if the header is as long as usual."""
    size = request_size(member, None)
    data = _archive_range(file, member.offset, max(min(size, member.archive_bytes - member.offset), 0))
    if (size := request_size(member, data)) > len(data):
        if member.offset + size > member.archive_bytes:
            raise ImageRejected("damaged", "its zip ends before it does")
        data = _archive_range(file, member.offset, size)
    return inflate(member, data)


def _archive_range(file: SourceFile, offset: int, length: int) -> bytes:
    """Return a byte range of an archive that is as it was when it was listed.

    For an object store, only a failed request makes it worth a look whether the archive has changed.
    """
    member = file.member
    assert member is not None
    if file.is_remote:
        return file.holder.read_range(offset, offset + length)
    with open_regular(os.path.join(file.root, member.archive)) as archive:  # noqa: PTH118
        status = os.fstat(archive.fileno())
        if (status.st_size, status.st_mtime_ns) != (member.archive_bytes, member.archive_mtime_ns):
            raise _changed(file)
        archive.seek(offset)
        data = archive.read(length)
    if len(data) != length:
        raise _changed(file)
    return data


def _is_altered(file: SourceFile) -> bool:
    """Check whether an archive has changed since it was listed; False if that is unknown."""
    member = file.member
    assert member is not None
    try:
        status = (to_path(file.root) / member.archive).stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) != (member.archive_bytes, member.archive_mtime_ns)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageRejected("too-large", f"a file of {size:,} bytes, more than {MAX_BYTES:,}")


def _changed(file: SourceFile) -> ImageRejected:
    kind = file.member.kind if file.member else "file"
    return ImageRejected("changed-while-reading", f"its {kind} changed after it was listed: build again")


def _unreadable(error: OSError) -> ImageRejected:
    """Return the rejection of a file that could not be read."""
    said = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageRejected("missing", "there is no such file")
    if isinstance(error, regular.IrregularFileError):
        return ImageRejected("not-a-file", said)
    if isinstance(error, regular.LargeFileError):
        return ImageRejected("too-large", said)
    if isinstance(error, regular.ChangedFileError):
        return ImageRejected("changed-while-reading", "another program is writing it: build again when it has finished")
    return ImageRejected("unreadable", said)
