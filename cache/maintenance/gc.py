"""Garbage collection: remove what no run or new revision needs, while builds run and without a lock.

The order is: move what is not needed to the trash (build records and revisions, then the markers of shards); read
leases, references, heads and records again, and restore what turns out to be needed; delete data whose marker has been
gone for the grace period. A builder takes its lease before it reads the cache, and checks at its end that everything it
names exists. So either it sees that a shard is gone, or this sees its lease or its record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, groupby
from pathlib import PurePosixPath
from typing import Any, Literal

from ...choices import GRACE_HOURS, KEEP_REVISIONS
from ...errors import IntegrityError
from ...storage import AnyPath, list_matching, map_ordered, path_exists, relative_name, unreachable_on_error
from ...storage.atomic import fsync_folder
from ..lease import Leases, file_time, read_leases
from ..records.builds import RECORD_NAME, read_build
from ..records.datasets import OF_REVISION, REVISION_NAME
from ..shards.format import checksum
from ..store import Cache, FeatureStore
from .garbage import Garbage, delete_garbage, feature_folders, find_garbage
from .roots import Roots, find_roots, needed_shards, read_marker_summaries, replacements, restore_named
from .trash import REMOVED, move_to_trash, restore, symlinked_folders


@dataclass(frozen=True)
class CollectedItem:
    """Something that is removed.

    Attributes
    ----------
    kind
        ``data`` are deleted. The others are moved to the trash and deleted after the grace period.
    path
        Relative to the cache.
    bytes
        Size of its own files; for a shard, that of its data.
    why
        Why it is removed.
    """

    kind: Literal["build", "revision", "shard", "data"]
    path: str
    bytes: int
    why: str


@dataclass
class _Found:
    """The result of a scan: what would be removed, what is kept and why, and bytes whose grace period is not over."""

    items: list[CollectedItem]
    kept: list[str]
    waiting: list[int]


def collect(
    cache: Cache, *, delete_them: bool = False, grace_hours: float = GRACE_HOURS, keep_revisions: int = KEEP_REVISIONS
) -> dict[str, Any]:
    """Find, and with ``delete_them`` remove, what no run or new revision needs.

    Parameters
    ----------
    cache
        The cache.
    delete_them
        Remove it; otherwise nothing is changed.
    grace_hours
        Hours between the removal of a marker and the deletion of its data.
    keep_revisions
        How many of each dataset's newest revisions are kept.

    Returns
    -------
    dict
        ``items`` (the fields of each :class:`CollectedItem`), ``bytes`` (freed now), ``later`` (bytes freed after the
        grace period of the shards among the items), ``waiting`` (bytes of data without a marker whose grace period is
        not over), ``kept`` (sentences about what is kept although nothing refers to it), ``dry_run``, ``grace_hours``
        and ``keep_revisions``.

    Raises
    ------
    IntegrityError
        If a record, reference, head or lease is damaged, so that it is not known what is needed.
    UnreachableError
        If something that decides what is needed cannot be listed or read at the moment.
    """
    grace = grace_hours * 3600
    if delete_them:
        _restore_needed(cache, keep_revisions, [])
    found = _scan(cache, grace, keep_revisions, thorough=delete_them)
    if delete_them:
        moved = _move_items(cache, found.items)
        returned = _restore_needed(cache, keep_revisions, moved)
        found.items = [item for item in found.items if item.path not in returned]
    items, bytes_now = list(found.items), 0
    in_trash = {PurePosixPath(item.path).name for item in items}
    old = []
    for garbage in find_garbage(cache):
        if garbage.age >= max(grace, garbage.at_least):
            old.append(garbage)
        elif (garbage.record or garbage.path).name not in in_trash:
            found.waiting.append(garbage.bytes)
    gone = (
        map_ordered(lambda garbage: delete_garbage(cache.root, garbage), old, cache.root)
        if delete_them
        else [True] * len(old)
    )
    for garbage in compress(old, gone):
        items.append(_item(cache, garbage))
        bytes_now += garbage.bytes
    return {
        "dry_run": not delete_them,
        "grace_hours": grace_hours,
        "keep_revisions": keep_revisions,
        "items": [asdict(item) for item in items],
        "bytes": bytes_now,
        "later": 0 if delete_them and not grace else sum(item.bytes for item in found.items),
        "waiting": sum(found.waiting),
        "kept": found.kept,
    }


def _scan(cache: Cache, grace: float, keep_revisions: int, *, thorough: bool) -> _Found:
    """Find what is not needed; with ``thorough``, checksum merged shards before the shards that they replace may go."""
    leases = read_leases(cache.root)
    now = file_time(cache.root)
    builds = cache.builds().folder
    young = frozenset(path.stem for path in list_matching(builds, RECORD_NAME) if now - _changed(path, now) < grace)
    roots = find_roots(cache, keep_revisions, young)
    if roots.absent:
        build, run = next(iter(roots.absent.items()))
        raise IntegrityError(
            f"{cache.root}: {run} refers to build {build}, which is missing, so it is not known what the run needs. "
            f"See: distil-cache cache verify {cache.root}"
        )
    found = _Found([], [f"{lease.work} on {lease.host} (process {lease.pid}) is running" for lease in leases.live], [])
    found.items += [*_records(cache, roots, leases), *_revisions(cache, roots, leases, now - grace)]
    for folder in feature_folders(cache):
        if folder.name in leases.features:
            found.kept.append(f"{folder.name}: in use by a running process")
        elif path_exists(folder / "spec.json"):
            _scan_feature(cache, folder, roots, now - grace, found, thorough=thorough)
    links = symlinked_folders(cache)
    found.kept += [
        f"{_name(cache, link)}: is a symbolic link, and nothing is moved or deleted behind one" for link in links
    ]
    found.items = [item for item in found.items if not _is_behind(cache.root / item.path, links)]
    return found


def _is_behind(path: AnyPath, links: Sequence[AnyPath]) -> bool:
    """Return whether one of these links is on the way to a file, or to the folder to which it would be moved."""
    return any(link in path.parents or link == trash_folder(path) for link in links)


def _records(cache: Cache, roots: Roots, leases: Leases) -> Iterable[CollectedItem]:
    """Yield the build records that are not needed."""
    for build, record in roots.records.items():
        if build not in roots.builds and record.dataset not in leases.datasets:
            path = cache.builds().folder / f"{build}.json"
            why = f"no run and no new revision of {record.dataset} needs it"
            yield CollectedItem("build", _name(cache, path), _size(path), why)


def _revisions(cache: Cache, roots: Roots, leases: Leases, oldest: float) -> Iterable[CollectedItem]:
    """Yield the files of revisions that are not needed; one that was never the head only if older than ``oldest``."""
    datasets = cache.datasets()
    for name in sorted(set(datasets.names()) - leases.datasets):
        past = roots.history.get(name, ())  # not the current history: a newer head is not among the roots
        why = f"an older revision of {name} that no run needs"
        for revision, paths in _files_of_revisions(datasets.folder / name).items():
            is_young = revision not in past and max(_changed(path, oldest) for path in paths) >= oldest
            if (name, revision) not in roots.revisions and not is_young:
                yield from (CollectedItem("revision", _name(cache, path), _size(path), why) for path in paths)


def _files_of_revisions(folder: AnyPath) -> dict[str, list[AnyPath]]:
    """Return the files of each revision in a dataset's folder, table first; an interrupted gc may have removed some."""
    files: dict[str, list[AnyPath]] = {}
    for path in list_matching(folder, REVISION_NAME):
        files.setdefault(path.name.partition(".")[0], []).append(path)
    order = [suffix.partition(".")[2] for suffix in OF_REVISION]
    return {
        revision: sorted(paths, key=lambda path: order.index(path.name.partition(".")[2]))
        for revision, paths in files.items()
    }


