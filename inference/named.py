"""From what a user names (files, folders, patterns, a list on stdin) to the files to look at, in that order.

A folder stands for the images and videos below it, told by their extensions and sorted by path, with the scan's rules: clutter is
passed over, a linked folder is followed only inside the folder and never in a circle. A pattern stands for the files that it
matches, sorted. Any other name stands for itself, whatever its extension and whether it exists or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from glob import has_magic
from pathlib import Path, PurePath
from typing import BinaryIO

from ..errors import UsageError, UserError
from ..pipeline.image_file import EXTENSIONS
from ..pipeline.layouts import Tree, is_clutter
from ..pipeline.sources import printable, walk

STDIN = "-"

VIDEO_EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "wmv", "flv", "ogv", "3gp", "mts", "m2ts"}
)
"""What tells a video from an image: only the name can, before either is opened."""


def named_files(arguments: Iterable[str], listed: BinaryIO | None = None) -> list[str]:
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
    if os.path.isdir(name):  # noqa: PTH112  (Path.is_dir raises where a link leads to itself)
        return _in_folder(name)
    if has_magic(name) and not os.path.lexists(name):
        return _matching(name)
    return [name]


def _in_folder(folder: str) -> list[str]:
    tree = Tree(Path(folder))
    try:
        paths = sorted(walk(tree, ""))
    except OSError as error:
        raise UserError(f"{printable(error.filename or folder)}: cannot be listed ({error.strerror}).") from error
    wanted = [path for path in paths if path.rpartition(".")[2].lower() in EXTENSIONS | VIDEO_EXTENSIONS]
    if not wanted:
        links = ", and links that lead out of it are not followed" if tree.outside else ""
        raise UserError(f"{printable(folder)}: has no image and no video ({len(paths):,} other files{links}).")
    return [os.path.join(folder, path) for path in wanted]  # noqa: PTH118  (keeps the folder as it was written)


def _matching(pattern: str) -> list[str]:
    parts = PurePath(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root = Path(*parts[:fixed])
    try:
        matches = sorted(path for path in root.glob("/".join(parts[fixed:])) if path.is_file())
    except ValueError as error:
        raise UsageError(f"{printable(pattern)}: is no pattern ({error}).") from error
    found = [str(path) for path in matches if not any(map(is_clutter, path.relative_to(root).parts))]
    if not found:
        raise UserError(f"{printable(pattern)}: there is no such file, and as a pattern it matches none.")
    return found
