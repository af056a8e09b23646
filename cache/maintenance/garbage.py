"""Garbage, which no reader can reach: data without a marker, temporary files of killed writers, and old trash."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...errors import IntegrityError
from ...storage import (
    AnyPath,
    list_folders,
    list_matching,
    list_names,
    map_ordered,
    path_exists,
    symlink_above,
    unreachable_on_error,
)
from ...storage.atomic import TEMPORARY_PREFIX, cannot_write
from ...storage.trees import moved_time, remove_tree, tree_size_and_time
from ..lease import FOLDER as BUILDERS
from ..lease import STALE_SECONDS, file_time, read_leases
from ..records.builds import RECIPE_NAME, RECORD_NAME, REF_NAME
from ..records.datasets import HEAD_NAME, REVISION_NAME
from ..shards.marker import DATA_NAME, MARKER_NAME, read_marker
from ..spec import FOLDER_NAME
from ..store import Cache
from .trash import DAMAGED, REMOVED, refuse_symlinks

_SPEC = re.compile(r"(spec|about)\.json")
KILLED = "left by a killed writer"
TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}.+-[0-9a-f]{{16}}")
"""Names of temporary files."""


@dataclass(frozen=True)
class Garbage:
    """Something that can be deleted once it is old enough.

    Attributes
    ----------
    path
        The file or tree.
    why
        Why it is garbage.
    bytes
        Its size.
    age
        Seconds since it became garbage.
    feature, dataset
        The feature folder or dataset to which it belongs, if any.
    record
        For the data of a removed shard, its marker, which is deleted with them.
    at_least
        The least age in seconds at which it may be deleted, whatever the grace period.
    """

    path: AnyPath
    why: str
    bytes: int
    age: float
    feature: str | None = None
    dataset: str | None = None
    record: AnyPath | None = None
    at_least: float = 0


def list_garbage(cache: Cache) -> list[AnyPath]:
    """Return the data without a marker and the temporary files of killed writers, sorted."""
    found = list(_temporary(cache))
    for folder in feature_folders(cache):
        found += _unmarked(folder / "shards")
    return sorted(found)


def feature_folders(cache: Cache) -> list[AnyPath]:
    """Return the folders below ``features`` that have a feature's name, with or without a spec, sorted."""
    return [folder for folder in list_folders(cache.root / "features") if FOLDER_NAME.fullmatch(folder.name)]


def find_garbage(cache: Cache) -> list[Garbage]:
    """Return all garbage, except in folders and datasets that live processes use, and behind symbolic links.

    The leases are read after the scan: a process that takes a lease later cannot have written any of what was found.

    Raises
    ------
    UnreachableError
        If a folder or file cannot be listed or read at the moment.
    """
    now = file_time(cache.root)
    found = []
    for path in _temporary(cache):
        found.append(Garbage(path, KILLED, *_size_and_age(path, now), *_owner(path), at_least=STALE_SECONDS))
    features = [folder for folder in feature_folders(cache) if _is_own(cache, folder / "shards")]
    for folder in features:
        found += _data(cache, folder, now)
    builds, refs, datasets = cache.builds().folder, cache.builds().refs_folder, _dataset_folders(cache)
    damaged: list[tuple[AnyPath, tuple[re.Pattern[str], ...]]] = [(builds, (RECORD_NAME,)), (refs, (REF_NAME,))]
    damaged += [(folder, (REVISION_NAME, HEAD_NAME)) for folder in datasets]
    damaged += [(folder, (MARKER_NAME, DATA_NAME, _SPEC)) for folder in features]
    removed = [(builds, (RECORD_NAME,)), *((folder, (REVISION_NAME,)) for folder in datasets)]
    for folder, names in damaged:
        found += _in_trash(cache, folder / DAMAGED, names, "damaged, moved to the trash by verify", now)
    for folder, names in removed:
        found += _in_trash(cache, folder / REMOVED, names, "removed by an earlier gc", now)
    for path in list_matching(builds, RECIPE_NAME):
        record = f"{path.stem}.json"
        if not path_exists(builds / record) and not path_exists(builds / REMOVED / record):
            found.append(Garbage(path, "the recipe of a build that is gone", *_size_and_age(path, now)))
    leases = read_leases(cache.root)
    unused = [item for item in found if item.feature not in leases.features and item.dataset not in leases.datasets]
    stale = leases.stale if _is_own(cache, cache.root / BUILDERS) else ()
    return unused + [Garbage(path, "the lease of a killed process", *_size_and_age(path, now)) for path in stale]


