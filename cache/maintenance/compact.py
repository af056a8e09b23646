"""Merging small shards: what many small increments left becomes as few shards as one large build would have made.

Features that others derive from (``image``) come first: their small shards are packed by the datasets and splits that
use them, and the merged rows are sorted by key. The others follow: small shards that lie within one shard of the
picture they derive from become one, in its row order, so that blocks of rows line up across features.

A merged shard is committed like any other and names what it replaces; nothing is taken away here. So an interruption
loses nothing, two processes that do the same commit the same shard, and builds that know only the small shards go on with
them until ``gc`` removes those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...choices import COMPACT_ROWS
from ...errors import IntegrityError, UserError
from ...progress import Progress, Silent
from ...storage import map_ordered
from ..lease import lease
from ..records.datasets import DatasetStore
from ..shards.format import Rows, checksum
from ..shards.marker import Marker, planned_keys
from ..spec import fingerprint_of
from ..store import Cache, FeatureStore

Use = tuple[tuple[str, str], ...]
"""The (dataset, split) pairs that use something, sorted."""


@dataclass
class CompactionResult:
    """What was done in one feature: small shards merged into how many, their rows and new bytes, and what was left.

    damaged : sentences about shards that were left as they are because their data are not what their markers say.
    """

    shards: int = 0
    into: int = 0
    rows: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def compact(cache: Cache, rows: int = COMPACT_ROWS, progress: Progress | None = None) -> dict[str, Any]:
    """Merge the shards below half of ``rows`` rows into shards of up to ``rows`` rows, and return what was done.

    progress : gets a stage for each feature's folder, in rows.
    Returns ``features`` (folder -> what :class:`CompactionResult` says) and ``rows``. Every shard is checked against its checksum
    before it is merged, and every merged one is read back and compared.
    Raises IntegrityError for markers, heads or specs that cannot be read, before anything is written in their feature.
    """
    progress = progress or Silent()
    stores = cache.features()
    with lease(cache.root, "compact", [store.folder.name for store in stores]):
        done: dict[str, CompactionResult] = {}
        for store, leader in _in_order(stores):
            packs = list(_packs(cache, store, leader, rows))
            progress.start(store.folder.name, sum(pack.rows for pack in packs))
            merged = done.setdefault(store.folder.name, CompactionResult())
            for pack in packs:
                _merge(store, pack, merged)
                progress.advance(store.folder.name, pack.rows)
            if merged.into:
                store.compact_index()
    return {"rows": rows, "features": {name: vars(merged) for name, merged in done.items()}}


@dataclass(frozen=True)
class MergeGroup:
    """Shards that become one. keys : the rows of the merged shard in order. rejected : as in a marker."""

    shards: tuple[Marker, ...]
    keys: tuple[str, ...]
    rejected: Mapping[str, str]

    @property
    def rows(self) -> int:
        """Rows of the merged shard."""
        return len(self.keys)

    @property
    def planned(self) -> list[str]:
        """The keys that name the merged shard."""
        return planned_keys(self.keys, self.rejected)


def _in_order(stores: Sequence[FeatureStore]) -> Iterator[tuple[FeatureStore, FeatureStore | None]]:
    """Yield the features that lead, then those that follow, each with the one whose rows it follows."""
    by_fingerprint = {store.fingerprint: store for store in stores}
    leaders = [(store, _leader(store.spec, by_fingerprint)) for store in stores]
    yield from sorted(leaders, key=lambda pair: pair[1] is not None)


def _leader(spec: Mapping[str, object], stores: Mapping[str, FeatureStore]) -> FeatureStore | None:
    """Return the feature at the end of the chain from which a spec derives, if the cache has it."""
    for value in spec.values():
        if isinstance(value, dict) and "feature" in value:
            return _leader(value, stores) or stores.get(fingerprint_of(value))
        if isinstance(value, dict):
            deeper = _leader(value, stores)
            if deeper is not None:
                return deeper
    return None


def _packs(cache: Cache, store: FeatureStore, leader: FeatureStore | None, rows: int) -> Iterator[MergeGroup]:
    markers = store.read_markers(store.index(refresh=True).shards)
    small = [one for one in markers if 0 < one.rows < rows / 2]
    if leader is None:
        for group in _by_use(cache, small):
            for shards in _filled(group, rows):
                yield _pack(shards, sorted({key for one in shards for key in one.keys}))
    else:
        for number, group in _by_leading_shard(small, leader):
            wanted = {key for one in group for key in one.keys}
            order = leader.marker(leader.index().shards[number]).keys
            if len(group) > 1:
                yield _pack(group, [key for key in order if key in wanted])


def _by_use(cache: Cache, small: Sequence[Marker]) -> list[list[Marker]]:
    """Group shards by the datasets and splits of the newest revisions that use them; unused ones are left out."""
    uses: dict[str, set[tuple[str, str]]] = {one.shard: set() for one in small}
    shards_of: dict[str, list[str]] = {}
    for marker in small:
        for key in marker.keys:
            shards_of.setdefault(key, []).append(marker.shard)
    datasets = cache.datasets()
    for name in datasets.names() if small else ():
        table = _newest(datasets, name)
        table = table.filter(pc.is_in(table.column("key"), pa.array(list(shards_of), pa.string())))
        for key, split in zip(table.column("key").to_pylist(), table.column("split").to_pylist(), strict=True):
            for shard in shards_of[key]:
                uses[shard].add((name, split))
    groups: dict[Use, list[Marker]] = {}
    for marker in small:
        groups.setdefault(tuple(sorted(uses[marker.shard])), []).append(marker)
    return [groups[use] for use in sorted(groups) if use]


def _newest(datasets: DatasetStore, name: str) -> pa.Table:
    """Read a dataset's newest revision, whichever that is: a build may move the head, and gc remove the old one."""
    while True:
        revision = datasets.head(name)
        try:
            return datasets.read(name, revision)
        except UserError:
            if datasets.head(name) == revision:
                raise


