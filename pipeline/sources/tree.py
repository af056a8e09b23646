"""The folders and files of a source, on a local disk or in an object store, behind one interface.

A tree is listed once, whole, into a :class:`FolderListing` for each folder. Hidden files and files of operating systems
are counted and otherwise left alone. An object store has no folders and no links: its listing returns size and time of
a thousand objects per request.

On a local disk, links to folders are followed, real folders first:

* A link that leads to a folder above it is a loop and is not entered. Folders are compared by device and inode.
* A link that leads out of the root is followed only if the tree is opened with ``follow_out``.
* A folder that links reach more than once is listed each time, so that two class folders can share images, but at most
  :data:`MAX_REPEATS` times in all: links that multiply paths end with an error, as does a tree that is more than
  :data:`MAX_DEPTH` folders deep.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ...errors import UserError
from ...images.sniff import HEAD_BYTES
from ...storage import AnyPath, Entry, list_objects
from ...storage.regular import IrregularFileError, open_regular, read_range
from .file import ListedObject, UnreadablePlace, printable
from .names import Names
from .words import SPLITS

__all__ = [
    "SPLITS",
    "FolderListing",
    "LocalTree",
    "RemoteTree",
    "Tree",
    "is_clutter",
    "join",
    "listing_name",
    "tree_of",
]

MAX_DEPTH = 100
"""Most folders below one another."""

MAX_REPEATS = 1000
"""Most listings of folders that have been listed before under another path."""

_READERS = 64
_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})

_Identity = tuple[int, int]
"""Device and inode of a folder."""
DENIED = "cannot be listed"
"""How the reason begins for a folder whose images are lost to the source, in contrast to a link that adds nothing."""
_LOOP = "is a link to a folder above it"
_OUT = "is a link that leads out of the source"


class FolderListing(NamedTuple):
    """One folder of a tree.

    Attributes
    ----------
    path
        Posix path relative to the root; empty for the root itself.
    files
        The files directly in it, without clutter, in any order.
    identity
        Device and inode of a local folder; None in an object store.
    """

    path: str
    files: Names
    identity: _Identity | None


class Tree(ABC):
    """The folders below ``root``. Paths are posix paths relative to it; that of the root is empty.

    Attributes
    ----------
    root
        Path or URL of the source.
    hidden
        Number of hidden files, and of files that operating systems leave. Complete once :meth:`listings` was called.
    unreadable
        Folders and links that were not entered.
    outside
        Links out of the root: not entered, or entered if the tree follows them.
    """

    opens_cheaply = False
    """Whether the first bytes of a file cost next to nothing, so that files of every extension are looked into."""

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self.hidden = 0
        self.unreadable: list[UnreadablePlace] = []
        self.outside: set[str] = set()
        self._listings: list[FolderListing] | None = None

    def listings(self) -> list[FolderListing]:
        """Return all folders, hidden ones excepted. The tree is listed at the first call.

        Raises
        ------
        OSError
            If the root cannot be listed, or the disk fails. A folder that may not be read is ``unreadable`` instead.
        UserError
            If links multiply paths, or the folders are nested too deep.
        """
        if self._listings is None:
            self._listings = list(self._list())
        return self._listings

    def walk(self) -> Iterator[str]:
        """Yield the paths of all files."""
        for folder in self.listings():
            yield from (join(folder.path, name) for name in folder.files)

    @abstractmethod
    def _list(self) -> Iterable[FolderListing]:
        """List all folders."""

    @abstractmethod
    def listed(self, path: str) -> ListedObject | None:
        """Return size and time of a file if a listing has them, without a request."""

    @abstractmethod
    def heads(self, paths: Sequence[str]) -> Iterator[bytes | OSError]:
        """Yield the first bytes of files, enough to tell what they are; b"" for what is not a file."""


class LocalTree(Tree):
    """A folder on this machine. A link to a file is a file, even if it is broken: the scan rejects it.

    Parameters
    ----------
    root
        The folder.
    follow_out
        Whether to enter links that lead out of it. Only for folders that the user vouches for.
    """

    opens_cheaply = True

    def __init__(self, root: AnyPath, *, follow_out: bool = False) -> None:
        super().__init__(root)
        self._top = str(root)
        self._follow_out = follow_out
        self._real_root: str | None = None
        self._targets_outside: dict[_Identity, bool] = {}
        self._repeats = 0

    def listed(self, path: str) -> None:
        """Return None: the status of a local file is cheap, and is read with the file."""
        return

    def heads(self, paths: Sequence[str]) -> Iterator[bytes | OSError]:
        """See :class:`Tree`."""
        return (_head(f"{self._top}/{path}") for path in paths)

    def _list(self) -> Iterator[FolderListing]:
        status = os.stat(self._top)  # noqa: PTH116
        pending = deque([_Pending("", (status.st_dev, status.st_ino), None)])
        links: deque[_Pending] = deque()
        seen: set[_Identity] = set()
        while pending or links:
            folder = pending.pop() if pending else links.popleft()
            if folder.identity in seen:
                self._count_repeat(folder)
            seen.add(folder.identity)
            try:
                files, folders, linked = self._entries(folder)
            except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
                if not folder.path:
                    raise
                self._leave(folder.path, f"{DENIED} ({error.strerror})")
                continue
            pending.extend(sorted(folders, key=_path, reverse=True))
            links.extend(sorted(linked, key=_path))  # which link is met first does not depend on the disk
            yield FolderListing(folder.path, files, folder.identity)

    def _entries(self, folder: _Pending) -> tuple[Names, list[_Pending], list[_Pending]]:
        """Return the names of a folder's files, its subfolders, and the linked folders in it that may be entered."""
        files = Names()
        folders: list[_Pending] = []
        linked: list[_Pending] = []
        with os.scandir(f"{self._top}/{folder.path}" if folder.path else self._top) as entries:
            for entry in entries:
                name = entry.name
                if not _is_folder(entry):
                    if is_clutter(name):
                        self.hidden += 1
                    else:
                        files.append(name)
                elif is_clutter(name):
                    if not entry.is_symlink():
                        self._count_hidden(entry.path)
                elif not entry.is_symlink():
                    folders.append(self._below(folder, name, (folder.identity[0], entry.inode())))
                elif (target := self._target(folder, entry)) is not None:
                    linked.append(self._below(folder, name, target))
        return files, folders, linked

    def _below(self, folder: _Pending, name: str, identity: _Identity) -> _Pending:
        if folder.depth >= MAX_DEPTH:
            raise UserError(
                f"{printable(self._top)}: its folders are nested more than {MAX_DEPTH} deep "
                f"({printable(folder.path[:60])}...). Give the folder that holds the images."
            )
        return _Pending(join(folder.path, name), identity, folder)

    def _target(self, folder: _Pending, entry: os.DirEntry[str]) -> _Identity | None:
        """Return the folder that a link leads to; None if it is not to be entered."""
        path = join(folder.path, entry.name)
        status = entry.stat()
        identity = status.st_dev, status.st_ino
        if any(above.identity == identity for above in folder.chain()):
            self._leave(path, _LOOP)
            return None
        if self._is_outside(entry.path, identity):
            self.outside.add(path)
            if not self._follow_out:
                self._leave(path, _OUT)
                return None
        return identity

    def _is_outside(self, path: str, identity: _Identity) -> bool:
        """Check whether a link leads out of the root; each folder that it leads to is looked up once."""
        if identity not in self._targets_outside:
            if self._real_root is None:
                self._real_root = os.path.realpath(self._top).rstrip("/") + "/"
            self._targets_outside[identity] = not os.path.realpath(path).startswith(self._real_root)
        return self._targets_outside[identity]

    def _count_repeat(self, folder: _Pending) -> None:
        self._repeats += 1
        if self._repeats > MAX_REPEATS:
            raise UserError(
                f"{printable(self._top)}: links lead to the same folders again and again, more than {MAX_REPEATS:,} "
                f"times (such as {printable(folder.path[:100])}). Remove the links, or give the folders themselves."
            )

    def _count_hidden(self, path: str) -> None:
        for _, _, names in os.walk(path):
            self.hidden += len(names)

    def _leave(self, path: str, reason: str) -> None:
        self.unreadable.append(UnreadablePlace(printable(path), reason))


