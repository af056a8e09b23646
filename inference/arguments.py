"""Expand the arguments of ``predict`` (files, folders, patterns, URLs, a list on stdin) into paths.

A folder stands for the images and videos below it, recognised by extension and sorted by path, with the rules of the
scan: hidden and system files are skipped, and linked folders are followed only inside the folder, without cycles. A
pattern stands for the files that it matches, sorted. Any other name stands for itself, whatever its extension and
whether or not it exists. A URL of an object store may be any of these; there ``*`` matches within one path component.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePath
from typing import BinaryIO

from ..errors import UsageError, UserError
from ..images.file import EXTENSIONS
from ..pipeline.sources.file import is_storable, printable, source_place
from ..pipeline.sources.tables.text import encoding_of
from ..pipeline.sources.tree import DENIED, LocalTree, RemoteTree, Tree, is_clutter
from ..storage import AnyPath, is_url, list_objects, to_path

STDIN = "-"

VIDEO_EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "wmv", "flv", "ogv", "3gp", "mts", "m2ts"}
)
"""Extensions of videos: until a file is opened, only its name distinguishes a video from an image."""


def expand_arguments(arguments: Iterable[str], listed: BinaryIO | None = None) -> list[str]:
    """Return the paths that the arguments stand for, in their order.

    Parameters
    ----------
    arguments : iterable of str
        Files, folders, patterns and URLs.
    listed : BinaryIO, optional
        List that replaces the argument ``-``.

    Raises
    ------
    UsageError
        For an invalid pattern.
    UserError
        If a folder cannot be listed or has neither image nor video, a pattern has no match, or the list is empty.
    """
    found: list[str] = []
    for argument in arguments:
        if argument == STDIN and listed is not None:
            found += (path for name in read_list(listed) for path in _files_of(name))
        else:
            found += _files_of(argument)
    if not found:
        raise UserError("predict: the list on stdin is empty. Write one path per line.")
    return found


def read_list(stream: BinaryIO) -> list[str]:
    """Read names separated by NUL bytes (``find -print0``) if there are any, else by line ends.

    A byte order mark and the carriage returns of Windows' line ends belong to no name. UTF-16, as PowerShell's ``>``
    writes it, is text and no list of NUL bytes.

    Raises
    ------
    UserError
        If the list is damaged UTF-16 or UTF-32.
    """
    data = stream.read()
    encoding, mark = encoding_of(data)
    if encoding != "utf-8":
        try:
            return [name for name in re.split(r"\r?\n", data[mark:].decode(encoding)) if name]
        except UnicodeDecodeError as error:
            raise UserError(f"predict: the list on stdin is damaged {encoding.upper()} ({error.reason}).") from error
    data = data[mark:]
    if b"\0" in data:
        return [os.fsdecode(name) for name in data.split(b"\0") if name]
    return [os.fsdecode(name) for line in data.split(b"\n") if (name := _without_return(line))]


def _without_return(line: bytes) -> bytes:
    """Return a line without the carriage return at its end, unless a file has it in its name."""
    return line[:-1] if line.endswith(b"\r") and not os.path.lexists(line) else line


def is_video(path: str) -> bool:
    """Return whether a path has the extension of a video."""
    return path.rpartition(".")[2].lower() in VIDEO_EXTENSIONS


def _files_of(name: str) -> list[str]:
    if is_url(name) and is_storable(name):
        path = source_place(name)
        return _files_of(str(path)) if (found := _in_store(path)) is None else found
    if os.path.isdir(name):  # noqa: PTH112  (Path.is_dir raises where a link leads to itself)
        return _in_folder(LocalTree(Path(name)), name)
    if has_magic(name) and not os.path.lexists(name):
        return _matching(name)
    return [name]


def _in_store(path: AnyPath) -> list[str] | None:
    """Return what a path in an object store stands for; None for a path of this machine."""
    try:
        entries = list_objects(path)
        if entries is None:
            return None
        if entries and entries[0].path != path:
            return _in_folder(RemoteTree(path, entries), str(path))
        return [str(path)] if entries or not has_magic(str(path)) else _matching_in_store(path)
    except OSError as error:
        raise _not_listed(error, str(path)) from error


def _in_folder(tree: Tree, folder: str) -> list[str]:
    try:
        paths = sorted(tree.walk())
    except OSError as error:
        raise _not_listed(error, folder) from error
    for place in tree.unreadable:
        if place.reason.startswith(DENIED):
            raise UserError(f"{printable(folder)}/{place.path}: {place.reason}.")
    wanted = [path for path in paths if path.rpartition(".")[2].lower() in EXTENSIONS | VIDEO_EXTENSIONS]
    if not wanted:
        links = "; links that lead out of it are not followed" if tree.outside else ""
        raise UserError(f"{printable(folder)}: has no image and no video ({len(paths):,} other files{links}).")
    return [os.path.join(folder, path) for path in wanted]  # noqa: PTH118  (keeps the folder as written)


def _not_listed(error: OSError, path: str) -> UserError:
    return UserError(f"{printable(error.filename or path)}: cannot be listed ({error.strerror or error}).")


def _matching_in_store(pattern: AnyPath) -> list[str]:
    """Return the objects that a pattern matches component by component, from one listing below its fixed prefix."""
    parts = pattern.parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    if fixed == 0 or "**" in parts:
        raise UsageError(
            f"{pattern}: is not a valid pattern for an object store. Name a folder to get everything below it."
        )
    root, wanted = to_path("/".join(parts[:fixed])), parts[fixed:]
    found = []
    for path in sorted(RemoteTree(root, list_objects(root) or []).walk()):
        names = path.split("/")
        if len(names) == len(wanted) and all(map(fnmatchcase, names, wanted)):
            found.append(f"{root}/{path}")
    if not found:
        raise UserError(f"{pattern}: no such object, and no object matches it as a pattern.")
    return found


def _matching(pattern: str) -> list[str]:
    parts = PurePath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root = Path(*parts[:fixed])
    # pathlib before Python 3.13 refuses such a **, and finds no files for a final one; from 3.13 on, such a ** means *.
    if any("**" in part and part != "**" for part in parts):
        raise UsageError(
            f"{printable(pattern)}: is not a valid pattern. ** matches any folders and must be a whole path component."
        )
    wanted = [*parts[fixed:], "*"] if parts[-1] == "**" else parts[fixed:]
    matches = sorted(path for path in root.glob("/".join(wanted)) if path.is_file())
    found = [str(path) for path in matches if not any(map(is_clutter, path.relative_to(root).parts))]
    if not found:
        raise UserError(f"{printable(pattern)}: no such file, and no file matches it as a pattern.")
    return found
