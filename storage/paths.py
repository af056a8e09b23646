"""Paths and URLs as users write them, and listings that never mistake a failure for absence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote

from ..errors import UnreachableError, UserError
from .remote import Entry, RemotePath

AnyPath: TypeAlias = Path | RemotePath
"""A file or folder, local or in an object store."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_LOCAL_PROTOCOLS = ("file", "local")
_DANGLING = "it is a link to something that does not exist"


def to_path(text: str | AnyPath) -> AnyPath:
    """Return the path that a string names.

    Parameters
    ----------
    text
        A local path, a ``file://`` URL, or the URL of an object store. A path is returned unchanged.

    Raises
    ------
    UserError
        For a URL without a bucket, or one that chains file systems with ``::``.
    """
    if not isinstance(text, str):
        return text
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    protocol, rest = match[1].lower(), match[2]
    if protocol in _LOCAL_PROTOCOLS:
        return Path(unquote(rest))
    if not rest.strip("/"):
        raise UserError(f"{text}: names no bucket. Write {protocol}://BUCKET/FOLDER.")
    if "::" in text:
        raise UserError(f"{text}: chained URLs (with ::) are not supported. Give the URL of the folder itself.")
    return RemotePath(f"{protocol}://{rest}")


def absent_error(path: AnyPath) -> UserError:
    """Return the error for a path at which there is nothing."""
    if isinstance(path, RemotePath):
        return UserError(f"{path}: not found in the object store; or its bucket does not exist.")
    return UserError(f"{path}: no such file or folder.")


def access_hint(path: AnyPath) -> str:
    """Return the sentence that follows in an error of access to a store, after a space; empty for a disk."""
    return " Check the URL, the credentials and what they allow." if isinstance(path, RemotePath) else ""


def unreachable_error(path: AnyPath, error: OSError) -> UnreachableError:
    """Return the error for a disk or store that fails at the moment, which says nothing about the data there."""
    if isinstance(path, RemotePath):
        return UnreachableError(
            f"{path}: cannot be read ({error.strerror or error}). The store or the network failed, or access was "
            "denied; this says nothing about the data. Run the command again."
        )
    where = error.filename if isinstance(error.filename, str) else path
    return UnreachableError(
        f"{where}: cannot be used ({error.strerror or error}). This says nothing about the data, so nothing is treated "
        "as absent or damaged. Make it accessible and run the command again."
    )


@contextlib.contextmanager
def unreachable_on_error(path: AnyPath) -> Iterator[None]:
    """Turn an OSError in the block into an UnreachableError; a FileNotFoundError passes, since absence is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreachable_error(path, error) from error


def list_names(folder: AnyPath) -> list[str]:
    """Return the names of a folder's direct children; an empty list if the folder does not exist.

    Code that deletes or repairs relies on this list, so it is complete or an error. A folder that cannot be listed, a
    file, or a dangling link is never mistaken for an empty folder.

    Raises
    ------
    UnreachableError
        If the folder cannot be listed.
    """
    with unreachable_on_error(folder):
        if isinstance(folder, RemotePath):
            return [entry.path.name for entry in folder.children()]
        try:
            return os.listdir(folder)  # noqa: PTH208  (Path is ten times slower for tens of thousands of names)
        except FileNotFoundError as error:
            _refuse_dangling(folder, error)
            return []


def list_objects(path: AnyPath, *, deep: bool = True) -> list[Entry] | None:
    """Return the objects below a path with size and time, by one listing of their store.

    Parameters
    ----------
    path
        The folder.
    deep
        List objects at any depth, and the one at ``path`` itself if there is one; otherwise what is directly below.

    Returns
    -------
    list of Entry, or None
        Sorted by path. None on a disk, where a folder is listed at a time and names alone.

    Raises
    ------
    OSError
        If the store cannot be listed.
    """
    if not isinstance(path, RemotePath):
        return None
    return path.below() if deep else path.children()


def list_matching(folder: AnyPath, pattern: re.Pattern[str]) -> list[AnyPath]:
    """Return the direct children whose whole name matches ``pattern``, sorted; errors as for :func:`list_names`."""
    return sorted(folder / name for name in list_names(folder) if pattern.fullmatch(name))


def path_exists(path: AnyPath) -> bool:
    """Return whether a file, folder or link exists.

    Unlike ``Path.exists``, it never treats an error as absence, on any version of Python, and it does not follow links.

    Raises
    ------
    UnreachableError
        If that cannot be determined.
    """
    with unreachable_on_error(path):
        if isinstance(path, RemotePath):
            return path.exists()
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def list_folders(folder: AnyPath) -> list[AnyPath]:
    """Return the direct subfolders, including links to folders, sorted by path; errors as for :func:`list_names`."""
    if isinstance(folder, RemotePath):
        with unreachable_on_error(folder):
            return [entry.path for entry in folder.children() if entry.is_folder]
    return [path for path in (folder / name for name in sorted(list_names(folder))) if _is_folder(path)]


def _is_folder(path: Path) -> bool:
    with unreachable_on_error(path):
        try:
            return stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError as error:
            _refuse_dangling(path, error)
            return False


def _refuse_dangling(path: Path, absent: FileNotFoundError) -> None:
    """Raise an OSError if ``path`` is a link to nothing; something that was created a moment ago is no link."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISLNK(path.lstat().st_mode):
            raise OSError(errno.ENOLINK, _DANGLING, str(path)) from absent


