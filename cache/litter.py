"""What no reader will ever look at: data without a marker, temporary files of killed writers, and what was set aside."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import IntegrityError
from ..places import Place, RemotePath, each, matching, names_in
from .aside import DAMAGED, REMOVED
from .atomic import TEMPORARY_PREFIX, cannot_write
from .lease import FOLDER as BUILDERS
from .lease import STALE_SECONDS, file_time, read_leases
from .marker import Marker, read_marker
from .store import Cache

KILLED = "a killed writer left it"
_WRITTEN = ("", BUILDERS, "builds", "refs", "datasets/*", "features/*", "features/*/shards", "features/*/index")
_ASIDE = ("builds", "refs", "datasets/*", "features/*")


@dataclass(frozen=True)
class Litter:
    """Something that can be deleted once it is old enough.

    age : seconds since it became litter. feature, dataset : whose it is, where it is one's. record : for the data of a
    removed shard its marker, which goes with them. at_least : the age that it must have whatever the grace period is.
    """

    path: Place
    why: str
    bytes: int
    age: float
    feature: str | None = None
    dataset: str | None = None
    record: Place | None = None
    at_least: float = 0


def garbage(cache: Cache) -> list[Place]:
    """Return the data without a marker and the temporary files of killed writers, sorted."""
    found = list(_temporary(cache))
    for folder in feature_folders(cache):
        found += _unmarked(folder / "shards")
    return sorted(found)


def feature_folders(cache: Cache) -> list[Place]:
    """Return all folders below ``features``, with or without a spec, sorted."""
    return sorted(path for path in (cache.root / "features").glob("*") if path.is_dir())


def find_litter(cache: Cache) -> list[Litter]:
    """Return all litter, but for the folders and datasets that live processes use.

    The leases are read after the looking: who takes one later can have written none of what was seen.
    """
    now = file_time(cache.root)
    found = []
    for path in _temporary(cache):
        found.append(Litter(path, KILLED, *_size_and_age(path, now), *_owner(path), at_least=STALE_SECONDS))
    for folder in feature_folders(cache):
        found += _data(folder, now)
    for place in _ASIDE:
        found += _aside(cache, f"{place}/{DAMAGED}/*", "damaged, set aside by verify", now)
    for place in _ASIDE[:-1]:
        found += _aside(cache, f"{place}/{REMOVED}/*", "removed by an earlier gc", now)
    leases = read_leases(cache.root)
    free = [one for one in found if one.feature not in leases.features and one.dataset not in leases.datasets]
    return free + [Litter(path, "the lease of a killed process", *_size_and_age(path, now)) for path in leases.stale]


def delete(litter: Litter) -> bool:
    """Delete one piece of litter; False if it has become something again.

    The record of a removed shard goes first: from then on nobody can put the marker back, and whoever did so before is
    seen.
    """
    path = litter.path
    try:
        if litter.record is not None:
            litter.record.unlink(missing_ok=True)
        if path.parent.name == "shards" and path.name in _named(path.parent, path.name[:32]):
            return False
        if isinstance(path, RemotePath):
            path.remove()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True  # another gc was faster
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def _aside(cache: Cache, pattern: str, why: str, now: float) -> Iterator[Litter]:
    def litter(path: Place) -> Litter:
        return Litter(path, why, *_size_and_own_age(path, now), *_owner(path))

    return each(litter, matching(cache.root, pattern), cache.root)


def _temporary(cache: Cache) -> Iterator[Place]:
    for place in _WRITTEN:
        yield from cache.root.glob(f"{place}/{TEMPORARY_PREFIX}*" if place else f"{TEMPORARY_PREFIX}*")


def _unmarked(shards: Place) -> Iterator[Place]:
    """Yield data that no marker names; what belongs to a damaged marker's shard counts as named.

    The only data of a shard that has a marker are taken for those that it names: it is not read for that.
    """
    names = names_in(shards)
    marked = {name[:-5] for name in names if name.endswith(".json")}
    data = sorted(name for name in names if "-" in name and not name.startswith(TEMPORARY_PREFIX))
    several = [shard for shard, count in Counter(name[:32] for name in data).items() if count > 1 and shard in marked]
    named = dict(zip(several, each(lambda shard: _named(shards, shard), several, shards), strict=True))
    for name in data:
        if name[:32] not in marked or name not in named.get(name[:32], {name}):
            yield shards / name


def _named(shards: Place, shard: str) -> set[str]:
    """Return the names of data that the marker of a shard holds; all that could be its own if it cannot be read."""
    path = shards / f"{shard}.json"
    try:
        return {Marker.model_validate_json(path.read_bytes()).data}
    except FileNotFoundError:
        return set()
    except (ValueError, OSError):
        return {data.name for data in shards.glob(f"{shard}-*")}


def _data(folder: Place, now: float) -> Iterator[Litter]:
    yield from each(lambda path: _of_data(folder, path, now), _unmarked(folder / "shards"), folder)


def _of_data(folder: Place, path: Place, now: float) -> Litter:
    size, age = _size_and_age(path, now)
    record = folder / REMOVED / f"{path.name[:32]}.json"
    try:
        if read_marker(record).data == path.name:
            since = now - record.stat().st_mtime
            return Litter(path, "its shard was removed", size, since, folder.name, record=record)
    except (IntegrityError, FileNotFoundError):
        pass  # nothing was removed in an orderly way: a writer was killed
    return Litter(path, KILLED, size, age, folder.name)


def _owner(path: Place) -> tuple[str | None, str | None]:
    """Return the feature's folder and the dataset that a path of the cache belongs to."""
    for folder in path.parents:
        if folder.parent.name == "features":
            return folder.name, None
        if folder.parent.name == "datasets":
            return None, folder.name
    return None, None


def _size_and_age(path: Place, now: float) -> tuple[int, float]:
    """Return the bytes of a file or tree and the seconds since anything of it was written."""
    if isinstance(path, RemotePath):
        entries = path.below()
        return sum(entry.size for entry in entries), now - max((entry.mtime for entry in entries), default=now)
    size, newest = 0, 0.0
    below = (Path(folder) / name for folder, folders, names in os.walk(path) for name in (*folders, *names))
    for item in itertools.chain((path,), below):
        try:
            status = item.lstat()
        except FileNotFoundError:
            continue  # another gc deletes it just now
        size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        newest = max(newest, status.st_mtime)
    return size, now - newest


def _size_and_own_age(path: Place, now: float) -> tuple[int, float]:
    """Return the bytes of a file or tree that was set aside, and the seconds since."""
    size, age = _size_and_age(path, now)
    if isinstance(path, RemotePath):
        return size, age  # the copy was made when it was set aside
    try:
        return size, now - path.lstat().st_mtime
    except FileNotFoundError:
        return size, age  # another gc deletes it just now
