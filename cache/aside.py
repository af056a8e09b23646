"""Setting files aside and putting them back: how ``gc`` removes markers and records without losing them at once.

What is set aside moves into a folder ``removed`` (or ``damaged``) near where it was, and its time becomes that of the
move. Until it is deleted there it can be put back by a link to its old name, which fails if somebody has written that
name anew. An object store can neither move nor link: there it is copied and then deleted, and put back by a conditional
put. So it may be seen in both places for a moment, but never in none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..errors import IntegrityError
from ..places import Place, RemotePath
from .atomic import cannot_write, create_file, fsync_folder, make_folder
from .marker import how_to_check, read_marker
from .store import FeatureStore

REMOVED = "removed"
DAMAGED = "damaged"


def set_aside(path: Place, folder: Place) -> bool:
    """Move a file into ``folder``, in the place of one of the same name there; False if it is gone already.

    At any moment the file is in the one place or in the other, also for two processes that move it at once.
    """
    make_folder(folder)
    target = folder / path.name
    try:
        if isinstance(path, RemotePath):
            path.copy_to(target)
            path.unlink()
            return True
        os.utime(path)
        path.rename(str(target))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(target, error) from error
    return True


def put_back(aside: Place, path: Place) -> bool:
    """Link a file that was set aside to its old name; False if it is not there any more. What is there already stays."""
    if isinstance(aside, RemotePath):
        return _put_back_object(aside, path)
    try:
        os.link(aside, str(path))
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    fsync_folder(path.parent)
    return True


def _put_back_object(aside: RemotePath, path: Place) -> bool:
    try:
        create_file(path, aside.read_bytes())
    except FileNotFoundError:
        return path.exists()
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
    return put_back(aside, store.shards / aside.name)


def keep_shards(store: FeatureStore, shards: Iterable[str]) -> None:
    """Make sure, before a record names them, that shards exist: in their own right, put back, or merged into others.

    Raises IntegrityError for one whose rows are gone.
    """
    merged: set[str] | None = None
    present = set(store.marker_ids())
    for shard in shards:
        if shard in present or restore_shard(store, shard):
            continue
        if merged is None:
            merged = {name for marker in store.markers() for name in marker.merged}
        if shard not in merged:
            raise IntegrityError(
                f"{store.folder}: shard {shard} was removed while this build relied on it. Run the build again. "
                f"{how_to_check(store.folder)}"
            )