def by_requests(path: AnyPath | str) -> bool:
    """Return whether each access to a path, or to the path or URL of a string, is a request to an object store.

    One for a byte then takes as long as one for a mebibyte, several at once are faster, and a failure says more about
    the store than about the file.
    """
    return is_url(path) if isinstance(path, str) else isinstance(path, RemotePath)


def is_url(text: str) -> bool:
    """Return whether a string is a URL rather than a path; a normalised path has no ``//``."""
    return "://" in text


def file_in_place(folder: AnyPath) -> bool:
    """Return whether a file is where a folder is to be; in an object store both may have one name."""
    return not isinstance(folder, RemotePath) and folder.is_file()


def is_inside(path: Path, folder: AnyPath) -> bool:
    """Return whether a local path is in a folder once links are followed."""
    return not isinstance(folder, RemotePath) and resolved(path).is_relative_to(resolved(folder))


def resolved(path: Path) -> Path:
    """Return the real path of a local path, which need not exist; links that form a loop are left in it."""
    return Path(os.path.realpath(path))


def has_links(path: AnyPath) -> bool:
    """Return whether there can be symbolic links: an object store has none."""
    return isinstance(path, Path)


def symlink_above(path: AnyPath, root: AnyPath) -> Path | None:
    """Return the uppermost folder between ``root`` and ``path`` that is a symbolic link, or None.

    Neither ``root`` nor ``path`` itself is examined. Files behind such a link do not belong to the cache.

    Raises
    ------
    UnreachableError
        If that cannot be determined.
    """
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        return None
    for folder in (root.joinpath(*parts) for parts in _prefixes(path.relative_to(root).parts[:-1])):
        with unreachable_on_error(folder), contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(folder.lstat().st_mode):
                return folder
    return None


def _prefixes(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (parts[:length] for length in range(1, len(parts) + 1))


def absolute(path: AnyPath) -> AnyPath:
    """Return a path that does not depend on the working folder, without ``.`` and ``..``; links are not followed."""
    return path if isinstance(path, RemotePath) else Path(os.path.abspath(path))  # noqa: PTH100


def protocol_of(path: AnyPath) -> str:
    """Return the kind of store, such as ``s3``; ``file`` for a path of this machine."""
    return path.protocol if isinstance(path, RemotePath) else "file"


def located(path: str | AnyPath, folder: AnyPath) -> tuple[str, str]:
    """Return what a path names that is written in a file.

    Parameters
    ----------
    path
        The path. A relative one starts at ``folder``.
    folder
        The folder of the file in which it is written.

    Returns
    -------
    root : str
        ``folder`` if the path is below it; else the top of its disk, or its bucket.
    relative : str
        Posix path relative to it.

    Raises
    ------
    UserError
        If ``..`` leads out of a bucket.
    """
    if isinstance(path, RemotePath):
        return _located_in_store(path, folder)
    local = PurePosixPath(path)
    if not isinstance(folder, RemotePath):
        if not local.is_absolute():
            return str(folder), str(local)
        if local.is_relative_to(folder.absolute()):
            return str(folder), str(local.relative_to(folder.absolute()))
    elif not local.is_absolute():
        return _located_in_store(folder / local.as_posix(), folder)
    return local.anchor, str(local.relative_to(local.anchor))


def _located_in_store(path: RemotePath, folder: AnyPath) -> tuple[str, str]:
    """Return root and relative path of an object; ``..`` goes up a folder, but not out of the bucket."""
    bucket, *names = path.parts
    kept: list[str] = []
    for name in names:
        if name != "..":
            kept.append(name)
        elif kept:
            kept.pop()
        else:
            raise UserError(f"the path {path} leads out of its bucket.")
    found = RemotePath("/".join([bucket, *kept]))
    root = folder if isinstance(folder, RemotePath) and found.is_relative_to(folder) else RemotePath(bucket)
    return str(root), found.relative_to(root).as_posix()


def relative_name(path: AnyPath, folder: AnyPath) -> str:
    """Return a path relative to a folder above it, with slashes; ValueError if it is not below that folder."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return path.relative_to(folder).as_posix()
    return RemotePath(str(path)).relative_to(folder).as_posix()