def _by_leading_shard(small: Iterable[Marker], leader: FeatureStore) -> list[tuple[int, list[Marker]]]:
    """Group shards by the one shard of the leading feature that holds all their keys; others are left out."""
    groups: dict[int, list[Marker]] = {}
    index = leader.index(refresh=True)
    for marker in small:
        numbers = set(index.locate(marker.keys)[0].tolist())
        if len(numbers) == 1 and min(numbers) >= 0:
            groups.setdefault(numbers.pop(), []).append(marker)
    return sorted(groups.items())


def _filled(group: Iterable[Marker], rows: int) -> Iterator[list[Marker]]:
    """Divide shards, in the order of their ids, into lists of at most ``rows`` rows; lists of one are left out."""
    pack: list[Marker] = []
    for marker in sorted(group, key=lambda one: one.shard):
        if sum(one.rows for one in pack) + marker.rows > rows:
            if len(pack) > 1:
                yield pack
            pack = []
        pack.append(marker)
    if len(pack) > 1:
        yield pack


def _pack(shards: Sequence[Marker], keys: Sequence[str]) -> MergeGroup:
    stored = set(keys)
    rejected = {key: why for one in shards for key, why in one.rejected.items() if key not in stored}
    return MergeGroup(tuple(sorted(shards, key=lambda one: one.shard)), tuple(keys), rejected)


def _merge(store: FeatureStore, pack: MergeGroup, merged: CompactionResult) -> None:
    """Commit one merged shard, unless one of its parts is damaged or the shard is there already."""
    writer = FeatureStore(store.folder, pack.shards[0].format)
    if writer.has(writer.shard_id(pack.planned)):
        return
    told = map_ordered(lambda one: list(_damage(store, one)), pack.shards, store.folder)
    damaged = [what for sentences in told for what in sentences]
    if damaged:
        merged.damaged += damaged
        return
    rows = _rows(store, pack)
    replaced = dict.fromkeys(name for one in pack.shards for name in (one.shard, *one.merged))
    marker = writer.commit(pack.planned, rows, keys=pack.keys, rejected=pack.rejected, merged=tuple(replaced))
    if not np.array_equal(writer.read(marker.shard), rows):
        raise IntegrityError(f"{store.folder}: merged shard {marker.shard} does not read back as it was written.")
    merged.shards += len(pack.shards)
    merged.into += 1
    merged.rows += pack.rows
    merged.bytes += marker.bytes


def _damage(store: FeatureStore, marker: Marker) -> Iterator[str]:
    try:
        if checksum(store.shards / marker.data) != (marker.bytes, marker.sha256):
            yield f"{store.folder.name}: shard {marker.shard} is not what its marker says"
    except (IntegrityError, OSError) as error:
        yield f"{store.folder.name}: shard {marker.shard} cannot be read ({error})"


def _rows(store: FeatureStore, pack: MergeGroup) -> Rows:
    """Read the rows of a pack in its order; of a key in several shards, the row of the one with the smallest id."""
    first = pack.shards[0]
    rows = np.empty((pack.rows, *first.shape), first.dtype)
    place = {key: number for number, key in enumerate(pack.keys)}
    for marker in pack.shards:
        if (marker.shape, marker.dtype) != (first.shape, first.dtype):
            raise IntegrityError(
                f"{store.folder}: shards {first.shard} and {marker.shard} hold rows of different kinds."
            )
    order = pack.shards[::-1]
    read = map_ordered(lambda marker: store.open_shard(marker).read(0, marker.rows, None), order, store.folder)
    for marker, found in zip(order, read, strict=True):
        rows[[place[key] for key in marker.keys]] = found
    return rows
