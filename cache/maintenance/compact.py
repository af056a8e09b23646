"""Merge small shards: many small increments become as few shards as one large build would have written.

Features from which others derive (``image``) come first. Their small shards are packed by the datasets and splits that
use them, and the merged rows are sorted by key. The derived features follow: small shards whose keys are all in one
shard of the image become one shard in its row order, so that blocks of rows line up across features.

A merged shard is committed like any other and names what it replaces; nothing is deleted. So an interruption loses
nothing, two processes that do the same commit the same shard, and builds that know only the small shards keep using
them until ``gc`` removes them.
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
from ...storage.atomic import OversizeError
from ..lease import lease
from ..records.datasets import DatasetStore
from ..shards.format import Rows, checksum
from ..shards.marker import Marker, planned_keys
from ..shards.zarr import choice_of
from ..spec import fingerprint_of
from ..store import Cache, FeatureStore


@dataclass
class CompactionResult:
    """What was done in one feature.

    Attributes
    ----------
    shards
        Small shards that were merged.
    into
        Shards that they were merged into.
    rows, bytes
        Rows and stored bytes of these.
    damaged
        A sentence for each shard that was skipped because its data are not what its marker says.
    """

    shards: int = 0
    into: int = 0
    rows: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def compact(cache: Cache, rows: int = COMPACT_ROWS, progress: Progress | None = None) -> dict[str, Any]:
    """Merge small shards.

    Every shard is checked against its checksum before it is merged, and every merged shard is read back and compared.

    Parameters
    ----------
    cache
        The cache.
    rows
        Most rows of a merged shard. Shards with fewer than half as many are merged.
    progress
        Receives a stage for each feature's folder, in rows.

    Returns
    -------
    dict
        ``rows``, and ``features``: for each folder the fields of its :class:`CompactionResult`.

    Raises
    ------
    IntegrityError
        If markers, heads or specs of a feature are damaged, before anything is written in that feature.
    UserError
        If a shard cannot be written.
    """
    progress = progress or Silent()
    stores = cache.features()
    with lease(cache.root, "compact", [store.folder.name for store in stores]):
        done: dict[str, CompactionResult] = {}
        for store, leader in _in_order(stores):
            groups = list(_merge_groups(cache, store, leader, rows))
            progress.start(store.folder.name, sum(group.rows for group in groups))
            merged = done.setdefault(store.folder.name, CompactionResult())
            for group in groups:
                _merge(store, group, merged)
                progress.advance(store.folder.name, group.rows)
            if merged.into:
                try:
                    store.compact_index()
                except OversizeError as error:  # it only makes opening fast
                    progress.say(f"Warning: {error}")
    return {"rows": rows, "features": {name: vars(merged) for name, merged in done.items()}}


@dataclass(frozen=True)
class MergeGroup:
    """Shards that become one.

    Attributes
    ----------
    shards
        Their markers, sorted by id.
    keys
        The rows of the merged shard, in order.
    rejected
        Reason for each rejected key of the merged shard.
    """

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
    """Yield the features that lead, then those that follow, each with the feature whose row order it follows."""
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


def _merge_groups(cache: Cache, store: FeatureStore, leader: FeatureStore | None, rows: int) -> Iterator[MergeGroup]:
    markers = store.read_markers(store.index(refresh=True).shards)
    small = [marker for marker in markers if 0 < marker.rows < rows / 2]
    if leader is None:
        for group in _by_use(cache, small):
            for shards in _filled(group, rows):
                yield _merge_group(shards, sorted({key for marker in shards for key in marker.keys}))
    else:
        for number, group in _by_leading_shard(small, leader):
            wanted = {key for marker in group for key in marker.keys}
            order = leader.marker(leader.index().shards[number]).keys
            if len(group) > 1:
                yield _merge_group(group, [key for key in order if key in wanted])


def _by_use(cache: Cache, small: Sequence[Marker]) -> list[list[Marker]]:
    """Group shards by the datasets and splits of the newest revisions that use them; unused ones are left out."""
    uses: dict[str, set[tuple[str, str]]] = {marker.shard: set() for marker in small}
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
    groups: dict[tuple[tuple[str, str], ...], list[Marker]] = {}
    for marker in small:
        groups.setdefault(tuple(sorted(uses[marker.shard])), []).append(marker)
    return [groups[use] for use in sorted(groups) if use]


def _newest(datasets: DatasetStore, name: str) -> pa.Table:
    """Read a dataset's newest revision; a build may move the head meanwhile, and ``gc`` remove the old one."""
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


def _filled(markers: Iterable[Marker], rows: int) -> Iterator[list[Marker]]:
    """Divide shards, in the order of their ids, into lists of at most ``rows`` rows; single shards are left out."""
    group: list[Marker] = []
    for marker in sorted(markers, key=lambda marker: marker.shard):
        if sum(member.rows for member in group) + marker.rows > rows:
            if len(group) > 1:
                yield group
            group = []
        group.append(marker)
    if len(group) > 1:
        yield group


def _merge_group(shards: Sequence[Marker], keys: Sequence[str]) -> MergeGroup:
    stored = set(keys)
    rejected = {key: why for marker in shards for key, why in marker.rejected.items() if key not in stored}
    return MergeGroup(tuple(sorted(shards, key=lambda marker: marker.shard)), tuple(keys), rejected)


def _merge(store: FeatureStore, group: MergeGroup, merged: CompactionResult) -> None:
    """Commit one merged shard, unless one of its parts is damaged or the merged shard exists already."""
    first = group.shards[0]
    writer = FeatureStore(store.folder, first.format, choice_of(first.codec))
    if writer.has(writer.shard_id(group.planned)):
        return
    checks = map_ordered(lambda marker: list(_damage(store, marker)), group.shards, store.folder)
    damaged = [sentence for sentences in checks for sentence in sentences]
    if damaged:
        merged.damaged += damaged
        return
    rows = _rows(store, group)
    replaced = dict.fromkeys(name for marker in group.shards for name in (marker.shard, *marker.merged))
    marker = writer.commit(group.planned, rows, keys=group.keys, rejected=group.rejected, merged=tuple(replaced))
    if not np.array_equal(writer.read(marker.shard), rows):
        raise IntegrityError(f"{store.folder}: merged shard {marker.shard} does not read back as it was written.")
    merged.shards += len(group.shards)
    merged.into += 1
    merged.rows += group.rows
    merged.bytes += marker.bytes


def _damage(store: FeatureStore, marker: Marker) -> Iterator[str]:
    try:
        if checksum(store.shards / marker.data) != (marker.bytes, marker.sha256):
            yield f"{store.folder.name}: shard {marker.shard} does not have the size and checksum of its marker"
    except (IntegrityError, OSError) as error:
        yield f"{store.folder.name}: shard {marker.shard} cannot be read ({error})"


def _rows(store: FeatureStore, group: MergeGroup) -> Rows:
    """Read the rows of a group in its order; of a key in several shards, the row of the one with the smallest id."""
    first = group.shards[0]
    rows = np.empty((group.rows, *first.shape), first.dtype)
    position = {key: number for number, key in enumerate(group.keys)}
    for marker in group.shards:
        if (marker.shape, marker.dtype) != (first.shape, first.dtype):
            raise IntegrityError(
                f"{store.folder}: shards {first.shard} and {marker.shard} hold rows of different shapes or dtypes."
            )
    order = group.shards[::-1]
    read = map_ordered(lambda marker: store.open_shard(marker).read(0, marker.rows, None), order, store.folder)
    for marker, found in zip(order, read, strict=True):
        rows[[position[key] for key in marker.keys]] = found
    return rows
