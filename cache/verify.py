"""Everything that can be checked about a cache, and everything that is wrong with it.

Each shard is checked on its own: damage in one never hides the rest. Data without a marker does not exist for any
reader, so it is no problem, only garbage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ..errors import IntegrityError, UserError
from ..places import Place, each, matching, name_below
from . import index_file
from .builds import BuildRecord, BuiltFeature, read_ref
from .dataset import named_revision
from .formats import checksum
from .index import Index
from .litter import feature_folders, garbage
from .marker import read_marker
from .revision import revision_of
from .roots import wanted_keys
from .store import Cache, FeatureStore

__all__ = ["Problem", "garbage", "report", "verify"]

_BLOCK_BYTES = 64 * 2**20
_SHARDS_AT_ONCE = 8
"""Of an object store. Each may hold two blocks in memory, as stored and decoded."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    feature : the folder's name (for other things ``datasets/NAME``, ``builds/ID``, ``refs``).
    shard : the shard's id, or None where the problem is not one shard's.
    what : a sentence.
    path : the damaged file relative to the cache, where it is one file other than a shard's.
    kind : ``damage``, or ``missing`` for rows that a build names and that the next build makes again.
    """

    feature: str
    shard: str | None
    what: str
    path: str | None = None
    kind: Literal["damage", "missing"] = "damage"


def verify(cache: Cache) -> list[Problem]:
    """Check all features, datasets, build records and references, and return all problems found.

    Reads every byte of the shards: checksums, sizes, shapes and types of all, NaN and Inf of the float features.
    """
    problems: list[Problem] = []
    for folder in feature_folders(cache):
        problems += _verify_feature(folder)
    for name in cache.datasets().names():
        problems += _verify_dataset(cache, name)
    problems += _verify_builds(cache)
    return problems


def report(cache: Cache) -> dict[str, Any]:
    """Verify and return ``problems``, ``garbage`` (paths relative to the cache), and how many shards and bytes were read."""
    problems = verify(cache)
    sizes = [size for folder in cache.feature_folders() for size in _marked_bytes(folder)]
    return {
        "problems": [asdict(problem) for problem in problems],
        "garbage": [name_below(path, cache.root) for path in garbage(cache)],
        "shards": len(sizes),
        "bytes": sum(sizes),
    }


def _marked_bytes(folder: Place) -> Iterator[int]:
    """Yield the bytes of each shard whose marker can be read."""
    sizes = each(_bytes_of, matching(folder / "shards", "*.json"), folder)
    return (size for size in sizes if size is not None)


def _bytes_of(path: Place) -> int | None:
    try:
        return read_marker(path).bytes
    except IntegrityError:
        return None


def _verify_feature(folder: Place) -> Iterator[Problem]:
    if not (folder / "spec.json").exists():
        if any((folder / "shards").glob("*.json")):  # without shards, a builder was killed before it wrote the spec
            what = f"features/{folder.name}: has shards and no spec.json. The build that made them writes it again."
            yield Problem(folder.name, None, what, kind="missing")
        return
    try:
        store = FeatureStore(folder)
    except IntegrityError as error:
        yield Problem(folder.name, None, str(error), f"features/{folder.name}/spec.json")
        return
    shards = store.marker_ids()
    found = each(lambda shard: list(_shard_problems(store, shard)), shards, folder, at_once=_SHARDS_AT_ONCE)
    for shard, sentences in zip(shards, found, strict=True):
        for what in sentences:
            yield Problem(folder.name, shard, what)
    for path, what in _index_problems(store):
        yield Problem(folder.name, None, what, f"features/{folder.name}/{index_file.FOLDER}/{path.name}")


def _index_problems(store: FeatureStore) -> Iterator[tuple[Place, str]]:
    """Yield the compacted indexes that cannot be used, and those that contradict the markers, with what is wrong."""
    for _, path in sorted(index_file.numbered(store.index_folder)):
        try:
            index = Index(saved=index_file.read(path, store.fingerprint))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            yield path, f"{path}: cannot be used ({error}), so it is ignored. Delete it: that loses nothing."
            continue
        shared = [shard for shard in store.marker_ids() if shard in index.known]
        fitting = each(partial(_fits, index, store), shared, store.folder)
        wrong = [shard for shard, fits in zip(shared, fitting, strict=True) if not fits]
        if wrong:
            what = f"differs from {len(wrong)} of {len(index.known)} markers (first: shard {wrong[0]})"
            yield path, f"{path}: {what}. Delete it: that loses nothing."


def _fits(index: Index, store: FeatureStore, shard: str) -> bool:
    """Say whether the saved index says of a shard what its marker says; a marker that cannot be read is no fault of the index."""
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


def _shard_problems(store: FeatureStore, shard: str) -> Iterator[str]:
    try:
        marker = store.marker(shard)
        path = store.shards / marker.data
        reader = store.open_shard(marker)
        size, sha256 = checksum(path)
        if (size, sha256) != (marker.bytes, marker.sha256):
            yield f"{path}: the checksum is {sha256[:12]}…, the marker says {marker.sha256[:12]}…: the data is damaged."
            return
        if marker.rows:
            step = max(1, _BLOCK_BYTES * marker.rows // marker.decoded_bytes)
            bad = 0
            for start in range(0, marker.rows, step):
                block = reader.read(start, min(start + step, marker.rows), None)
                if block.dtype.kind == "f":
                    bad += int((~np.isfinite(block)).reshape(len(block), -1).any(axis=1).sum())
            if bad:
                yield f"{path}: {bad} of {marker.rows} rows hold NaN or Inf."
    except (IntegrityError, OSError) as error:
        yield str(error)


def _verify_dataset(cache: Cache, name: str) -> Iterator[Problem]:
    store = cache.datasets()
    where = f"datasets/{name}"
    try:
        store.history(name)
        if store.head(name) not in store.revisions(name):
            what = f"{where}: the newest revision, {store.head(name)}, is missing. Build the dataset again."
            yield Problem(where, None, what, kind="missing")
    except IntegrityError:
        for path in matching(store.folder / name, "HEAD-*.json"):
            try:
                named_revision(path)
            except IntegrityError as error:
                yield Problem(where, None, str(error), f"{where}/{path.name}")
    for revision in store.revisions(name):
        try:
            if revision_of(store.read(name, revision)) != revision:
                raise IntegrityError(f"{where}/{revision}.parquet: its rows are not those of this revision.")
        except UserError as error:
            yield Problem(where, None, str(error), f"{where}/{revision}.parquet")
        try:
            store.rejects(name, revision)
        except UserError as error:
            yield Problem(where, None, str(error), f"{where}/{revision}.rejects.jsonl")
        try:
            store.audit(name, revision)
        except UserError as error:
            yield Problem(where, None, str(error), f"{where}/{revision}.audit.json")


def _verify_builds(cache: Cache) -> Iterator[Problem]:
    builds = cache.builds()
    for build in builds.ids():
        where = f"builds/{build}"
        try:
            record = builds.read(build)
        except UserError as error:
            yield Problem(where, None, str(error), f"{where}.json")
            continue
        if record.revision not in cache.datasets().revisions(record.dataset):
            what = f"{where}: dataset {record.dataset} has no revision {record.revision}."
            yield Problem(where, None, what, kind="missing")
        for name, feature in record.features.items():
            yield from _missing_rows(cache, record, name, feature)
    for path in matching(builds.refs_folder, "*.json"):
        try:
            ref = read_ref(path)
            if ref.build not in builds.ids():
                what = f"refs/{path.name}: names the build {ref.build}, which is missing."
                yield Problem("refs", None, what, kind="missing")
        except UserError as error:
            yield Problem("refs", None, str(error), f"refs/{path.name}")


def _missing_rows(cache: Cache, record: BuildRecord, name: str, feature: BuiltFeature) -> Iterator[Problem]:
    """Look for the rows of a build whose shards are not all there: merged ones and such as were made again count."""
    folder = cache.root / "features" / feature.folder
    missing = [shard for shard in feature.shards if not (folder / "shards" / f"{shard}.json").exists()]
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
