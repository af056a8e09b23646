"""Check everything in a cache and report all problems.

Each shard is checked on its own, so damage in one never hides the rest. Data without a marker do not exist for readers:
they are garbage and not a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from ...errors import IntegrityError, TemporaryFolderError, UnreachableError, UserError
from ...storage import (
    AnyPath,
    by_requests,
    list_folders,
    list_matching,
    list_names,
    map_ordered,
    path_exists,
    relative_name,
)
from .. import set_aside
from ..index import file as index_file
from ..index.index import Index
from ..records.about import FILE as ABOUT
from ..records.about import About
from ..records.builds import REF_NAME, BuildRecord, BuiltFeature, read_ref
from ..records.datasets import HEAD_NAME, DatasetStore, named_revision, revision_of
from ..shards.format import checksum
from ..shards.marker import MARKER_NAME, read_marker
from ..store import Cache, FeatureStore
from .garbage import list_garbage
from .roots import wanted_keys

__all__ = ["Problem", "list_garbage", "report", "verify"]

_BLOCK_BYTES = 64 * 2**20
_SHARDS_AT_ONCE = 8
"""In an object store. Each may hold two blocks in memory, as stored and as decoded."""

_Result = TypeVar("_Result")
ProblemKind = Literal["damage", "missing", "unreadable"]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes
    ----------
    feature
        The feature folder's name; for other things ``datasets/NAME``, ``builds/ID`` or ``refs``.
    shard
        The shard's id, or None if the problem is not one shard's.
    what
        A sentence.
    path
        The damaged file relative to the cache, if it is a single file other than a shard's.
    kind
        ``damage``; ``missing`` for rows that a build names and the next build computes again; ``unreadable`` for
        files that exist and cannot be read at the moment (no permission, too many open files, a failing disk or
        network).
    """

    feature: str
    shard: str | None
    what: str
    path: str | None = None
    kind: ProblemKind = "damage"


def verify(cache: Cache) -> list[Problem]:
    """Check all features, datasets, build records and references.

    All bytes of the shards are read: checksums, sizes, shapes and dtypes, and for floats NaN and Inf.

    Returns
    -------
    list of Problem
        All problems found.

    Raises
    ------
    UnreachableError
        If an object store fails.
    """
    problems: list[Problem] = []
    for folder in list_folders(cache.root / "features"):
        problems += _verify_feature(folder)
    for name in cache.datasets().names():
        problems += _verify_dataset(cache, name)
    problems += _verify_builds(cache)
    return problems


def report(cache: Cache) -> dict[str, Any]:
    """Verify a cache.

    Returns
    -------
    dict
        ``problems`` (the fields of each :class:`Problem`), ``garbage`` (paths relative to the cache), and the number of
        ``shards`` and ``bytes`` that were read.
    """
    problems = verify(cache)
    reported = {(problem.feature, problem.shard) for problem in problems}
    sizes = []
    for folder in cache.feature_folders():
        paths = list_matching(folder / "shards", MARKER_NAME)
        markers = map_ordered(partial(_checked, folder), [partial(read_marker, path) for path in paths], folder)
        for path, marker in zip(paths, markers, strict=True):
            if not isinstance(marker, _Failure):
                sizes.append(marker.bytes)
            elif marker.kind == "unreadable" and (folder.name, path.stem) not in reported:
                problems.append(Problem(folder.name, path.stem, marker.what, kind=marker.kind))
    return {
        "problems": [asdict(problem) for problem in problems],
        "garbage": [relative_name(path, cache.root) for path in list_garbage(cache)],
        "shards": len(sizes),
        "bytes": sum(sizes),
    }


class _Failure(NamedTuple):
    what: str
    kind: ProblemKind


def _checked(where: AnyPath, check: Callable[[], _Result]) -> _Result | _Failure:
    """Return a check's result, or why it failed; a failing object store is an error, not a problem of the cache."""
    try:
        return check()
    except UserError as error:
        return _Failure(str(error), "damage")
    except TemporaryFolderError:
        raise  # of this machine, not of the cache
    except UnreachableError as error:
        if by_requests(where):
            raise
        return _Failure(str(error), "unreadable")


