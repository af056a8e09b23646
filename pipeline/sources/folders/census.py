"""What lies in a folder source: its folders, and which of their files are images by their first bytes.

A file with the extension of an image is taken for one, and the scan rejects it if it is none. Any other file is looked
into. In an object store, where each look is a request, files with a well-known other extension are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ....images.file import EXTENSIONS
from ....images.sniff import sniff
from ..file import UnreadablePlace, printable
from ..names import Names
from ..tree import Tree, join

OTHER_EXTENSIONS = frozenset({
    "7z", "avi", "bin", "bz2", "c", "cfg", "csv", "dat", "db", "doc", "docx", "gz", "h", "h5", "hdf5", "html",
    "ini", "ipynb", "joblib", "js", "json", "jsonl", "lmdb", "log", "lz4", "m4a", "m4v", "mat", "md", "mdb",
    "mkv", "mov", "mp3", "mp4", "mpeg", "mpg", "npy", "npz", "onnx", "parquet", "pdf", "pickle", "pkl", "ply",
    "pt", "pth", "py", "rar", "rst", "safetensors", "sh", "sqlite", "svg", "tar", "tex", "tfrecord", "tgz",
    "toml", "torrent", "tsv", "txt", "wav", "webm", "xml", "xz", "yaml", "yml", "zip", "zst",
})  # fmt: skip
"""Extensions of files that are not looked into where each look is a request."""

FEATURE_FOLDERS = frozenset({"dire", "recons", "recon", "eps"})
"""Names of folders beside ``images`` that hold computed features: their files are not photographs."""


@dataclass(frozen=True)
class Census:
    """The folders of a source below a common base.

    Attributes
    ----------
    tree
        Where they are.
    base
        The folder, relative to the root, that the paths start at; empty for the root.
    images
        Folder -> names of the images directly in it. Folders without any have none. A folder comes before
        those in it, and before links that lead to it.
    others
        Folder -> names of its other files, without hidden ones.
    features
        Folders that hold computed features. What is below them is not named.
    unread
        Number of files that were not looked into.
    """

    tree: Tree
    base: str
    images: Mapping[str, Names]
    others: Mapping[str, Names]
    features: frozenset[str]
    unread: int = 0

    @cached_property
    def below_each(self) -> dict[str, int]:
        """Folder -> number of images in it, at any depth; those among computed features left out."""
        found = {folder: 0 if folder in self.features else len(names) for folder, names in self.images.items()}
        for folder in reversed(list(found)):  # a folder comes before those in it
            if folder and folder not in self.features:
                found[_above(folder)] += found[folder]
        return found

    @cached_property
    def subfolders(self) -> dict[str, list[str]]:
        """Folder -> paths of the folders directly in it, in order."""
        found: dict[str, list[str]] = {folder: [] for folder in self.images}
        for folder in self.images:
            if folder:
                found[_above(folder)].append(folder)
        return {folder: sorted(paths) for folder, paths in found.items()}

    @property
    def total(self) -> int:
        """Number of images, those among computed features left out."""
        return self.below_each[""]

    @property
    def files(self) -> int:
        """Number of all files that are not hidden."""
        return sum(map(len, self.images.values())) + sum(map(len, self.others.values()))

    def is_feature(self, folder: str) -> bool:
        """Check whether a folder belongs to computed features."""
        return bool(self.features) and any(above in self.features for above in _upwards(folder))

    def children(self) -> list[str]:
        """Return the names of the top folders, sorted."""
        return self.subfolders[""]

    def below(self, child: str) -> Census:
        """Return the census of a top folder."""
        start = f"{child}/"
        return Census(
            self.tree,
            join(self.base, child),
            _cut(self.images, child, start),
            _cut(self.others, child, start),
            frozenset(name[len(start) :] for name in self.features if name.startswith(start)),
        )


def take_census(tree: Tree) -> Census:
    """List a tree and look into the files whose extension does not say that they are images.

    Raises
    ------
    OSError
        If the tree cannot be listed.
    UserError
        For links without end, see :mod:`..tree`.
    """
    images: dict[str, Names] = {}
    others: dict[str, Names] = {}
    doubtful: list[tuple[str, str]] = []
    unread = 0
    look = tree.opens_cheaply
    for folder in tree.listings():
        for above in reversed(list(_upwards(folder.path))):  # a store lists no folder without objects of its own
            if above not in images:
                images[above], others[above] = Names(), Names()
        if all(
            _extension(name) in EXTENSIONS for name in folder.files
        ):  # most folders of images: one copy of the names
            images[folder.path] = folder.files
            continue
        here, rest = images[folder.path], others[folder.path]
        for name in folder.files:
            extension = _extension(name)
            if extension in EXTENSIONS:
                here.append(name)
            elif look or extension not in OTHER_EXTENSIONS:
                doubtful.append((folder.path, name))
            else:
                rest.append(name)
                unread += 1
    heads = tree.heads([join(folder, name) for folder, name in doubtful])
    for (folder_path, name), head in zip(doubtful, heads, strict=True):
        # A file that cannot be read may be an image: the scan rejects it and says why.
        is_image = isinstance(head, OSError) or sniff(head) is not None
        (images if is_image else others)[folder_path].append(name)
    return Census(tree, "", images, others, _features(images), unread)


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def place(path: str, reason: str) -> UnreadablePlace:
    """Return an unreadable place with a name that can be stored."""
    return UnreadablePlace(printable(path), reason)


def _features(folders: Iterable[str]) -> frozenset[str]:
    known = set(folders)
    found = set()
    for folder in known:
        above, _, name = folder.rpartition("/")
        if name in FEATURE_FOLDERS and join(above, "images") in known:
            found.add(folder)
    return frozenset(found)


def _above(folder: str) -> str:
    return folder.rpartition("/")[0]


def _upwards(folder: str) -> Iterable[str]:
    """Yield a folder and all above it, up to the root."""
    yield folder
    while folder:
        folder = folder.rpartition("/")[0]
        yield folder


def _cut(listed: Mapping[str, Names], child: str, start: str) -> dict[str, Names]:
    return {
        folder[len(start) :]: names for folder, names in listed.items() if folder == child or folder.startswith(start)
    }
