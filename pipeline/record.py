"""The last step of a build or an import: write the dataset's revision and the build record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..cache.maintenance.trash import ensure_shards
from ..cache.records.audit import HeaderAudit
from ..cache.records.builds import BuildRecord, Derived
from ..cache.records.sources import SourceRecords
from ..cache.store import Cache, FeatureStore
from .planning.plan import Samples
from .scan.conflicts import Reject
from .scan.rows import RowTable, ScannedRow

VERSIONS = ("torch", "torchvision", "numpy", "pillow", "zarr", "numcodecs")


def write_record(
    cache: Cache,
    dataset: str,
    rows: Iterable[ScannedRow],
    set_aside: Sequence[Reject],
    wanted: Mapping[str, frozenset[str]],
    stores: Mapping[str, FeatureStore],
    *,
    audit: Callable[[], HeaderAudit | None],
    sources: SourceRecords | None = None,
    origin: Derived | None = None,
    moves_head: bool = True,
) -> BuildRecord:
    """Write the dataset's revision and the build record.

    The head moves last, so that every reader of the newest revision finds its build record.

    Parameters
    ----------
    cache
        Cache to write to.
    dataset
        Name of the dataset.
    rows
        Usable rows of the revision.
    set_aside
        Rejected files and leaks, with their reasons.
    wanted
        Feature -> splits.
    stores
        Feature -> store.
    audit
        Called if the revision has no audit yet; may return None.
    sources
        Accounts of the sources; kept if the revision has none yet.
    origin
        Origin of a derived dataset.
    moves_head
        Make this revision the newest. False if it was read from the cache.

    Returns
    -------
    BuildRecord
        The record as written.
    """
    datasets = cache.datasets()
    table = RowTable.of(rows)
    revision = datasets.add(dataset, table.tables, (reject.as_json() for reject in set_aside))
    if datasets.audit(dataset, revision) is None and (found := audit()) is not None:
        datasets.add_audit(dataset, revision, found)
    if sources is not None:
        datasets.add_sources(dataset, revision, sources)
    samples = Samples.of_rows(table)
    built = {name: stores[name].built(samples.keys_within(splits), splits) for name, splits in wanted.items()}
    for name, feature in built.items():
        ensure_shards(stores[name], feature.shards)
    record = BuildRecord.new(dataset, revision, built, versions(), origin)
    cache.builds().write(record)
    if moves_head:
        datasets.move_head(dataset, revision)
    for name, feature in built.items():  # gc may have been killed between taking a marker away and reading the head
        ensure_shards(stores[name], feature.shards)
    return record


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of this package and of the installed libraries that influence values."""
    found = {"distil-cache": __version__}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):  # this module loads without torch
            found[name] = version(name)
    return found
