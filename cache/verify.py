"""Everything that can be checked about a cache, and everything that is wrong with it.

Each shard is checked on its own: damage in one never hides the rest. Data without a marker does not exist for any
reader, so it is no problem, only garbage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IntegrityError, UserError
from .atomic import TEMPORARY_PREFIX
from .dataset import revision_of
from .formats import checksum
from .marker import Marker, read_marker, shard_id_of
from .store import Cache, FeatureStore

_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    feature : the folder's name (for other things ``datasets/NAME``, ``builds/ID``, ``refs``).
    shard : the shard's id, or None where the problem is not one shard's.
    what : a sentence.
    """

    feature: str
    shard: str | None
    what: str


def verify(cache: Cache) -> list[Problem]:
    """Check all features, datasets, build records and references, and return all problems found.

    Reads every byte of the shards: checksums, sizes, shapes and types of all, NaN and Inf of the float features.
    """
    problems: list[Problem] = []
    for folder in _feature_folders(cache):
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
        "garbage": [path.relative_to(cache.root).as_posix() for path in garbage(cache)],
        "shards": len(sizes),
        "bytes": sum(sizes),
    }


def garbage(cache: Cache) -> list[Path]:
    """Return what no reader will ever look at: data without a marker and temporary files of killed writers."""
    found = list(cache.root.glob(f"{TEMPORARY_PREFIX}*"))
    for place in ("builds", "refs", "datasets/*", "features/*", "features/*/shards"):
        found += cache.root.glob(f"{place}/{TEMPORARY_PREFIX}*")
    for folder in _feature_folders(cache):
        named = _named_data(folder / "shards")
        found += [
            path
            for path in (folder / "shards").glob("*-*.*")
            if path.name not in named and not path.name.startswith(TEMPORARY_PREFIX)
        ]
    return sorted(found)


def _marked_bytes(folder: Path) -> Iterator[int]:
    """Yield the bytes of each shard whose marker can be read."""
    for path in sorted((folder / "shards").glob("*.json")):
        with contextlib.suppress(IntegrityError):
            yield read_marker(path).bytes


def _feature_folders(cache: Cache) -> list[Path]:
    return sorted(path for path in (cache.root / "features").glob("*") if path.is_dir())


def _named_data(shards: Path) -> set[str]:
    """Return the names of data that a marker holds; what belongs to a damaged marker's shard counts as held."""
    named = set()
    for path in shards.glob("*.json"):
        try:
            named.add(Marker.model_validate_json(path.read_bytes()).data)
        except (ValueError, OSError):
            named.update(data.name for data in shards.glob(f"{path.stem}-*"))
    return named


def _verify_feature(folder: Path) -> Iterator[Problem]:
    if not (folder / "spec.json").exists() and not any((folder / "shards").glob("*.json")):
        return  # a builder was killed before it wrote the spec
    try:
        store = FeatureStore(folder)
    except IntegrityError as error:
        yield Problem(folder.name, None, str(error))
        return
    for shard in store.marker_ids():
        for what in _shard_problems(store, shard):
            yield Problem(folder.name, shard, what)


def _shard_problems(store: FeatureStore, shard: str) -> Iterator[str]:
    try:
        marker = store.marker(shard)
        path = store.shards / marker.data
        if shard_id_of(store.fingerprint, marker.planned) != shard:
            yield f"{shard}.json: its keys are not those of this shard."
        reader = store.open_shard(marker)
        size, sha256 = checksum(path)
        if (size, sha256) != (marker.bytes, marker.sha256):
            yield f"{path}: the checksum is {sha256[:12]}…, the marker says {marker.sha256[:12]}…: the data is damaged."
            return
        if marker.dtype != "uint8" and marker.rows:
            step = max(1, _BLOCK_BYTES * marker.rows // marker.decoded_bytes)
            bad = 0
            for start in range(0, marker.rows, step):
                block = reader.read(start, min(start + step, marker.rows), None)
                bad += int((~np.isfinite(block)).reshape(len(block), -1).any(axis=1).sum())
            if bad:
                yield f"{path}: {bad} of {marker.rows} rows hold NaN or Inf."
    except (IntegrityError, OSError) as error:
        yield str(error)


def _verify_dataset(cache: Cache, name: str) -> Iterator[Problem]:
    store = cache.datasets()
    where = f"datasets/{name}"
    try:
        store.read(name)
    except UserError as error:
        yield Problem(where, None, str(error))
    for revision in store.revisions(name):
        try:
            store.rejects(name, revision)
            if revision_of(store.read(name, revision)) != revision:
                yield Problem(where, None, f"{where}/{revision}.parquet: its rows are not those of this revision.")
        except UserError as error:
            yield Problem(where, None, str(error))


def _verify_builds(cache: Cache) -> Iterator[Problem]:
    builds = cache.builds()
    for build in builds.ids():
        where = f"builds/{build}"
        try:
            record = builds.read(build)
            if record.revision not in cache.datasets().revisions(record.dataset):
                yield Problem(where, None, f"{where}: dataset {record.dataset} has no revision {record.revision}.")
        except UserError as error:
            yield Problem(where, None, str(error))
            continue
        for name, feature in record.features.items():
            shards = cache.root / "features" / feature.folder / "shards"
            missing = [shard for shard in feature.shards if not (shards / f"{shard}.json").exists()]
            if missing:
                what = f"{where}: {len(missing)} of {len(feature.shards)} shards of {name} are missing. Build it again."
                yield Problem(feature.folder, missing[0], what)
    try:
        for ref in builds.refs():
            if ref.build not in builds.ids():
                yield Problem("refs", None, f"refs/{ref.run}.json: names the build {ref.build}, which is missing.")
    except UserError as error:
        yield Problem("refs", None, str(error))
