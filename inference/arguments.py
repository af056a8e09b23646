"""From what a user names (files, folders, patterns, URLs, a list on stdin) to the files to look at, in that order.

A folder stands for the images and videos below it, told by their extensions and sorted by path, with the scan's rules: clutter is
passed over, a linked folder is followed only inside the folder and never in a circle. A pattern stands for the files that it
matches, sorted. Any other name stands for itself, whatever its extension and whether it exists or not. A URL of an object
store may name any of these; a folder is listed whole there, and a pattern's ``*`` stands for a part of one name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePath
from typing import BinaryIO

from ..errors import UsageError, UserError
from ..images.file import EXTENSIONS
from ..pipeline.sources.file import is_storable, is_url, printable, source_place
from ..pipeline.sources.tree import LocalTree, RemoteTree, Tree, is_clutter
from ..storage import RemotePath

STDIN = "-"

VIDEO_EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "wmv", "flv", "ogv", "3gp", "mts", "m2ts"}
)
"""What tells a video from an image: only the name can, before either is opened."""


def expand_arguments(arguments: Iterable[str], listed: BinaryIO | None = None) -> list[str]:
    """Return the paths that the arguments stand for; ``-`` stands for the list that ``listed`` holds.

    Raises UserError for a folder that cannot be listed or holds no image and no video, and for a pattern without a match.
    """
    found: list[str] = []
    for argument in arguments:
        if argument == STDIN and listed is not None:
            found += (path for name in read_list(listed) for path in _files_of(name))
        else:
            found += _files_of(argument)
    if not found:
        raise UserError("predict: the list on stdin is empty. Write a path a line.")
    return found


def read_list(stream: BinaryIO) -> list[str]:
    """Read names that are separated by line ends, or by NUL bytes if there is one (``find -print0``)."""
    data = stream.read()
    separator = b"\0" if b"\0" in data else b"\n"
    return [os.fsdecode(name) for name in data.split(separator) if name]


def is_video(path: str) -> bool:
    """Say whether a path has the extension of a video."""
    return path.rpartition(".")[2].lower() in VIDEO_EXTENSIONS


def _files_of(name: str) -> list[str]:
    if is_url(name) and is_storable(name):
        place = source_place(name)
        return _of_store(place) if isinstance(place, RemotePath) else _files_of(str(place))
    if os.path.isdir(name):  # noqa: PTH112  (Path.is_dir raises where a link leads to itself)
        return _in_folder(LocalTree(Path(name)), name)
    if has_magic(name) and not os.path.lexists(name):
        return _matching(name)
    return [name]


def _of_store(place: RemotePath) -> list[str]:
    """Return what a place in an object store stands for."""
    try:
        entries = place.below()
        if entries and entries[0].path != place:
            return _in_folder(RemoteTree(place, entries), str(place))
        return [str(place)] if entries or not has_magic(str(place)) else _matching_in_store(place)
    except OSError as error:
        raise _not_listed(error, str(place)) from error


def _in_folder(tree: Tree, folder: str) -> list[str]:
    try:
        paths = sorted(tree.walk())
    except OSError as error:
        raise _not_listed(error, folder) from error
    wanted = [path for path in paths if path.rpartition(".")[2].lower() in EXTENSIONS | VIDEO_EXTENSIONS]
    if not wanted:
        links = ", and links that lead out of it are not followed" if tree.outside else ""
        raise UserError(f"{printable(folder)}: has no image and no video ({len(paths):,} other files{links}).")
    return [os.path.join(folder, path) for path in wanted]  # noqa: PTH118  (keeps the folder as it was written)


def _not_listed(error: OSError, place: str) -> UserError:
    return UserError(f"{printable(error.filename or place)}: cannot be listed ({error.strerror or error}).")


def _matching_in_store(place: RemotePath) -> list[str]:
    """Return the objects that a pattern matches, part by part; one listing of all below its fixed part tells."""
    parts = place.parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    if fixed == 0 or "**" in parts:
        raise UsageError(f"{place}: is no pattern for an object store. Name a folder to get all that is below it.")
    root, wanted = RemotePath("/".join(parts[:fixed])), parts[fixed:]
    found = []
    for path in sorted(RemoteTree(root, root.below()).walk()):
        names = path.split("/")
        if len(names) == len(wanted) and all(map(fnmatchcase, names, wanted)):
            found.append(f"{root}/{path}")
    if not found:
        raise UserError(f"{place}: there is no such object, and as a pattern it matches none.")
    return found


def _matching(pattern: str) -> list[str]:
    parts = PurePath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root = Path(*parts[:fixed])
    # Before Python 3.13 pathlib refuses this, and finds no files with a ** at the end; then it takes ** for *.
    if any("**" in part and part != "**" for part in parts):
        raise UsageError(f"{printable(pattern)}: is no pattern. ** stands for any folders, alone between slashes.")
    wanted = [*parts[fixed:], "*"] if parts[-1] == "**" else parts[fixed:]
    matches = sorted(path for path in root.glob("/".join(wanted)) if path.is_file())
    found = [str(path) for path in matches if not any(map(is_clutter, path.relative_to(root).parts))]
    if not found:
        raise UserError(f"{printable(pattern)}: there is no such file, and as a pattern it matches none.")
    return found
