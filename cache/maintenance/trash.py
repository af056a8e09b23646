"""The trash: how ``gc`` and ``verify --repair`` remove markers and records so that they can be restored.

A removed file moves to a folder ``removed`` (or ``damaged``) near its old path, and its time is set to that of the
move. Until it is deleted there it can be restored by a link at its old name, which fails if a new file has that name.
In an object store it may exist in both places for a moment, but is never missing from both (:mod:`...storage.trees`).

Nothing is moved, restored or deleted through a symbolic link, since files behind one do not belong to the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import compress

from ...errors import IntegrityError
from ...storage import AnyPath, has_links, list_folders, list_matching, map_ordered, symlink_above
from ...storage.atomic import cannot_write, flush_name, make_folder
from ...storage.trees import move_file, put_back
from ..shards.marker import MARKER_NAME, Marker, check_hint, read_marker
from ..store import Cache, FeatureStore

REMOVED = "removed"
DAMAGED = "damaged"
_OF_CACHE = ("builders", "builds", "datasets", "features", "refs")
_OF_FEATURE = ("shards", "index", REMOVED, DAMAGED)


class SymlinkError(IntegrityError):
    """A file that was to be moved or deleted is behind a symbolic link, so it does not belong to the cache."""


def symlinked_folders(cache: Cache) -> list[AnyPath]:
    """Return the folders of a cache that are symbolic links, upper ones first; their content is left alone."""
    if not has_links(cache.root):
        return []
    top = [cache.root / name for name in _OF_CACHE]
    datasets, features = list_folders(cache.root / "datasets"), list_folders(cache.root / "features")
    below = [folder / name for folder in [*top, *datasets] for name in (REMOVED, DAMAGED)]
    below += [folder / name for folder in features for name in _OF_FEATURE]
    return [
        folder for folder in (*top, *datasets, *features, *below) if symlink_above(folder / "any", cache.root) == folder
    ]


def refuse_symlinks(root: AnyPath, *paths: AnyPath) -> None:
    """Raise SymlinkError if a folder between the cache and one of these paths is a symbolic link."""
    for path in paths:
        link = symlink_above(path, root)
        if link is not None:
            raise SymlinkError(f"{link}: is a symbolic link, and nothing is moved or deleted behind one.")


def move_to_trash(root: AnyPath, path: AnyPath, folder: AnyPath) -> bool:
    """Move a file to the trash, replacing a file of the same name there.

    The file is never missing from both places, even if two processes move it at once.

    Parameters
    ----------
    root
        The cache.
    path
        The file.
    folder
        The trash folder.

    Returns
    -------
    bool
        False if the file no longer exists.

    Raises
    ------
    SymlinkError
        If either place is behind a symbolic link.
    UserError
        If the file cannot be moved.
    """
    target = folder / path.name
    refuse_symlinks(root, path, target)
    make_folder(folder)
    try:
        move_file(path, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(target, error) from error
    return True


def restore(root: AnyPath, trashed: AnyPath, path: AnyPath) -> bool:
    """Restore a file from the trash. An existing file at its old path stays.

    Parameters
    ----------
    root
        The cache.
    trashed
        The file in the trash.
    path
        Its old path.

    Returns
    -------
    bool
        Whether a file exists at the old path now; False if the trash no longer has it.

    Raises
    ------
    SymlinkError
        If either place is behind a symbolic link.
    UserError
        If the file cannot be restored.
    """
    refuse_symlinks(root, trashed, path)
    try:
        return put_back(trashed, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def restore_shard(store: FeatureStore, shard: str) -> bool:
    """Restore the marker of a removed shard if its data still exist; return whether the shard exists now."""
    trashed = store.removed / f"{shard}.json"
    if store.has(shard):
        return True
    try:
        store.open_shard(read_marker(trashed))
    except IntegrityError:
        return store.has(shard)
    return restore(store.folder.parent.parent, trashed, store.shards / trashed.name)


def restore_shards(store: FeatureStore, wanted: Iterable[str], keys: Callable[[], Iterable[str]] = tuple) -> list[str]:
    """Restore removed shards until all wanted ones exist, or their rows do.

    A wanted shard whose own data are gone is represented by a shard into which it was merged, or by shards that hold
    its rows since they were computed again; these are restored in its place.

    Parameters
    ----------
    store
        The feature.
    wanted
        Ids of the shards.
    keys
        Returns the keys whose rows must exist; called only if a wanted shard is still missing.

    Returns
    -------
    list of str
        The shards that are back.
    """
    present = store.marker_ids()
    missing = set(wanted).difference(present)
    if missing:
        missing -= {name for marker in store.read_markers(present) for name in marker.merged}
    removed = {path.stem for path in list_matching(store.removed, MARKER_NAME)} if missing else set()
    named = sorted(missing & removed)
    back = list(compress(named, map_ordered(lambda shard: restore_shard(store, shard), named, store.folder)))
    missing -= set(back)
    others = (
        sorted(_removed_markers(store, removed - set(back)), key=lambda marker: (-marker.rows, marker.shard))
        if missing
        else []
    )
    for marker in others:
        if not missing.isdisjoint(marker.merged) and restore_shard(store, marker.shard):
            back.append(marker.shard)
            missing -= set(marker.merged)
    if missing and others:
        wanted_keys = list(dict.fromkeys(keys()))
        found = store.index(refresh=True).locate(wanted_keys)[0]
        lacking = {key for key, number in zip(wanted_keys, found.tolist(), strict=True) if number < 0}
        for marker in others:
            if not lacking.isdisjoint(marker.keys) and restore_shard(store, marker.shard):
                back.append(marker.shard)
                lacking -= set(marker.keys)
    return back


def _removed_markers(store: FeatureStore, shards: Iterable[str]) -> Iterator[Marker]:
    for shard in sorted(shards):
        try:
            yield read_marker(store.removed / f"{shard}.json")
        except IntegrityError:
            continue  # damaged, or being deleted by another process


def ensure_shards(store: FeatureStore, shards: Iterable[str]) -> None:
    """Make sure that shards exist, durably, before a build record names them: as they are, restored, or merged.

    A marker that another process linked may not be on disk yet, so the folder is flushed.

    Raises
    ------
    IntegrityError
        If the rows of a shard are gone.
    """
    wanted = list(shards)
    present = set(store.marker_ids())
    if not present.issuperset(wanted):
        restore_shards(store, wanted)
        present = set(store.marker_ids())
    missing = [shard for shard in wanted if shard not in present]
    merged = {name for marker in store.markers() for name in marker.merged} if missing else set()
    for shard in missing:
        if shard not in merged:
            raise IntegrityError(
                f"{store.folder}: shard {shard} was removed while this build relied on it. Run the build again. "
                f"{check_hint(store.folder)}"
            )
    if wanted:
        flush_name(store.shards / "any")