def _verify_feature(folder: AnyPath) -> Iterator[Problem]:
    if not path_exists(folder / "spec.json"):
        # without shards, a builder was killed before it wrote the spec
        if list_matching(folder / "shards", MARKER_NAME):
            what = f"features/{folder.name}: has shards and no spec.json. The build that made them writes it again."
            yield Problem(folder.name, None, what, kind="missing")
        return
    store = _checked(folder, lambda: FeatureStore(folder))
    if isinstance(store, _Failure):
        yield Problem(folder.name, None, store.what, f"features/{folder.name}/spec.json", store.kind)
        return
    about = _checked(folder, lambda: store.about)
    if isinstance(about, _Failure):
        yield Problem(folder.name, None, about.what, f"features/{folder.name}/{ABOUT}", about.kind)
        about = None
    shards = store.marker_ids()
    checked = partial(_checked, folder)
    checks = [partial(_check_shard, store, shard, about) for shard in shards]
    for shard, result in zip(shards, map_ordered(checked, checks, folder, max_workers=_SHARDS_AT_ONCE), strict=True):
        if isinstance(result, _Failure):
            yield Problem(folder.name, shard, result.what, kind=result.kind)
    for path in set_aside.list_files(store):
        reasons = _checked(folder, partial(set_aside.read_list, path))
        if isinstance(reasons, _Failure):
            where = f"features/{folder.name}/{set_aside.FOLDER}/{path.name}"
            yield Problem(folder.name, None, reasons.what, where, reasons.kind)
    for path, what in _index_problems(store):
        yield Problem(folder.name, None, what, f"features/{folder.name}/{index_file.FOLDER}/{path.name}")


def _index_problems(store: FeatureStore) -> Iterator[tuple[AnyPath, str]]:
    """Yield the compacted indexes that are not valid or contradict the markers, each with a sentence."""
    for _, path in sorted(index_file.numbered(store.index_folder)):
        try:
            index = Index(saved=index_file.read(path, store.fingerprint))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            yield path, f"{path}: cannot be used ({error}), so it is ignored. It is safe to delete."
            continue
        shared = [shard for shard in store.marker_ids() if shard in index.known]
        fitting = map_ordered(partial(_fits, index, store), shared, store.folder)
        wrong = [shard for shard, fits in zip(shared, fitting, strict=True) if not fits]
        if wrong:
            what = f"differs from {len(wrong)} of {len(index.known)} markers (first: shard {wrong[0]})"
            yield path, f"{path}: {what}. It is safe to delete."


def _fits(index: Index, store: FeatureStore, shard: str) -> bool:
    """Return whether the saved index and the marker of a shard agree; a damaged marker is not the index's fault."""
    try:
        marker = store.marker(shard)
    except IntegrityError:
        return True
    part = index.saved
    return (
        index.agrees_with(marker)
        and index.stored_bytes([shard]) == marker.bytes
        and part.rejected.get(shard, {}) == marker.rejected
        and part.merged.get(shard, ()) == marker.merged
    )


