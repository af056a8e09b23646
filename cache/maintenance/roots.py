"""The roots of garbage collection: needed builds, the revisions of their datasets, and the shards with their rows.

Needed are the builds that runs refer to and those of each dataset's newest revisions. A build that was just recorded
and whose head has not moved yet counts too, since its builder may have been killed in between.
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
    """What is needed, and why.

    Attributes
    ----------
    records
        All build records, by id.
    builds
        Id -> reason, for the builds that are needed.
    absent
        Id -> run, for the builds that runs refer to and that do not exist.
    history
        Dataset -> revisions that had been its head when all this was read, newest first.
    revisions
        (dataset, revision) of each revision that is needed.
    """

    records: Mapping[str, BuildRecord]
    builds: Mapping[str, str]
    absent: Mapping[str, str]
    history: Mapping[str, Sequence[str]]
    revisions: frozenset[tuple[str, str]]

    def named(self, folder: str, *, needed: bool) -> frozenset[str]:
        """Return the shards of a feature folder that builds name.

        Parameters
        ----------
        folder
            The folder's name.
        needed
            Only those of needed builds, instead of all builds.
        """
        records = [self.records[build] for build in (self.builds if needed else self.records)]
        return frozenset(
            shard
            for record in records
            for feature in record.features.values()
            if feature.folder == folder
            for shard in feature.shards
        )


def find_roots(cache: Cache, keep_revisions: int, young: frozenset[str] = frozenset()) -> Roots:
    """Read all references, heads and build records, and decide what is needed.

    Parameters
    ----------
    cache
        The cache.
    keep_revisions
        How many of each dataset's newest revisions are kept.
    young
        Ids of the builds recorded within the grace period.

    Raises
    ------
    IntegrityError
        If any of them is damaged, since it is then not known what is needed.
    UnreachableError
        If any of them cannot be read at the moment.
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
    """Yield all build records, skipping those that another ``gc`` removes meanwhile."""
    for build in builds.ids():
        record = _record(builds, build)
        if record is not None:
            yield record


def _record(builds: BuildStore, build: str) -> BuildRecord | None:
    for attempts_left in (2, 1, 0):
        try:
            return builds.read(build)
        except UserError:
            if not path_exists(builds.folder / f"{build}.json"):
                break
            if not attempts_left:  # damaged, and not just absent until another gc restored it
                raise
    return None


@dataclass(frozen=True)
class MarkerSummary:
    """A marker without its keys, which are most of it; the fields are those of :class:`..shards.marker.Marker`."""

    shard: str
    data: str
    rows: int
    bytes: int
    merged: tuple[str, ...]


def read_marker_summaries(store: FeatureStore) -> dict[str, MarkerSummary]:
    """Return the markers of a feature without their keys, by shard id, skipping those that are removed meanwhile.

    Raises
    ------
    IntegrityError
        If a marker is damaged.
    """
    markers = store.read_markers(store.marker_ids())
    return {m.shard: MarkerSummary(m.shard, m.data, m.rows, m.bytes, m.merged) for m in markers}


def replacements(store: FeatureStore, summaries: Mapping[str, MarkerSummary]) -> dict[str, str]:
    """Return which shard now holds the rows of each shard that was merged.

    That is the largest of several, then the one with the smallest id. A merged shard is trusted only if it was not
    merged itself and its marker names all rows of those replaced shards that still exist.

    Parameters
    ----------
    store
        The feature.
    summaries
        Its markers, from :func:`read_marker_summaries`.

    Returns
    -------
    dict
        Merged shard, which may be gone -> its replacement.
    """
    merged_away = {name for summary in summaries.values() for name in summary.merged}
    found: dict[str, str] = {}
    for summary in sorted(summaries.values(), key=lambda marker: (-marker.rows, marker.shard)):
        if summary.shard not in merged_away:
            open_names = [name for name in summary.merged if name not in found]
            present = [name for name in open_names if name in summaries]
            refuted = set(present) - _covered(store, summary.shard, present)
            found.update((name, summary.shard) for name in open_names if name not in refuted)
    return found


def needed_shards(
    cache: Cache, store: FeatureStore, summaries: Mapping[str, MarkerSummary], roots: Roots, replaced: Mapping[str, str]
) -> set[str]:
    """Return the shards of a feature that hold rows of needed builds.

    A shard that is gone is represented by its replacement. If it has none (it was damaged, and its rows were written to
    other shards), its rows are looked up by key.

    Parameters
    ----------
    cache, store
        The cache, and the feature in it.
    summaries
        The feature's markers, from :func:`read_marker_summaries`.
    roots
        What is needed.
    replaced
        The result of :func:`replacements`.
    """
    needed: set[str] = set()
    for build in roots.builds:
        record = roots.records[build]
        for feature in record.features.values():
            if feature.folder == store.folder.name:
                here = {replaced.get(shard, shard) for shard in feature.shards}
                needed |= here & summaries.keys()
                if here - summaries.keys():
                    needed |= _shards_of_rows(store, wanted_keys(cache.datasets(), record, feature)) & summaries.keys()
    return needed


def wanted_keys(datasets: DatasetStore, record: BuildRecord, feature: BuiltFeature) -> list[str]:
    """Return the distinct keys of a build's revision in the splits of a feature; none if the revision is gone."""
    if record.revision not in datasets.revisions(record.dataset):
        return []
    table = datasets.read(record.dataset, record.revision)
    pairs = zip(table.column("key").to_pylist(), table.column("split").to_pylist(), strict=True)
    return list(dict.fromkeys(key for key, split in pairs if split in feature.splits))


def restore_named(cache: Cache, store: FeatureStore, records: Iterable[BuildRecord]) -> list[str]:
    """Restore the removed shards of a feature that hold what these builds name; see :func:`.trash.restore_shards`.

    Returns
    -------
    list of str
        The shards that are back.

    Raises
    ------
    IntegrityError
        If a marker is damaged, or the table of a build whose shards are gone.
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
    """Return those of the other shards whose keys are all stored or rejected in the given shard."""
    if not others:
        return set()
    large = store.marker(shard)
    known = {*large.keys, *large.rejected}
    smaller = map_ordered(store.marker, others, store.folder)
    return {small.shard for small in smaller if known.issuperset((*small.keys, *small.rejected))}
