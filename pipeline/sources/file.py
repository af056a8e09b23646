"""One image of a source, with its label and split: a file, an object in an object store, or a member of an archive."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from ...errors import UserError
from ...storage import AnyPath, RemotePath, to_path

_HUB = re.compile(r"hf://datasets/[\w.-]+/[\w.-]+(@[^/]+)?(/.*)?", re.ASCII | re.DOTALL)
"""URL of a data set of the Hub, of a revision, or of something in it."""


class ListedObject(NamedTuple):
    """Size in bytes and modification time in ns (0 if unknown) of an object, from a listing of its store."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Member:
    """Where an image is in a tar, a zip or a Parquet file, and the state of that file when it was listed.

    Attributes
    ----------
    archive
        Posix path of the tar, zip or Parquet file relative to the source's root.
    archive_bytes, archive_mtime_ns
        Its size and modification time (ns).
    """

    kind: ClassVar[str]
    """Name of the kind, in messages to workers and for people."""

    archive: str
    archive_bytes: int
    archive_mtime_ns: int

    @property
    def size(self) -> int | None:
        """Size of the image in bytes; None if only reading it tells."""
        raise NotImplementedError

    @property
    def stamp(self) -> bytes:
        """Bytes that distinguish this member from others with the same name in other versions of the archive."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TarMember(Member):
    """Byte range of an image in a tar."""

    kind = "tar"

    offset: int
    length: int

    @property
    def size(self) -> int:
        """Size of the image in bytes."""
        return self.length

    @property
    def stamp(self) -> bytes:
        """See :class:`Member`."""
        return f"\0{self.offset}\0{self.length}\0{self.archive_bytes}".encode()


@dataclass(frozen=True, slots=True)
class ZipMember(Member):
    """An image in a zip, as the central directory describes it.

    Attributes
    ----------
    offset
        Offset of the member's own header; its data follow.
    name_bytes
        Length of its name: most own headers have it too, so that one request reads header and data.
    compressed, length
        Size of the data in the zip, and of the image.
    method
        0 stored, 8 deflated.
    crc
        CRC-32 of the image.
    """

    kind = "zip"

    offset: int
    name_bytes: int
    compressed: int
    length: int
    method: int
    crc: int

    @property
    def size(self) -> int:
        """Size of the image in bytes."""
        return self.length

    @property
    def stamp(self) -> bytes:
        """See :class:`Member`."""
        return f"\0{self.offset}\0{self.length}\0{self.crc}\0{self.archive_bytes}".encode()


@dataclass(frozen=True, slots=True)
class ParquetMember(Member):
    """One cell of a Parquet file that holds an image's bytes.

    Attributes
    ----------
    column
        Dotted path of the column, such as ``image.bytes``.
    group, row
        Number of the row group, and of the row in it.
    """

    kind = "Parquet file"

    column: str
    group: int
    row: int

    @property
    def size(self) -> None:
        """Return None: a Parquet file lists no sizes of cells."""
        return

    @property
    def stamp(self) -> bytes:
        """See :class:`Member`."""
        return f"\0{self.column}\0{self.group}\0{self.row}\0{self.archive_bytes}".encode()


MEMBER_KINDS: dict[str, type[Member]] = {kind.kind: kind for kind in (TarMember, ZipMember, ParquetMember)}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One occurrence of an image in a source.

    Attributes
    ----------
    root
        The source as given, a path or a URL; for a table or an archive, its folder.
    path
        Posix path relative to ``root``; for an image in an archive, the archive's path, a slash, and the member's name
        (in a Parquet file COLUMN/ROW, and the image's own name if it has one; rows count from 0).
    label
        0 real, 1 fake.
    split
        ``train``, ``val`` or ``test``.
    generator, family
        Generator of the image and its family.
    group
        Origin of the reals; empty if unknown.
    member
        Where the image is in an archive; None for a file of its own.
    listed
        Size and time of an object from a listing, if there was one; None for local files.
    """

    root: str
    path: str
    label: int
    split: str
    generator: str
    family: str
    group: str
    member: Member | None = None
    listed: ListedObject | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the image is in an object store."""
        return is_url(self.root)

    @property
    def holder(self) -> RemotePath:
        """The object that holds the image: the image itself, or its archive."""
        return RemotePath(self.root) / (self.path if self.member is None else self.member.archive)

    @property
    def location(self) -> str:
        """Path or URL of the image, as the user would write it."""
        if not self.root or self.root[-1] == "/":
            return self.root + self.path
        return f"{self.root}/{self.path}"  # a million of them: os.path.join is three times slower, Path thirty times


class Uncovered(NamedTuple):
    """Images that are under a source's root but in no class folder, row or sample.

    Attributes
    ----------
    folder
        Their folder (or table, or archive), relative to the root; empty for the root itself.
    reason
        Why they are not taken, as the end of a sentence.
    images
        How many.
    example
        Path of the first, relative to the root.
    """

    folder: str
    reason: str
    images: int
    example: str


class UnreadablePlace(NamedTuple):
    """A folder or link that was not entered, relative to the root, and why: what is in it is not known."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceAccount:
    """Where every file under a source's root went; :meth:`check` holds the sum.

    Attributes
    ----------
    source
        The source as given.
    layout
        The layout that was recognised or named.
    files
        All files under the root (for archives: all members; for tables: all rows).
    images
        Files that are listed as images. The scan uses or rejects each of them.
    not_images
        Files that are no images by their first bytes.
    hidden
        Hidden files, and files that operating systems leave.
    uncovered
        Images that no class folder or row covers.
    unreadable
        Places that were not entered; their files are counted nowhere.
    notes
        What was guessed, mapped or left out, a sentence each.
    """

    source: str
    layout: str
    files: int
    images: int
    not_images: int = 0
    hidden: int = 0
    uncovered: tuple[Uncovered, ...] = ()
    unreadable: tuple[UnreadablePlace, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise AssertionError if a file is counted nowhere, or twice."""
        parts = self.images + self.not_images + self.hidden + sum(entry.images for entry in self.uncovered)
        assert parts == self.files, f"{self.source}: {self.files} files, but {parts} accounted for: {self}"


class DiscoveredSource(NamedTuple):
    """Contents of a source: name of its layout, image files in a fixed order, and the account of all its files."""

    layout: str
    files: Sequence[SourceFile]
    account: SourceAccount


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How a user says a source is to be read; by default everything is recognised.

    Attributes
    ----------
    labels
        Word of a class (lower case) -> 0 real, 1 generated, in addition to the known words, and before them.
    columns
        Our name of a column (``path``, ``label``, ``split``, ``generator``, ``family``, ``group``) -> the table's.
    path_prefixes
        Pairs (OLD, NEW): paths of a table that begin with OLD begin with NEW instead.
    split
        Split of the images for which the source names none; None for the usual default.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    path_prefixes: tuple[tuple[str, str], ...] = ()
    split: str | None = None


AS_RECOGNISED = ReadingOptions()

UNASSIGNED = ""
"""Split of an image until the build assigns one, with ``--split-by``."""


def is_storable(name: str) -> bool:
    """Check whether a file name is valid Unicode: other names cannot be written to Parquet or JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def printable(name: str) -> str:
    r"""Return a name that can be stored and displayed: invalid bytes become ``\xNN``."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name.encode(errors="backslashreplace").decode()


def is_url(text: str) -> bool:
    """Check whether a root or a location is a URL; a normalised path has no ``//``."""
    return "://" in text


def source_place(text: str | AnyPath) -> AnyPath:
    """Parse the path or URL of a source.

    Raises
    ------
    UserError
        For a URL without a bucket or data set, or a web address: the web cannot be listed, and a table could point
        anywhere.
    """
    path = to_path(text)
    if isinstance(path, RemotePath) and path.protocol in ("http", "https", "ftp"):
        raise UserError(f"{path}: is a web address, not an object store. Download it and give the folder.")
    if isinstance(path, RemotePath) and path.protocol == "hf" and not _HUB.fullmatch(str(path)):
        raise UserError(f"{path}: names no data set of the Hub. Write hf://datasets/OWNER/NAME.")
    return path


def absolute_root(root: str) -> str:
    """Return a root that is independent of the working folder."""
    return root if is_url(root) else os.path.abspath(root)  # noqa: PTH100
