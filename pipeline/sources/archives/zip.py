"""Read zips as a source: the images in them, without extraction.

A zip is a folder: its members are recognised by the layouts of folders. Several zips in a folder are one source, in
which each stands for a folder of its own name: ``data/train.zip`` for ``data/train/``, also if all members are below
a folder ``train/`` in it. If a zip alone is called like a
split, it stands for the folder of that split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ....images.file import ImageRejected
from ....images.sniff import HEAD_BYTES
from ....storage import AnyPath, map_ordered
from ..file import DiscoveredSource, ListedObject, SourceFile, Uncovered, printable
from ..file_table import FileTable
from ..names import Names
from ..read import read_image
from ..tree import FolderListing, Tree, is_clutter, join
from ..words import split_of_word
from .zip_index import SUFFIX, ZipEntry, read_zip_index

ZIP = "zip"
_REMOTE_ZIPS = 8
"""Zips of an object store that are listed at a time."""


class ZipTree(Tree):
    """The members of zips as folders and files.

    Parameters
    ----------
    root
        The folder that holds the zips.
    zips
        Path of each relative to it, the folder of the tree for which it stands, and its members.
    shown
        The source in messages.
    """

    def __init__(self, root: AnyPath, zips: Sequence[tuple[str, str, list[ZipEntry]]], shown: AnyPath) -> None:
        super().__init__(shown)
        self._folder = root
        self._members: dict[str, dict[str, tuple[str, ZipEntry]]] = {}
        self._unread: list[tuple[str, ZipEntry]] = []
        for path, folder, entries in zips:
            self._members.setdefault(folder, {})
            for entry in entries:
                above, _, name = entry.name.rpartition("/")
                if any(is_clutter(part) for part in entry.name.split("/") if part != ".."):
                    self.hidden += 1
                elif entry.member is None:
                    self._unread.append((path, entry))
                else:
                    place = join(folder, above) if above else folder
                    here = self._members.setdefault(place, {})
                    if name in here:
                        self._unread.append((path, entry._replace(member=None, reason=f"is in {here[name][0]} too")))
                    else:
                        here[name] = path, entry

    def listed(self, path: str) -> ListedObject | None:
        """Return the size of a member and the time of its zip."""
        member = self._entry(path)[1].member
        return None if member is None else ListedObject(member.length, member.archive_mtime_ns)

    def heads(self, paths: Sequence[str]) -> Iterator[bytes | OSError]:
        """See :class:`..tree.Tree`."""
        return map(self._head, paths)

    def placed(self, file: SourceFile) -> SourceFile:
        """Return a file of this tree as a member of its zip."""
        zip_path, entry = self._entry(file.path)
        return replace(file, root=str(self._folder), path=f"{zip_path}/{entry.name}", member=entry.member, listed=None)

    def unread(self) -> tuple[Uncovered, ...]:
        """Return the members that cannot be read, by zip and reason."""
        counts = Counter((path, entry.reason) for path, entry in self._unread)
        first = {(path, entry.reason): entry.name for path, entry in reversed(self._unread)}
        return tuple(
            Uncovered(printable(path), f"the member {reason}", count, printable(f"{path}/{first[path, reason]}"))
            for (path, reason), count in counts.items()
        )

    def _list(self) -> list[FolderListing]:
        return [FolderListing(folder, Names(files), None) for folder, files in sorted(self._members.items())]

    def _entry(self, path: str) -> tuple[str, ZipEntry]:
        folder, _, name = path.rpartition("/")
        return self._members[folder][name]

    def _head(self, path: str) -> bytes | OSError:
        file = self.placed(SourceFile(str(self._folder), path, 0, "", "", "", ""))
        try:
            return read_image(file)[0][:HEAD_BYTES]
        except ImageRejected as rejected:
            return OSError(str(rejected))


def discover_zips(
    root: AnyPath, zips: Sequence[str], shown: AnyPath, discover: Callable[[Tree], DiscoveredSource]
) -> DiscoveredSource:
    """List the images in zips.

    Parameters
    ----------
    root
        The folder that holds them.
    zips
        Posix paths relative to it.
    shown
        The source as given.
    discover
        Recognises the layout of a tree of folders.

    Raises
    ------
    UserError
        For a zip that cannot be read, and what ``discover`` raises.
    """
    tree = _zip_tree(root, sorted(zips), shown)
    found = discover(tree)
    unread = tree.unread()
    account = replace(
        found.account,
        files=found.account.files + sum(entry.images for entry in unread),
        uncovered=found.account.uncovered + unread,
    )
    return DiscoveredSource(found.layout, FileTable(map(tree.placed, found.files)), account)


def _zip_tree(root: AnyPath, zips: Sequence[str], shown: AnyPath) -> ZipTree:
    indexes = list(map_ordered(lambda path: read_zip_index(root / path, path), zips, root, max_workers=_REMOTE_ZIPS))
    folders = [_stands_for(path, entries) for path, entries in zip(zips, indexes, strict=True)]
    if len(zips) == 1 and split_of_word(zips[0][: -len(SUFFIX)].rpartition("/")[2]) is None:
        folders = [""]
    return ZipTree(root, list(zip(zips, folders, indexes, strict=True)), shown)


def _stands_for(path: str, entries: Sequence[ZipEntry]) -> str:
    """Return the folder for which a zip stands: of its own name, or the one that holds it if it has that inside."""
    folder = path[: -len(SUFFIX)]
    above, _, name = folder.rpartition("/")
    tops = {entry.name.split("/")[0] for entry in entries if not is_clutter(entry.name.split("/")[0])}
    return above if tops == {name} else folder