def _scan_feature(cache: Cache, folder: AnyPath, roots: Roots, oldest: float, found: _Found, *, thorough: bool) -> None:
    """Add a feature's shards that are not needed; one that no build names only if it is older than ``oldest``."""
    try:
        store = FeatureStore(folder)
        summaries = read_marker_summaries(store)
    except IntegrityError as error:
        found.kept.append(f"{folder.name}: {error}")
        return
    merging = [summary.shard for summary in summaries.values() if not summaries.keys().isdisjoint(summary.merged)]
    sound_ones = map_ordered(lambda shard: _sound(store, shard, thorough=thorough), merging, folder)
    unsound = {shard for shard, is_sound in zip(merging, sound_ones, strict=True) if not is_sound}
    found.kept += [
        f"{folder.name}: merged shard {shard} is damaged, so what it replaces stays" for shard in sorted(unsound)
    ]
    sound = {shard: summary for shard, summary in summaries.items() if shard not in unsound}
    replaced = replacements(store, sound)
    needed = needed_shards(cache, store, sound, roots, replaced)
    named = roots.named(folder.name, needed=False)
    young = 0
    for shard, summary in sound.items():
        path = store.shards / f"{shard}.json"
        if shard in needed or not summary.rows:  # one without rows records what cannot be decoded
            continue
        if replaced.get(shard) in needed:
            why = "merged into a larger shard"
        elif shard in named:
            why = "only builds that are not needed name it"
        elif _changed(path, oldest) < oldest:
            why = "no build names it"
        else:
            young += 1
            continue
        found.items.append(CollectedItem("shard", _name(cache, path), summary.bytes, why))
    if young:
        found.kept.append(
            f"{folder.name}: {young:,} shards may be from an interrupted build and are younger than the grace period"
        )


