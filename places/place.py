"""From what a user writes to a place: a path of this machine, or of an object store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from ..errors import UserError
from .remote import RemotePath

Place: TypeAlias = Path | RemotePath
"""A file or folder, here or in an object store."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_HERE = ("file", "local")


def place_of(text: str | Place) -> Place:
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


def names_in(folder: Place) -> list[str]:
    """Return the names of what lies directly in a folder; none if it is not there. OSError if it cannot be listed."""
    if isinstance(folder, RemotePath):
        return [entry.path.name for entry in folder.children()]
    try:
        return os.listdir(folder)  # noqa: PTH208  (of tens of thousands of names; Path is ten times slower)
    except FileNotFoundError:
        return []


def matching(folder: Place, pattern: str) -> list[Place]:
    """Return what lies below a folder and matches a pattern such as ``*/spec.json``, sorted by path."""
    return sorted(folder.glob(pattern))


def name_below(place: Place, folder: Place) -> str:
    """Return a place as seen from a folder above it, with slashes. ValueError if it does not lie there."""
    if isinstance(place, Path) and isinstance(folder, Path):
        return place.relative_to(folder).as_posix()
    return RemotePath(str(place)).relative_to(folder).as_posix()
