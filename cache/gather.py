"""Read rows by key or by position, in the caller's order, with contiguous reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..storage import AnyPath
from .local_copy.reader import LocalCopy
from .shards.format import Rows
from .shards.marker import check_hint
from .store import FeatureStore

_Integers = NDArray[np.integer[Any]]

MAX_GAP = 8
"""Rows between two wanted ones that are read and dropped rather than starting another read."""


def gather(store: FeatureStore, keys: Sequence[str]) -> Rows:
    """Return the rows of samples.

    Parameters
    ----------
    store
        The feature.
    keys
        One or more sample keys.

    Returns
    -------
    ndarray
        (len(keys), *shape), in the order of the keys.

    Raises
    ------
    IntegrityError
        If the feature lacks a key, or a shard is damaged.
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
    shard: _Integers,
    row: _Integers,
    view: int | _Integers | None = None,
    *,
    max_gap: int = MAX_GAP,
    out: Rows | None = None,
) -> Rows:
    """Return rows of a feature by their positions.

    Parameters
    ----------
    store
        The feature.
    shards
        Shard ids.
    shard
        (N,) integers, N > 0: for each wanted row, its shard's index in ``shards``.
    row
        (N,) integers: its row in that shard.
    view
        One view for all rows, (N,) integers for one view each, or None for whole rows.
    max_gap
        Rows between two wanted ones that may be read and dropped. With 0, rows that are not adjacent in the result
        are read separately too, which saves copying large rows.
    out
        A contiguous array to fill.

    Returns
    -------
    ndarray
        (N, *row shape), without the axis of views if views are asked for.

    Raises
    ------
    IntegrityError
        If a shard is damaged, or shards differ in the shape or dtype of their rows.
    """
    views = np.broadcast_to(-1 if view is None else view, shard.shape)
    order = np.lexsort((row, shard, views))
    breaks = (np.diff(views[order]) != 0) | (np.diff(shard[order]) != 0) | (np.diff(row[order]) > max_gap + 1)
    if max_gap == 0:
        breaks |= np.diff(order) != 1
    for run in np.split(order, np.flatnonzero(breaks) + 1):
        start, stop = int(row[run[0]]), int(row[run[-1]]) + 1
        target_rows = slice(int(run[0]), int(run[0]) + len(run))
        asked = shards[shard[run[0]]], start, stop, None if view is None else int(views[run[0]])
        if out is not None and len(run) == stop - start and (np.diff(run) == 1).all():
            store.read(*asked, out=out[target_rows])
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


@functools.lru_cache(maxsize=32)
def open_store(folder: AnyPath, local_copy: LocalCopy | None = None) -> FeatureStore:
    """Return an existing feature, opened once in each process that reads it, with its index.

    With the index, the store notices a shard that holds other keys than its index says.

    Parameters
    ----------
    folder
        The feature's folder.
    local_copy
        A local copy through which shards are read.
    """
    store = FeatureStore(folder, local_copy=local_copy)
    store.index()
    return store
