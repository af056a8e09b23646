"""Rows of arbitrary keys or places, in the order that the caller asks for, by contiguous reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from .shards.format import Rows
from .shards.marker import check_hint
from .store import FeatureStore

Numbers = NDArray[np.integer[Any]]

MAX_GAP = 8
"""Rows nobody asked for that are read over rather than starting another read."""


def gather(store: FeatureStore, keys: Sequence[str]) -> Rows:
    """Return the rows of one or more ``keys`` as one array (len(keys), *shape).

    Raises IntegrityError if the feature lacks a key or a shard is damaged.
    """
    index = store.index()
    shards, rows = index.locate(keys)
    absent = [key for key, shard in zip(keys, shards, strict=True) if shard < 0]
    if absent:
        raise IntegrityError(f"{store.folder}: has no row for {len(absent)} of {len(keys)} keys (first: {absent[0]}).")
    return read_rows(store, index.shards, shards, rows)


def read_rows(
    store: FeatureStore,
    shards: Sequence[str],
    shard: Numbers,
    row: Numbers,
    view: int | Numbers | None = None,
    *,
    max_gap: int = MAX_GAP,
    out: Rows | None = None,
) -> Rows:
    """Rows of a feature, in the order asked, by contiguous reads.

    shards : ids. shard : (N,) positions in ``shards``; row : (N,) rows in those shards; N > 0. view : one for all rows,
    (N,) one for each, or None for whole rows. max_gap : rows nobody asked for that may be read over; with 0, rows that
    do not follow each other in the answer either are read one by one, which spares a copy of large ones.
    out : a contiguous array to fill. Returns (N, *row shape), without the axis of views if views are asked.
    """
    views = np.broadcast_to(-1 if view is None else view, shard.shape)
    order = np.lexsort((row, shard, views))
    breaks = (np.diff(views[order]) != 0) | (np.diff(shard[order]) != 0) | (np.diff(row[order]) > max_gap + 1)
    if max_gap == 0:
        breaks |= np.diff(order) != 1
    for run in np.split(order, np.flatnonzero(breaks) + 1):
        start, stop = int(row[run[0]]), int(row[run[-1]]) + 1
        place = slice(int(run[0]), int(run[0]) + len(run))
        asked = shards[shard[run[0]]], start, stop, None if view is None else int(views[run[0]])
        if out is not None and len(run) == stop - start and (np.diff(run) == 1).all():
            store.read(*asked, out=out[place])
            continue
        block = store.read(*asked)
        if out is None:
            out = np.empty((len(order), *block.shape[1:]), block.dtype)
        if (block.shape[1:], block.dtype) != (out.shape[1:], out.dtype):
            raise IntegrityError(
                f"{store.folder}: holds rows of different shapes, {block.shape[1:]} in shard {asked[0]} and "
                f"{out.shape[1:]} elsewhere. {check_hint(store.folder)}"
            )
        for target, source in zip(run, row[run] - start, strict=True):
            out[target] = block[source]
    if out is None:
        raise ValueError("no rows were asked for")
    return out