def _sound(store: FeatureStore, shard: str, *, thorough: bool) -> bool:
    try:
        marker = store.marker(shard)
        store.open_shard(marker)
        return not thorough or checksum(store.shards / marker.data) == (marker.bytes, marker.sha256)
    except IntegrityError:
        return False


def _move_items(cache: Cache, items: Iterable[CollectedItem]) -> list[AnyPath]:
    """Move the items to the trash, flush the folders, and return the paths that were moved.

    Kinds are moved one after the other, so that a power failure brings back no record of something that is gone.
    """
    moved = []
    for _, of_one_kind in groupby(items, key=lambda item: item.kind):
        paths = [cache.root / item.path for item in of_one_kind]
        paths = list(
            compress(
                paths, map_ordered(lambda path: move_to_trash(cache.root, path, trash_folder(path)), paths, cache.root)
            )
        )
        for folder in sorted({folder for path in paths for folder in (path.parent, trash_folder(path))}):
            fsync_folder(folder)
        moved += paths
    return moved


def trash_folder(path: AnyPath) -> AnyPath:
    """Return the folder to which a marker, build record or file of a revision is moved when it is removed."""
    return (path.parent.parent if path.parent.name == "shards" else path.parent) / REMOVED


def _restore_needed(cache: Cache, keep_revisions: int, moved: Iterable[AnyPath]) -> set[str]:
    """Restore what live processes use among the moved paths, and all that roots need, whichever process moved it.

    Returns the paths that are back, relative to the cache.
    """
    back: set[AnyPath] = set()
    leases = read_leases(cache.root)
    for path in moved:
        if _in_use(path, leases) and restore(cache.root, trash_folder(path) / path.name, path):
            back.add(path)
    roots = find_roots(cache, keep_revisions)
    links = symlinked_folders(cache)
    builds = cache.builds().folder
    for path in [builds / f"{build}.json" for build in roots.absent if not _is_behind(builds / "any", links)]:
        if restore(cache.root, trash_folder(path) / path.name, path):
            back.add(path)
    roots = find_roots(cache, keep_revisions)
    for path in moved:
        if path.parent.name == "builds" and path not in back and _dataset_and_revision(path) in roots.revisions:
            back.add(path)
            restore(cache.root, trash_folder(path) / path.name, path)
    roots = find_roots(cache, keep_revisions)
    for name, revision in roots.revisions:
        for suffix in OF_REVISION:
            path = cache.datasets().folder / name / f"{revision}{suffix}"
            if _is_behind(path, links) or path_exists(path):
                continue
            if restore(cache.root, trash_folder(path) / path.name, path):
                back.add(path)
    for folder in cache.feature_folders():
        if not _is_behind(folder / "shards" / "any", links):
            back |= set(_restore_shards(cache, folder, roots))
    return {_name(cache, path) for path in back}


def _in_use(path: AnyPath, leases: Leases) -> bool:
    """Return whether a live process uses the feature or dataset whose marker, file or build record was at ``path``."""
    if path.parent.name == "builds":
        what = _dataset_and_revision(path)
        return what is not None and what[0] in leases.datasets
    return path.parent.name in leases.datasets or path.parents[1].name in leases.features


def _dataset_and_revision(path: AnyPath) -> tuple[str, str] | None:
    """Return the dataset and revision of a removed build record; None if another process has deleted it."""
    removed = trash_folder(path) / path.name
    try:
        record = read_build(removed)
    except IntegrityError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return record.dataset, record.revision


def _restore_shards(cache: Cache, folder: AnyPath, roots: Roots) -> Iterable[AnyPath]:
    """Restore the removed shards of a feature that hold what needed builds name, and yield their paths."""
    needed = [roots.records[build] for build in roots.builds]
    try:
        store = FeatureStore(folder)
        for shard in restore_named(cache, store, needed):
            yield store.shards / f"{shard}.json"
    except IntegrityError:
        return  # reported when the folder is scanned


def _item(cache: Cache, garbage: Garbage) -> CollectedItem:
    return CollectedItem("data", _name(cache, garbage.path), garbage.bytes, garbage.why)


def _name(cache: Cache, path: AnyPath) -> str:
    return relative_name(path, cache.root)


def _size(path: AnyPath) -> int:
    try:
        with unreachable_on_error(path):
            return path.stat().st_size
    except FileNotFoundError:
        return 0


def _changed(path: AnyPath, otherwise: float) -> float:
    try:
        with unreachable_on_error(path):
            return path.stat().st_mtime
    except FileNotFoundError:
        return otherwise
