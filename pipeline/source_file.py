"""One image of a source: a file, or a stretch of a tar, with what the source says about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from .image_file import MAX_BYTES, ImageRejected

LABELS = {"0": 0, "real": 0, "1": 1, "fake": 1}
"""What a table's cell or a tar's JSON may say about the class."""


@dataclass(frozen=True, slots=True)
class Member:
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

    root : the source as it was given (of a table or a tar: its folder). path : posix path relative to it; for an image
    in a tar that of the tar, a slash, and the member's name.
    label : 0 real, 1 fake. split : train, val or test. group : where the reals come from, empty if unknown.
    member : the stretch of a tar that holds the image, or None for a file of its own.
    """

    root: str
    path: str
    label: int
    split: str
    generator: str
    family: str
    group: str
    member: Member | None = None

    @property
    def location(self) -> str:
        """Where the image lies, as the user would write it."""
        if not self.root or self.root[-1] == "/":
            return self.root + self.path
        return f"{self.root}/{self.path}"  # a million of them: os.path.join is three times slower, Path thirty times


class Discovery(NamedTuple):
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


def read_member(root: str, member: Member) -> bytes:
    """Return an image's bytes out of its tar.

    Raises ImageRejected: ``too-large``, ``missing``, ``unreadable``, or ``changed-while-reading`` if the tar is no
    longer the one that was listed.
    """
    if member.length > MAX_BYTES:
        raise ImageRejected("too-large", f"{member.length:,} bytes, more than {MAX_BYTES:,}")
    try:
        with open(os.path.join(root, member.tar), "rb") as file:  # noqa: PTH118, PTH123
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) == (member.tar_bytes, member.tar_mtime_ns):
                file.seek(member.offset)
                data = file.read(member.length)
                if len(data) == member.length:
                    return data
    except FileNotFoundError:
        raise ImageRejected("missing", "its tar is gone") from None
    except OSError as error:
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    raise ImageRejected("changed-while-reading", "its tar changed after it was listed: build again")
