"""Where the files of a folder went that are not taken as images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from .file import SourceAccount, Uncovered, UnreadablePlace, printable
from .folders.census import Census
from .folders.layouts import ImageFolder
from .tree import join

NOT_COVERED = "no class folder of the layout covers them"
FEATURES = "computed features beside images/, not photographs; `distil-cache cache import` reads them"

_ARCHIVES = frozenset({"tar", "zip", "parquet", "arrow", "tgz", "gz", "7z", "rar", "lmdb", "tfrecord"})
_SHOWN = 5


class Leftovers:
    """Collects the images of a source that no class folder covers.

    Parameters
    ----------
    census
        All that is in the source.
    source
        The source as given.
    owners
        Class folders by their paths.
    reason
        Why images are not covered, as the end of a sentence.
    """

    def __init__(
        self, census: Census, source: str, owners: Mapping[str, ImageFolder], reason: str = NOT_COVERED
    ) -> None:
        self._census = census
        self._source = source
        self._reason = reason
        self._holders = {above for folder in owners for above in _upwards(folder)}
        self._uncovered: dict[str, tuple[int, str]] = {}
        self._left: list[UnreadablePlace] = []
        self._skipped = Counter[str]()
        self._identities = {listing.path: listing.identity for listing in census.tree.listings()}
        self._first: dict[tuple[str | None, tuple[int, int]], str] = {}

    def is_first(self, folder: str, owner: ImageFolder | None) -> bool:
        """Check whether a folder is met for the first time in its class folder; links may lead to it again."""
        identity = self._identities.get(folder)
        if identity is None:
            return True
        first = self._first.setdefault((owner.folder if owner else None, identity), folder)
        if first == folder:
            return True
        self._left.append(UnreadablePlace(printable(folder), f"is {printable(first)} again, which is read once"))
        self._skipped["images"] += len(self._census.images[folder])
        self._skipped["others"] += len(self._census.others[folder])
        return False

    def add(self, folder: str, names: Collection[str]) -> None:
        """Add the images of a folder, under the highest folder above it without a class folder."""
        if not names:
            return
        top = folder
        while top and top not in self._holders and (above := top.rpartition("/")[0]) and above not in self._holders:
            top = above
        feature = next((above for above in _upwards(folder) if above in self._census.features), None)
        key = feature if feature is not None else top
        count, example = self._uncovered.get(key, (0, join(folder, min(names))))
        self._uncovered[key] = (count + len(names), example)

    def account(self, layout: str, images: int, notes: Collection[str]) -> SourceAccount:
        """Return the account of the whole source, of which ``images`` files were taken."""
        tree, census = self._census.tree, self._census
        uncovered = self._entries()
        not_images = sum(map(len, census.others.values())) - self._skipped["others"]
        files = census.files + tree.hidden - self._skipped["images"] - self._skipped["others"]
        return SourceAccount(
            self._source,
            layout,
            files,
            images,
            not_images,
            tree.hidden,
            uncovered,
            (*tree.unreadable, *self._left),
            (*notes, *self._notes()),
        )

    def added_to(self, account: SourceAccount, read: Collection[str]) -> SourceAccount:
        """Return the account of archives, with what lies beside those that are ``read`` added."""
        tree = self._census.tree
        uncovered = self._entries()
        beside = sum(map(len, self._census.others.values())) - self._skipped["others"] - len(read)
        return replace(
            account,
            files=account.files + beside + tree.hidden + sum(entry.images for entry in uncovered),
            not_images=account.not_images + beside,
            hidden=account.hidden + tree.hidden,
            uncovered=(*account.uncovered, *uncovered),
            unreadable=(*account.unreadable, *tree.unreadable, *self._left),
            notes=(*account.notes, *self._links()),
        )

    def _entries(self) -> tuple[Uncovered, ...]:
        return tuple(
            Uncovered(printable(folder), self._why(folder), count, printable(example))
            for folder, (count, example) in sorted(self._uncovered.items())
        )

    def _why(self, folder: str) -> str:
        return FEATURES if folder in self._census.features else self._reason

    def _notes(self) -> list[str]:
        notes = self._links()
        archives = Counter(
            extension
            for names in self._census.others.values()
            for name in names
            if (extension := name.rpartition(".")[2].lower()) in _ARCHIVES
        )
        if archives:
            shown = ", ".join(f"{count:,} .{extension}" for extension, count in sorted(archives.items()))
            notes.append(
                f"Archives and tables in the folder are not read ({shown}). Give them as sources of their own."
            )
        if self._census.unread:
            notes.append(
                f"{self._census.unread:,} files were not looked into, since their extensions are those of other kinds "
                "of files."
            )
        return notes

    def _links(self) -> list[str]:
        links = sorted(self._census.tree.outside - {place.path for place in self._census.tree.unreadable})
        if not links:
            return []
        shown = printable(", ".join(links[:_SHOWN])) + (", ..." if len(links) > _SHOWN else "")
        return [f"{len(links):,} links that lead out of the source are followed: {shown}."]


def _upwards(folder: str) -> list[str]:
    found = [folder]
    while folder:
        folder = folder.rpartition("/")[0]
        found.append(folder)
    return found