def _check_shard(store: FeatureStore, shard: str, about: About | None) -> None:
    """Read a whole shard; IntegrityError for the first problem."""
    marker = store.marker(shard)
    path = store.shards / marker.data
    if about is not None and (fault := about.layout.fault(marker.shape, marker.dtype)):
        raise IntegrityError(f"{path}: has {fault}.")
    reader = store.open_shard(marker)
    size, sha256 = checksum(path)
    if (size, sha256) != (marker.bytes, marker.sha256):
        raise IntegrityError(
            f"{path}: the checksum is {sha256[:12]}…, the marker says {marker.sha256[:12]}…: the data are damaged."
        )
    if not marker.rows:
        return
    step = max(1, _BLOCK_BYTES * marker.rows // marker.decoded_bytes)
    bad = 0
    for start in range(0, marker.rows, step):
        block = reader.read(start, min(start + step, marker.rows), None)
        if block.dtype.kind == "f":
            bad += int((~np.isfinite(block)).reshape(len(block), -1).any(axis=1).sum())
    if bad:
        raise IntegrityError(f"{path}: {bad} of {marker.rows} rows hold NaN or Inf.")


def _verify_dataset(cache: Cache, name: str) -> Iterator[Problem]:
    store = cache.datasets()
    where, folder = f"datasets/{name}", store.folder / name
    heads_are_sound = True
    for path in list_matching(folder, HEAD_NAME):
        head = _checked(folder, partial(named_revision, path))
        if isinstance(head, _Failure):
            heads_are_sound = False
            yield Problem(where, None, head.what, f"{where}/{path.name}", head.kind)
    revisions = store.revisions(name)
    if heads_are_sound and store.head(name) not in revisions:
        what = f"{where}: the newest revision, {store.head(name)}, is missing. Build the dataset again."
        yield Problem(where, None, what, kind="missing")
    for revision in revisions:
        for suffix, check in (
            (".parquet", partial(_check_table, store, name, revision)),
            (".rejects.jsonl", partial(_check_rejects, store, name, revision)),
            (".audit.json", partial(store.audit, name, revision)),
            (".sources.json", partial(store.sources, name, revision)),
        ):
            result = _checked(folder, check)
            if isinstance(result, _Failure):
                yield Problem(where, None, result.what, f"{where}/{revision}{suffix}", result.kind)


def _check_rejects(store: DatasetStore, name: str, revision: str) -> None:
    for _ in store.rejects(name, revision):
        pass


def _check_table(store: DatasetStore, name: str, revision: str) -> None:
    if revision_of(store.pieces(name, revision)) != revision:
        raise IntegrityError(f"datasets/{name}/{revision}.parquet: its rows are not those of this revision.")


def _verify_builds(cache: Cache) -> Iterator[Problem]:
    builds = cache.builds()
    for build in builds.ids():
        where = f"builds/{build}"
        record = _checked(builds.folder, partial(builds.read, build))
        if isinstance(record, _Failure):
            yield Problem(where, None, record.what, f"{where}.json", record.kind)
            continue
        if record.revision not in cache.datasets().revisions(record.dataset):
            what = f"{where}: dataset {record.dataset} has no revision {record.revision}."
            yield Problem(where, None, what, kind="missing")
        for name, feature in record.features.items():
            yield from _missing_rows(cache, record, name, feature)
    known = set(builds.ids())
    for path in list_matching(builds.refs_folder, REF_NAME):
        ref = _checked(builds.refs_folder, partial(read_ref, path))
        if isinstance(ref, _Failure):
            yield Problem("refs", None, ref.what, f"refs/{path.name}", ref.kind)
        elif ref.build not in known:
            what = f"refs/{path.name}: names the build {ref.build}, which is missing."
            yield Problem("refs", None, what, kind="missing")


def _missing_rows(cache: Cache, record: BuildRecord, name: str, feature: BuiltFeature) -> Iterator[Problem]:
    """Look for the rows of a build whose shards are not all there; they may be in merged or new shards."""
    folder = cache.root / "features" / feature.folder
    present = set(list_names(folder / "shards"))
    missing = [shard for shard in feature.shards if f"{shard}.json" not in present]
    if not missing:
        return
    try:
        keys = wanted_keys(cache.datasets(), record, feature)
        index = FeatureStore(folder).index()
        merged = {shard for marker in FeatureStore(folder).markers() for shard in marker.merged}
    except UserError:
        keys, lacking, merged = [], 0, set()  # the reason is a problem of its own
    else:
        lacking = int((index.locate(keys)[0] < 0).sum())
    gone = [shard for shard in missing if shard not in merged]
    if lacking > 0 or (not keys and gone):
        what = f"builds/{record.id}: {len(gone)} of {len(feature.shards)} shards of {name} are missing"
        what += f", and with them {lacking} of {len(keys)} rows" if lacking > 0 else ""
        yield Problem(feature.folder, (gone or missing)[0], f"{what}. Build {record.dataset} again.", kind="missing")
