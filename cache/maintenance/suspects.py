"""Take rows out of a dataset's newest revision, for images that today's rules refuse or decode to other pixels.

Nothing is changed or deleted: the dataset gets a revision without the rows, with the reasons among its rejects, and
each build of the old revision a record for the new one. The rows stay in their shards for the old revision and its
runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ..lease import lease
from ..records.builds import BuildRecord
from ..shards.keys import keys_of_column
from ..store import Cache
from .trash import ensure_shards


def remove_rows(cache: Cache, dataset: str, reasons: Mapping[str, str]) -> str:
    """Write a revision without some images and make it the newest.

    Parameters
    ----------
    cache
        The cache.
    dataset
        Name of the dataset.
    reasons
        Key -> ``reason: detail``, for each image to leave out.

    Returns
    -------
    str
        The newest revision; the one before if it has none of the images.

    Raises
    ------
    UserError
        If no row would be left.
    """
    datasets = cache.datasets()
    records = cache.builds().find(dataset)
    folders = {feature.folder for record in records for feature in record.features.values()}
    with lease(cache.root, "verify", folders, dataset):
        before = datasets.head(dataset)
        table = datasets.read(dataset, before)
        named = pc.is_in(table.column("key"), pa.array(list(reasons), pa.string()))
        rest, removed = table.filter(pc.invert(named)), table.filter(named)
        if not rest.num_rows:
            raise UserError(f"{dataset}: every image would be set aside, so nothing was. Build it from other files.")
        rejects = chain(datasets.rejects(dataset, before), (_reject(row, reasons) for row in removed.to_pylist()))
        revision = datasets.add(dataset, rest, rejects)
        old = [record for record in records if record.revision == before and revision != before]
        new = [_record(cache, record, revision, rest) for record in old]
        for record in new:
            cache.builds().write(record)
        datasets.move_head(dataset, revision)
        for feature in (feature for record in new for feature in record.features.values()):
            ensure_shards(cache.open_feature(feature.folder), feature.shards)  # as a build does
    return revision


def _reject(row: Mapping[str, str], reasons: Mapping[str, str]) -> dict[str, object]:
    reason, _, detail = reasons[row["key"]].partition(": ")
    return {"path": "/".join(part for part in (row["source"], row["path"]) if part), "reason": reason, "detail": detail}


def _record(cache: Cache, record: BuildRecord, revision: str, table: pa.Table) -> BuildRecord:
    """Return the record of the same features for another revision."""
    built = {}
    for name, feature in record.features.items():
        store = cache.open_feature(feature.folder)
        inside = table.filter(pc.is_in(table.column("split"), pa.array(feature.splits, pa.string())))
        built[name] = store.built([keys_of_column(inside.column("key"))], feature.splits)
        ensure_shards(store, built[name].shards)
    return BuildRecord.new(record.dataset, revision, built, record.versions, record.origin)
