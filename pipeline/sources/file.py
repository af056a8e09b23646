"""One image of a source: a file, an object of an object store, or a stretch of a tar, with what the source says about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import UserError
from ...storage import AnyPath, RemotePath, to_path

LABELS = {"0": 0, "real": 0, "1": 1, "fake": 1}
"""What a table's cell or a tar's JSON may say about the class."""


class ListedObject(NamedTuple):
    """An object as its store listed it: bytes, and when it was written in ns, 0 where the store does not say."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class TarMember:
    """Where an image lies in a tar, and the tar as it was when it was listed.

    tar : posix path of the tar relative to the source's root. offset, length : the stretch, in bytes.
    tar_bytes, tar_mtime_ns : size and modification time of the tar.
    """

    tar: str
    offset: int
    length: int
    tar_bytes: int
    tar_mtime_ns: int

    @property
    def stamp(self) -> bytes:
        """What tells this stretch from others that had its name in an earlier version of the tar."""
        return f"\0{self.offset}\0{self.length}\0{self.tar_bytes}".encode()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One occurrence of an image in a source.

    root : the source as it was given, a path or a URL (of a table or a tar: its folder). path : posix path relative to
    it; for an image in a tar that of the tar, a slash, and the member's name.
    label : 0 real, 1 fake. split : train, val or test. group : where the reals come from, empty if unknown.
    member : the stretch of a tar that holds the image, or None for a file of its own.
    listed : what a listing said of an object that is an image; None elsewhere, or if there was no listing.
    """

    root: str
    path: str
    label: int
    split: str
    generator: str
    family: str
    group: str
    member: TarMember | None = None
    listed: ListedObject | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return is_url(self.root)

    @property
    def holder(self) -> RemotePath:
        """The object in an object store that holds the image: itself, or its tar."""
        return RemotePath(self.root) / (self.path if self.member is None else self.member.tar)

    @property
    def location(self) -> str:
        """Where the image lies, as the user would write it."""
        if not self.root or self.root[-1] == "/":
            return self.root + self.path
        return f"{self.root}/{self.path}"  # a million of them: os.path.join is three times slower, Path thirty times


class DiscoveredSource(NamedTuple):
    """What a source holds: the layout's name, the image files in a fixed order, and the number of other files."""

    layout: str
    files: list[SourceFile]
    ignored: int


def is_storable(name: str) -> bool:
    """Say whether a file's name is valid Unicode; names with stray bytes cannot be written to Parquet or JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def printable(name: str) -> str:
    r"""Return a name that can be stored and shown: stray bytes become ``\xNN``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_url(text: str) -> bool:
    """Say whether a root or a location is a URL; the text of a path has no ``//``."""
    return "://" in text


def source_place(text: str | AnyPath) -> AnyPath:
    """Return the place that a path or a URL of a source names.

    UserError for a URL without a bucket, or an address in the web, which lists nothing: a table could point anywhere.
    """
    place = to_path(text)
    if isinstance(place, RemotePath) and place.protocol in ("http", "https", "ftp"):
        raise UserError(f"{place}: is an address in the web, and no object store. Download it and give the folder.")
    return place


def absolute_root(root: str) -> str:
    """Return a root that means the same in every working folder."""
    return root if is_url(root) else os.path.abspath(root)  # noqa: PTH100