class RemoteTree(Tree):
    """The objects below a URL, from a listing of its store. There are no links."""

    def __init__(self, root: AnyPath, entries: Iterable[Entry]) -> None:
        super().__init__(root)
        self._objects: dict[str, dict[str, ListedObject]] = defaultdict(dict)
        start = len(str(root)) + 1
        for entry in entries:
            folder, _, name = str(entry.path)[start:].rpartition("/")
            if is_clutter(name) or any(map(is_clutter, folder.split("/"))):
                self.hidden += 1
            else:
                self._objects[folder][name] = listing_name(entry)

    def listed(self, path: str) -> ListedObject | None:
        """Return size and time of an object."""
        folder, _, name = path.rpartition("/")
        return self._objects.get(folder, {}).get(name)

    def heads(self, paths: Sequence[str]) -> Iterator[bytes | OSError]:
        """See :class:`Tree`. Objects are asked for several at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self._head, paths)

    def _head(self, path: str) -> bytes | OSError:
        listed = self.listed(path)
        assert listed is not None, f"{path} is not in the listing"
        try:
            return read_range(self.root / path, 0, min(HEAD_BYTES, listed.bytes), listed)
        except OSError as error:
            return error

    def _list(self) -> Iterator[FolderListing]:
        for folder, objects in self._objects.items():
            yield FolderListing(folder, Names(objects), None)


class _Pending:
    """A folder to be listed: its path, its identity, and the folder through which it was reached."""

    __slots__ = ("above", "depth", "identity", "path")

    def __init__(self, path: str, identity: _Identity, above: _Pending | None) -> None:
        self.path = path
        self.identity = identity
        self.above = above
        self.depth: int = 0 if above is None else above.depth + 1

    def chain(self) -> Iterator[_Pending]:
        """Yield this folder and all above it, up to the root."""
        folder: _Pending | None = self
        while folder is not None:
            yield folder
            folder = folder.above


def _path(folder: _Pending) -> str:
    return folder.path


def tree_of(root: AnyPath, *, follow_out: bool = False) -> Tree | None:
    """Return the tree of a folder; None if it is not one. Raises OSError if an object store cannot be listed."""
    entries = list_objects(root)
    if entries is None:
        return LocalTree(root, follow_out=follow_out) if root.is_dir() else None
    return RemoteTree(root, entries) if entries and entries[0].path != root else None


def listing_name(entry: Entry) -> ListedObject:
    """Return size and time of an entry of a listing."""
    return ListedObject(entry.size, round(entry.mtime * 1e9))


def is_clutter(name: str) -> bool:
    """Check whether a file or folder is hidden or was left by an operating system (``__MACOSX``, thumbnails)."""
    return name[:1] == "." or name.lower() in _CLUTTER


def join(folder: str, name: str) -> str:
    """Join two parts of a posix path; the root is the empty path."""
    return f"{folder}/{name}" if folder else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Check whether an entry is a folder or a link to one; a broken link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _head(path: str) -> bytes | OSError:
    """Return the first bytes of a local file, or the error; a pipe or a device has none."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD_BYTES)
    except IrregularFileError:
        return b""
    except OSError as error:
        return error
