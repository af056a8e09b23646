"""From what a user writes to a place: a path of this machine, or of an object store."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from ..errors import UnreachableError, UserError
from .remote import RemotePath

AnyPath: TypeAlias = Path | RemotePath
"""A file or folder, here or in an object store."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_HERE = ("file", "local")
_TO_NOTHING = "it is a link to something that is not there"


def to_path(text: str | AnyPath) -> AnyPath:
    """Return the place that a path or a URL names; a ``file://`` URL, or anything without ``://``, is a path here.

    Raises UserError for a URL without a bucket, or one of several chained file systems.
    """
    if not isinstance(text, str):
        return text
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    protocol, rest = match[1].lower(), match[2]
    if protocol in _HERE:
        return Path(unquote(rest))
    if not rest.strip("/"):
        raise UserError(f"{text}: names no bucket. Write {protocol}://BUCKET/FOLDER.")
    if "::" in text:
        raise UserError(f"{text}: chained URLs (with ::) are not read. Give the URL of the folder itself.")
    return RemotePath(f"{protocol}://{rest}")


def unreachable_error(path: AnyPath, error: OSError) -> UnreachableError:
    """Return the error for a disk or a store that does not answer, which says nothing about what is there."""
    if isinstance(path, RemotePath):
        return UnreachableError(
            f"{path}: cannot be read ({error.strerror or error}). The store or the network failed, or does not let you: "
            "nothing is said about the data. Run the command again."
        )
    where = error.filename if isinstance(error.filename, str) else path
    return UnreachableError(
        f"{where}: cannot be used ({error.strerror or error}). That says nothing about what is there, so nothing is taken "
        "for absent or damaged. Make it accessible and run the command again."
    )


@contextlib.contextmanager
def unreachable_on_error(path: AnyPath) -> Iterator[None]:
    """Turn a failure of the disk, the store or the network into an UnreachableError; that a file is absent is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreachable_error(path, error) from error


def list_names(folder: AnyPath) -> list[str]:
    """Return the names of what lies directly in a folder; none if it is not there.

    What removes or repairs something decides by this list, so it is whole or an UnreachableError: a folder that cannot be
    listed, that is no folder, or that is a link to nothing is never taken for an empty one.
    """
    with unreachable_on_error(folder):
        if isinstance(folder, RemotePath):
            return [entry.path.name for entry in folder.children()]
        try:
            return os.listdir(folder)  # noqa: PTH208  (of tens of thousands of names; Path is ten times slower)
        except FileNotFoundError as error:
            if path_exists(folder):
                raise OSError(errno.ENOLINK, _TO_NOTHING, str(folder)) from error
            return []


def list_matching(folder: AnyPath, name: re.Pattern[str]) -> list[AnyPath]:
    """Return what lies directly in a folder under a name that ``name`` matches whole, sorted; as :func:`list_names`."""
    return sorted(folder / found for found in list_names(folder) if name.fullmatch(found))


def path_exists(path: AnyPath) -> bool:
    """Say whether there is a file, a folder or a link; UnreachableError if that cannot be known.

    Unlike ``Path.exists`` it never takes an error for an absence, on any version of Python, and follows no link.
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
    """Return the folders directly in a folder, links to folders among them, sorted by path; as :func:`list_names`."""
    if isinstance(folder, RemotePath):
        with unreachable_on_error(folder):
            return [entry.path for entry in folder.children() if entry.is_folder]
    return [path for path in (folder / name for name in sorted(list_names(folder))) if _is_folder(path)]


def _is_folder(path: Path) -> bool:
    with unreachable_on_error(path):
        try:
            return stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError as error:
            if path_exists(path):
                raise OSError(errno.ENOLINK, _TO_NOTHING, str(path)) from error
            return False


def symlink_above(path: AnyPath, root: AnyPath) -> Path | None:
    """Return the folder between ``root`` and ``path`` that is a symbolic link, or None. What lies behind one is another's.

    UnreachableError if it cannot be known.
    """
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        return None
    for folder in (root.joinpath(*parts) for parts in _beginnings(path.relative_to(root).parts[:-1])):
        with unreachable_on_error(folder), contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(folder.lstat().st_mode):
                return folder
    return None


def _beginnings(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (parts[:length] for length in range(1, len(parts) + 1))


def relative_name(place: AnyPath, folder: AnyPath) -> str:
    """Return a place as seen from a folder above it, with slashes. ValueError if it does not lie there."""
    if isinstance(place, Path) and isinstance(folder, Path):
        return place.relative_to(folder).as_posix()
    return RemotePath(str(place)).relative_to(folder).as_posix()