def delete_garbage(root: AnyPath, item: Garbage) -> bool:
    """Delete one piece of garbage.

    The marker of a removed shard goes first: from then on it cannot be restored, and an earlier restore is noticed.

    Parameters
    ----------
    root
        The cache.
    item
        The garbage.

    Returns
    -------
    bool
        False if it is no longer garbage: a marker names it again.

    Raises
    ------
    IntegrityError
        If it is behind a symbolic link.
    UserError
        If it cannot be deleted.
    """
    path = item.path
    refuse_symlinks(root, path, item.record or path)
    try:
        if item.record is not None:
            item.record.unlink(missing_ok=True)
        if path.parent.name == "shards" and path.name in _named(path.parent, path.name[:32]):
            return False
        remove_tree(path)
    except FileNotFoundError:
        return True  # another gc has deleted it
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def _in_trash(
    cache: Cache, folder: AnyPath, names: Iterable[re.Pattern[str]], why: str, now: float
) -> Iterator[Garbage]:
    def garbage(path: AnyPath) -> Garbage:
        return Garbage(path, why, *_size_and_time_in_trash(path, now), *_owner(path))

    if _is_own(cache, folder):
        for name in names:
            yield from map_ordered(garbage, list_matching(folder, name), cache.root)


def _is_own(cache: Cache, folder: AnyPath) -> bool:
    """Return whether no symbolic link is on the way from the cache to the folder's content."""
    return symlink_above(folder / "any", cache.root) is None


def _dataset_folders(cache: Cache) -> list[AnyPath]:
    return list_folders(cache.datasets().folder)


def _temporary(cache: Cache) -> Iterator[AnyPath]:
    folders = [cache.root, cache.root / BUILDERS, cache.builds().folder, cache.builds().refs_folder]
    folders += _dataset_folders(cache)
    for feature in feature_folders(cache):
        folders += [feature, feature / "shards", feature / "index"]
    for folder in folders:
        if _is_own(cache, folder):
            yield from list_matching(folder, TEMPORARY)


def _unmarked(shards: AnyPath) -> Iterator[AnyPath]:
    """Yield data that no marker names. Data of a shard whose marker is damaged count as named.

    A marker is read only if its shard has several data; single data are assumed to be those that it names.
    """
    names = list_names(shards)
    marked = {name[:-5] for name in names if name.endswith(".json")}
    data = sorted(name for name in names if DATA_NAME.fullmatch(name))
    several = [shard for shard, count in Counter(name[:32] for name in data).items() if count > 1 and shard in marked]
    named = dict(zip(several, map_ordered(lambda shard: _named(shards, shard), several, shards), strict=True))
    for name in data:
        if name[:32] not in marked or name not in named.get(name[:32], {name}):
            yield shards / name


def _named(shards: AnyPath, shard: str) -> set[str]:
    """Return the names of the data that a shard's marker names; all candidates if it is damaged."""
    path = shards / f"{shard}.json"
    try:
        return {read_marker(path).data}
    except IntegrityError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return set()
        return {name for name in list_names(shards) if name.startswith(f"{shard}-")}


def _data(cache: Cache, folder: AnyPath, now: float) -> Iterator[Garbage]:
    if _is_own(cache, folder / REMOVED):
        yield from map_ordered(lambda path: _data_item(folder, path, now), _unmarked(folder / "shards"), folder)


def _data_item(folder: AnyPath, path: AnyPath, now: float) -> Garbage:
    size, age = _size_and_age(path, now)
    record = folder / REMOVED / f"{path.name[:32]}.json"
    try:
        with unreachable_on_error(record):
            since = now - record.stat().st_mtime
        if read_marker(record).data == path.name:
            return Garbage(path, "its shard was removed", size, since, folder.name, record=record)
        age = min(age, since)  # an earlier marker in the trash, replaced by this one, may have named these data
    except (IntegrityError, FileNotFoundError):
        pass  # gc did not remove the shard: a writer was killed
    return Garbage(path, KILLED, size, age, folder.name)


def _owner(path: AnyPath) -> tuple[str | None, str | None]:
    """Return the feature folder or the dataset to which a path of the cache belongs."""
    for folder in path.parents:
        if folder.parent.name == "features":
            return folder.name, None
        if folder.parent.name == "datasets":
            return None, folder.name
    return None, None


def _size_and_age(path: AnyPath, now: float) -> tuple[int, float]:
    """Return the bytes of a file or tree and the seconds since any of it was last written."""
    size, written = tree_size_and_time(path)
    return size, 0.0 if written is None else now - written


def _size_and_time_in_trash(path: AnyPath, now: float) -> tuple[int, float]:
    """Return the bytes of a file or tree in the trash and the seconds since it was moved there."""
    size, written = tree_size_and_time(path)
    with contextlib.suppress(FileNotFoundError):  # another gc is deleting it
        written = moved_time(path, written)
    return size, 0.0 if written is None else now - written
