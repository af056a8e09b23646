"""What must stay: the builds that somebody needs, their datasets' revisions, and the shards that hold their rows.

Needed are the builds that runs refer to and those of the newest revisions of each dataset. A build that was just
recorded, and whose dataset's head has not moved yet (its builder may have been killed between the two), counts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import UserError
from ...storage import map_ordered, path_exists
from ..records.builds import BuildRecord, BuildStore, BuiltFeature
from ..records.datasets import DatasetStore
from ..store import Cache, FeatureStore
from .trash import restore_shards


@dataclass(frozen=True)
class Roots:
    """What is needed and why.

    records : all build records, by id. builds : id -> why it is needed. absent : builds that runs refer to and that are
    not there, id -> run. history : dataset -> revisions that had been its head, the newest first, when all this was read.
    revisions : (dataset, revision) that are needed.
    """

    records: Mapping[str, BuildRecord]
    builds: Mapping[str, str]
    absent: Mapping[str, str]
    history: Mapping[str, Sequence[str]]
    revisions: frozenset[tuple[str, str]]

    def named(self, folder: str, *, needed: bool) -> frozenset[str]:
        """Return the shards of a feature folder that the needed builds name, or that any build names."""
        records = [self.records[build] for build in (self.builds if needed else self.records)]
        return frozenset(
            shard
            for record in records
            for feature in record.features.values()
            if feature.folder == folder
            for shard in feature.shards
        )


def find_roots(cache: Cache, keep_revisions: int, young: frozenset[str] = frozenset()) -> Roots:
    """Read all references, heads and build records and decide what is needed.

    keep_revisions : how many revisions of each dataset count as new. young : builds recorded within the grace period.
    Raises IntegrityError if any of them cannot be read: then nobody knows what is needed.
    """
    datasets = cache.datasets()
    records = {record.id: record for record in _records(cache.builds())}
    history = {name: datasets.history(name) for name in datasets.names()}
    newest = {name: past[:keep_revisions] for name, past in history.items()}
    why: dict[str, str] = {}
    for build, record in records.items():
        if record.revision in newest.get(record.dataset, ()):
            why[build] = f"newest revision of {record.dataset}"
        elif build in young and record.revision not in history.get(record.dataset, ()):
            why[build] = "just recorded"
    absent: dict[str, str] = {}
    for ref in cache.builds().refs():
        (why if ref.build in records else absent)[ref.build] = f"run {ref.run}"
    revisions = {(name, revision) for name, past in newest.items() for revision in past}
    revisions |= {(records[build].dataset, records[build].revision) for build in why}
    return Roots(records, why, absent, history, frozenset(revisions))


def _records(builds: BuildStore) -> Iterator[BuildRecord]:
    """Yield all build records; one that another ``gc`` removes meanwhile is passed over."""
    for build in builds.ids():
        record = _record(builds, build)
        if record is not None:
            yield record


def _record(builds: BuildStore, build: str) -> BuildRecord | None:
    for looks_left in (2, 1, 0):
        try:
            return builds.read(build)
        except UserError:
            if not path_exists(builds.folder / f"{build}.json"):
                break
            if not looks_left:  # it is damaged, and was not only away until another gc had put it back
                raise
    return None


@dataclass(frozen=True)
class MarkerSummary:
    """A marker without its keys, which are most of it."""

    shard: str
    data: str
    rows: int
    bytes: int
    merged: tuple[str, ...]


def read_marker_summaries(store: FeatureStore) -> dict[str, MarkerSummary]:
    """Return the markers of a feature in brief, by shard; IntegrityError if one is damaged.

    One that another process removes meanwhile is passed over.
    """
    markers = store.read_markers(store.marker_ids())
    return {one.shard: MarkerSummary(one.shard, one.data, one.rows, one.bytes, one.merged) for one in markers}


def replacements(store: FeatureStore, briefs: Mapping[str, MarkerSummary]) -> dict[str, str]:
    """Return, for each shard that was merged into others, the one that holds its rows now: the largest, by id if equal.

    Names of shards that are gone are among the results. A merged shard is believed only if its marker really names all
    rows of a shard that is still there, and if it was not merged into another itself.
    """
    merged_away = {name for brief in briefs.values() for name in brief.merged}
    found: dict[str, str] = {}
    for brief in sorted(briefs.values(), key=lambda one: (-one.rows, one.shard)):
        if brief.shard not in merged_away:
            open_names = [name for name in brief.merged if name not in found]
            present = [name for name in open_names if name in briefs]
            refuted = set(present) - _covered(store, brief.shard, present)
            found.update((name, brief.shard) for name in open_names if name not in refuted)
    return found


def needed_shards(
    cache: Cache, store: FeatureStore, briefs: Mapping[str, MarkerSummary], roots: Roots, replaced: Mapping[str, str]
) -> set[str]:
    """Return the shards of a feature that hold the rows of needed builds.

    replaced : what :func:`replacements` found. A shard that is gone stands for the one that it was merged into. Where it
    is gone without that (it was damaged and made again in other shards), the rows are looked up by their keys.
    """
    needed: set[str] = set()
    for build in roots.builds:
        record = roots.records[build]
        for feature in record.features.values():
            if feature.folder == store.folder.name:
                here = {replaced.get(shard, shard) for shard in feature.shards}
                needed |= here & briefs.keys()
                if here - briefs.keys():
                    needed |= _shards_of_rows(store, wanted_keys(cache.datasets(), record, feature)) & briefs.keys()
    return needed


def wanted_keys(datasets: DatasetStore, record: BuildRecord, feature: BuiltFeature) -> list[str]:
    """Return the distinct keys of a build's revision in the splits for which a feature was built; none if it is gone."""
    if record.revision not in datasets.revisions(record.dataset):
        return []
    table = datasets.read(record.dataset, record.revision)
    pairs = zip(table.column("key").to_pylist(), table.column("split").to_pylist(), strict=True)
    return list(dict.fromkeys(key for key, split in pairs if split in feature.splits))


def restore_named(cache: Cache, store: FeatureStore, records: Iterable[BuildRecord]) -> list[str]:
    """Put back the removed shards of a feature that hold what these builds name, and return which are back.

    As :func:`.trash.restore_shards`. IntegrityError if a marker, or the table of a build whose shards are gone, is damaged.
    """
    uses = [
        (record, feature)
        for record in records
        for feature in record.features.values()
        if feature.folder == store.folder.name
    ]
    wanted = {shard for _, feature in uses for shard in feature.shards}
    return restore_shards(store, wanted, lambda: (key for use in uses for key in wanted_keys(cache.datasets(), *use)))


def _shards_of_rows(store: FeatureStore, keys: Iterable[str]) -> set[str]:
    index = store.index(refresh=True)
    numbers, _ = index.locate(list(keys))
    return {index.shards[number] for number in set(numbers.tolist()) if number >= 0}


def _covered(store: FeatureStore, shard: str, others: Sequence[str]) -> set[str]:
    """Return those of the other shards of which a shard holds, or rejects, all that they hold or reject."""
    if not others:
        return set()
    large = store.marker(shard)
    known = {*large.keys, *large.rejected}
    smaller = map_ordered(store.marker, others, store.folder)
    return {small.shard for small in smaller if known.issuperset((*small.keys, *small.rejected))}
