"""Setting files aside and putting them back: how ``gc`` removes markers and records without losing them at once.

What is set aside moves into a folder ``removed`` (or ``damaged``) near where it was, and its time becomes that of the
move. Until it is deleted there it can be put back by a link to its old name, which fails if somebody has written that
name anew. An object store can neither move nor link: there it is copied and then deleted, and put back by a conditional
put. So it may be seen in both places for a moment, but never in none.

Nothing is moved, put back or deleted through a symbolic link: what lies behind one belongs to somebody else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import compress

from ...errors import IntegrityError
from ...storage import AnyPath, RemotePath, list_folders, list_matching, map_ordered, path_exists, symlink_above
from ...storage.atomic import cannot_write, create_file, fsync_folder, make_folder
from ..shards.marker import MARKER_NAME, Marker, check_hint, read_marker
from ..store import Cache, FeatureStore

REMOVED = "removed"
DAMAGED = "damaged"
_OF_CACHE = ("builders", "builds", "datasets", "features", "refs")
_OF_FEATURE = ("shards", "index", REMOVED, DAMAGED)


class SymlinkError(IntegrityError):
    """What was to be moved or deleted is behind a symbolic link, so it belongs to somebody else."""


def symlinked_folders(cache: Cache) -> list[AnyPath]:
    """Return the folders of a cache that are symbolic links, the upper ones first: what lies in them is left alone."""
    top = [cache.root / name for name in _OF_CACHE]
    datasets, features = list_folders(cache.root / "datasets"), list_folders(cache.root / "features")
    below = [folder / name for folder in [*top, *datasets] for name in (REMOVED, DAMAGED)]
    below += [folder / name for folder in features for name in _OF_FEATURE]
    return [
        folder for folder in (*top, *datasets, *features, *below) if symlink_above(folder / "any", cache.root) == folder
    ]


def refuse_symlinks(root: AnyPath, *paths: AnyPath) -> None:
    """Raise BehindLinkError if a folder between the cache and one of its files is a symbolic link."""
    for path in paths:
        link = symlink_above(path, root)
        if link is not None:
            raise SymlinkError(f"{link}: is a symbolic link, and nothing is moved or deleted through one.")


def move_to_trash(root: AnyPath, path: AnyPath, folder: AnyPath) -> bool:
    """Move a file of the cache at ``root`` into ``folder``, in the place of one of the same name there; False if it is gone.

    At any moment the file is in the one place or in the other, also for two processes that move it at once.
    """
    target = folder / path.name
    refuse_symlinks(root, path, target)
    make_folder(folder)
    try:
        if isinstance(path, RemotePath):
            path.copy_to(target)
            path.unlink()
            return True
        os.utime(path, follow_symlinks=False)
        path.rename(str(target))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(target, error) from error
    return True


def restore(root: AnyPath, aside: AnyPath, path: AnyPath) -> bool:
    """Link a file that was set aside to its old name; False if it is not there any more. What is there already stays."""
    refuse_symlinks(root, aside, path)
    if isinstance(aside, RemotePath):
        return _put_back_object(aside, path)
    try:
        os.link(aside, str(path), follow_symlinks=False)
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    fsync_folder(path.parent)
    return True


def _put_back_object(aside: RemotePath, path: AnyPath) -> bool:
    try:
        create_file(path, aside.read_bytes())
    except FileNotFoundError:
        return path_exists(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def restore_shard(store: FeatureStore, shard: str) -> bool:
    """Put the marker of a removed shard back if its data are still there; say whether the shard exists now."""
    aside = store.removed / f"{shard}.json"
    if store.has(shard):
        return True
    try:
        store.open_shard(read_marker(aside))
    except IntegrityError:
        return store.has(shard)
    return restore(store.folder.parent.parent, aside, store.shards / aside.name)


def restore_shards(store: FeatureStore, wanted: Iterable[str], keys: Callable[[], Iterable[str]] = tuple) -> list[str]:
    """Put removed shards back until all wanted ones are there, or the rows that they held are, and return which are back.

    A wanted shard whose own data are gone lives on in one that it was merged into, or in those that hold its rows since
    they were made again: these come back in its place.
    keys : returns the keys whose rows must be there; asked only if a wanted shard is still missing otherwise.
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
        sorted(_removed_markers(store, removed - set(back)), key=lambda one: (-one.rows, one.shard)) if missing else []
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
            continue  # another process deletes it just now, or it is damaged


def ensure_shards(store: FeatureStore, shards: Iterable[str]) -> None:
    """Make sure, before a record names them, that shards exist: in their own right, put back, or merged into others.

    Raises IntegrityError for one whose rows are gone.
    """
    wanted = list(shards)
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
