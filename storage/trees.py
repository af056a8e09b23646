"""A file, or a folder with all that lies below it, as one thing: list, write, move and delete it, on a disk or in a store.

An object store can neither move nor link. There objects are copied and then deleted, so for a moment one may be in both
places, but it is never missing from both.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .atomic import create_file, fsync_folder, fsync_tree, make_folder
from .paths import AnyPath, list_names, path_exists, relative_name, unreachable_on_error
from .regular import IrregularFileError, open_regular
from .remote import RemotePath

_BLOCK = 64 << 20


def tree_files(path: AnyPath) -> list[tuple[str, AnyPath, int]]:
    """List the files of a tree.

    Returns
    -------
    list of tuple
        (relative name, path, bytes), sorted by name. The name of a single file is empty.

    Raises
    ------
    FileNotFoundError
        If there is nothing, or a part is deleted meanwhile; its ``filename`` says which.
    IrregularFileError
        If the tree holds anything but regular files and folders; its ``filename`` says what.
    UnreachableError
        If the tree cannot be listed at the moment.
    """
    if isinstance(path, RemotePath):
        with unreachable_on_error(path):
            entries = path.below()
        if not entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return sorted((_name_below(entry.path, path), entry.path, entry.size) for entry in entries)
    found: list[tuple[str, AnyPath, int]] = []
    pending = [path]
    while pending:
        item = pending.pop()
        with unreachable_on_error(item):
            status = item.lstat()
        if stat.S_ISDIR(status.st_mode):
            pending.extend(item / name for name in list_names(item))
        elif stat.S_ISREG(status.st_mode):
            found.append((_name_below(item, path), item, status.st_size))
        else:
            raise IrregularFileError(errno.EINVAL, "neither a file nor a folder", str(item))
    return sorted(found)


def _name_below(item: AnyPath, path: AnyPath) -> str:
    return "" if item == path else relative_name(item, path)


def tree_size_and_time(path: AnyPath) -> tuple[int, float | None]:
    """Return the bytes of a tree and when any of it was last written; what is being deleted is passed over.

    Returns
    -------
    bytes : int
        Those of all files.
    written : float or None
        Seconds since the epoch; None if there is nothing in the store. A path that is absent on a disk was written at 0.

    Raises
    ------
    UnreachableError
        If the tree cannot be listed at the moment.
    """
    with unreachable_on_error(path):
        if isinstance(path, RemotePath):
            entries = path.below()
            return sum(entry.size for entry in entries), max((entry.mtime for entry in entries), default=None)
        size, newest, pending = 0, 0.0, [path]
        while pending:
            item = pending.pop()
            try:
                status = item.lstat()
            except FileNotFoundError:
                continue
            newest = max(newest, status.st_mtime)
            if stat.S_ISDIR(status.st_mode):
                pending += [item / name for name in list_names(item)]
            else:
                size += status.st_size
        return size, newest


@contextmanager
def new_tree(path: AnyPath) -> Iterator[Path]:
    """Write a tree to a new path: yields the local path to write to. It is durable once the block is left.

    For a store that is a path in a temporary folder, from where the tree is uploaded.

    Raises
    ------
    OSError
        If it cannot be flushed or uploaded.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="distil-cache-") as folder:
            local = Path(folder) / path.name
            yield local
            path.upload(local)
        return
    yield path
    fsync_tree(path)
    fsync_folder(path.parent)


def remove_tree(path: AnyPath, *, ignore_errors: bool = False) -> None:
    """Delete a tree.

    Parameters
    ----------
    path
        The file or folder.
    ignore_errors
        Go on below a folder on a disk where something cannot be deleted, or where another process deletes as well.

    Raises
    ------
    FileNotFoundError
        If there is none on the disk.
    OSError
        If it cannot be deleted.
    """
    if isinstance(path, RemotePath):
        path.remove()
    elif stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink()


def move_tree(path: AnyPath, target: AnyPath) -> None:
    """Move a tree within its disk or store and set its time to now. An interrupted move can be repeated.

    Raises
    ------
    FileNotFoundError
        If there is none.
    OSError
        If it cannot be moved.
    """
    make_folder(target.parent)
    if isinstance(path, RemotePath):
        entries = path.below()
        if not entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        for entry in entries:
            entry.path.copy_to(target / entry.path.relative_to(path))
        path.remove()
    else:
        os.utime(path.rename(str(target)), follow_symlinks=False)


def move_file(path: AnyPath, target: AnyPath) -> None:
    """Move a file and set its time to now, replacing any at the target; see :func:`moved_time`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    OSError
        If it cannot be moved.
    """
    if isinstance(path, RemotePath):
        path.copy_to(target)
        path.unlink()
    else:
        os.utime(path, follow_symlinks=False)
        path.rename(str(target))


def moved_time(path: AnyPath, written: float | None) -> float | None:
    """Return when a tree was moved to where it is.

    Parameters
    ----------
    path
        The file or tree.
    written
        When any of it was last written, by :func:`tree_size_and_time`: in a store, a move copies.

    Raises
    ------
    FileNotFoundError
        If it was deleted meanwhile.
    UnreachableError
        If that cannot be determined at the moment.
    """
    if isinstance(path, RemotePath):
        return written
    with unreachable_on_error(path):
        return path.lstat().st_mtime


def put_back(moved: AnyPath, path: AnyPath) -> bool:
    """Give a moved file its old path again, unless a file is there; on a disk it stays where it was moved to as well.

    Returns
    -------
    bool
        Whether a file exists at the old path now.

    Raises
    ------
    OSError, UserError
        If it cannot be put there.
    """
    if isinstance(moved, RemotePath):
        try:
            create_file(path, moved.read_bytes())
        except FileNotFoundError:
            return path_exists(path)
        return True
    try:
        os.link(moved, str(path), follow_symlinks=False)
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    fsync_folder(path.parent)
    return True


def open_mappable(path: AnyPath) -> IO[bytes]:
    """Open a file that can be mapped into memory: the file itself, or an anonymous local copy of an object.

    Raises
    ------
    FileNotFoundError
        If there is none.
    OSError
        If it cannot be opened, or not copied to the local disk.
    UnreachableError
        If the store cannot be read at the moment.
    """
    if not isinstance(path, RemotePath):
        return open_regular(path)
    copy: IO[bytes] = tempfile.TemporaryFile(prefix="distil-cache-")  # noqa: SIM115  (the caller closes it)
    with unreachable_on_error(path):
        source = path.open()
    with source:
        while block := _fetch(source, path):
            copy.write(block)
    copy.seek(0)
    return copy


def _fetch(source: IO[bytes], path: RemotePath) -> bytes:
    """Return the next block of an object. An error of the local copy is not one of the store."""
    with unreachable_on_error(path):
        return source.read(_BLOCK)
