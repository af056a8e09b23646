"""Durable writing without renaming: whole files that appear at once, and only where nothing was before.

A file is written under a temporary name beside its target, flushed to the disk, and then given its final name with
``os.link``, which fails when the name is taken. Whoever links first wins; nobody ever replaces a file.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from ..errors import IntegrityError, UserError

TEMPORARY_PREFIX = ".tmp-"


def fsync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(path: Path) -> None:
    """Flush a file, or a folder with everything below it (files first, each folder after what it holds)."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            fsync_tree(child)
    fsync_folder(path)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents so that they outlive a power failure; one that exists is fine."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create the folder ({error.strerror}).") from error
    fsync_folder(folder.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data`` in one step, unless it exists.

    Returns whether this call created it. The file is on the disk when the call returns True. A process killed on the
    way leaves at most a temporary file.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        try:
            _write_new(temporary, data)
            return _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error


def read_file(path: Path, limit: int) -> bytes:
    """Return a small file's bytes; one that is larger than ``limit`` bytes, or unreadable, is an IntegrityError."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(data) > limit:
        raise IntegrityError(f"{path}: is larger than {limit:,} bytes, which no such file of a cache is.")
    return data


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise UserError(
                f"{path.parent}: this file system has no hard links, and a cache needs them to be safe after a crash. "
                "Put the cache on another file system."
            ) from error
        raise
    fsync_folder(path.parent)
    return True
