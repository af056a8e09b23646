"""The folders and files of a source, on a local disk or in an object store, behind one interface.

Clutter (hidden files and folders, and files of operating systems) is skipped silently. A local tree is read folder by
folder on demand. A remote one is listed once, recursively: an object store has no folders, and a listing returns size
and time of a thousand objects per request.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...storage import AnyPath, Entry, RemotePath
from .file import ListedObject

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a folder -> its split."""

_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


class Tree(ABC):
    """The folders below ``root``. Paths are posix paths relative to it; that of the root is empty.

    Attributes
    ----------
    root
        Path or URL of the source.
    outside
        Linked folders that were not entered because they lead out of the root.
    """

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self.outside: set[str] = set()
        self._known: dict[str, list[str]] = {}

    @abstractmethod
    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the subfolders and of the files in a folder, without clutter, in any order.

        Raises OSError if it cannot be listed.
        """

    @abstractmethod
    def listed(self, path: str) -> ListedObject | None:
        """Return size and time of a file if a listing has them, without a request."""

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the subfolders of a folder, sorted. Raises OSError if it cannot be listed."""
        if folder not in self._known:
            self._known[folder] = sorted(self.children(folder)[0])
        return self._known[folder]

    def splits(self, folder: str = "") -> Iterator[tuple[str, str]]:
        """Yield (split, path) of the split folders in a folder."""
        for name in self.folders(folder):
            if name in SPLITS:
                yield SPLITS[name], join(folder, name)

    def walk(self, folder: str = "") -> Iterator[str]:
        """Yield the files below a folder, at any depth."""
        folders, files = self.children(folder)
        for name in files:
            yield join(folder, name)
        for name in folders:
            yield from self.walk(join(folder, name))


class LocalTree(Tree):
    """A folder on this machine.

    A linked folder is entered only if its target is inside the root and is not one of its own parents. A link to a file
    is a file, even if it is broken: the scan rejects it.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._root = root

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """See :class:`Tree`."""
        folders, files = [], []
        with os.scandir(self._root / folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                if not _is_folder(entry):
                    files.append(entry.name)
                elif self._may_enter(entry):
                    folders.append(entry.name)
        return folders, files

    def listed(self, path: str) -> None:
        """Return None: the status of a local file is cheap, and is read with the file."""
        return

    def _may_enter(self, folder: os.DirEntry[str]) -> bool:
        if not folder.is_symlink():
            return True
        real_root, target = Path(os.path.realpath(self._root)), Path(os.path.realpath(folder.path))
        if not target.is_relative_to(real_root):
            self.outside.add(Path(folder.path).relative_to(self._root).as_posix())
            return False
        return not self._is_cycle(Path(folder.path).parent, target)

    def _is_cycle(self, folder: Path, target: Path) -> bool:
        """Check whether ``target`` is ``folder`` or one of its parents."""
        parents = [folder, *(parent for parent in folder.parents if parent.is_relative_to(self._root))]
        return any(Path(os.path.realpath(parent)).is_relative_to(target) for parent in parents)


class RemoteTree(Tree):
    """The objects below a URL, from a listing of its store. There are no links."""

    def __init__(self, root: RemotePath, entries: Iterable[Entry]) -> None:
        super().__init__(root)
        self._files: dict[str, dict[str, ListedObject]] = {}
        self._folders: dict[str, set[str]] = defaultdict(set)
        start = len(str(root)) + 1
        for entry in entries:
            folder, _, name = str(entry.path)[start:].rpartition("/")
            if folder not in self._files:
                self._add_folder(folder)
            self._files[folder][name] = listing_name(entry)

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """See :class:`Tree`."""
        folders = [name for name in self._folders.get(folder, ()) if not is_clutter(name)]
        return folders, [name for name in self._files.get(folder, ()) if not is_clutter(name)]

    def listed(self, path: str) -> ListedObject | None:
        """Return size and time of an object."""
        folder, _, name = path.rpartition("/")
        return self._files.get(folder, {}).get(name)

    def _add_folder(self, folder: str) -> None:
        """Add a folder, and its parents as far as they are missing."""
        self._files[folder] = {}
        while folder:
            above, _, name = folder.rpartition("/")
            if name in self._folders[above]:
                return
            self._folders[above].add(name)
            folder = above


def tree_of(root: AnyPath) -> Tree | None:
    """Return the tree of a folder; None if it is not one. Raises OSError if an object store cannot be listed."""
    if isinstance(root, Path):
        return LocalTree(root) if root.is_dir() else None
    entries = root.below()
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
