"""Rows of arbitrary keys or places, in the order that the caller asks for, by contiguous reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from .formats import Rows
from .store import FeatureStore

Numbers = NDArray[np.integer[Any]]

MAX_GAP = 8
"""Rows nobody asked for that are read over rather than starting another read."""


def gather(store: FeatureStore, keys: Sequence[str]) -> Rows:
    """Return the rows of one or more ``keys`` as one array (len(keys), *shape).

    Raises IntegrityError if the feature lacks a key or a shard is damaged.
    """
    shards, rows = store.index().locate(keys)
    absent = [key for key, shard in zip(keys, shards, strict=True) if shard < 0]
    if absent:
        raise IntegrityError(f"{store.folder}: has no row for {len(absent)} of {len(keys)} keys (first: {absent[0]}).")
    return read_rows(store, shards, rows)


def read_rows(store: FeatureStore, shard: Numbers, row: Numbers, view: int | None = None) -> Rows:
    """Rows of a feature, in the order asked, by contiguous reads.

    shard : (N,) positions in the index' list of shards; row : (N,) rows in those shards; N > 0.
    Returns (N, *row shape), without the axis of views if one ``view`` is asked.
    """
    shards = store.index().shards
    order = np.lexsort((row, shard))
    breaks = (np.diff(shard[order]) != 0) | (np.diff(row[order]) > MAX_GAP + 1)
    found: Rows | None = None
    for run in np.split(order, np.flatnonzero(breaks) + 1):
        start, stop = int(row[run[0]]), int(row[run[-1]]) + 1
        block = store.read(shards[shard[run[0]]], start, stop, view)
        if found is None:
            found = np.empty((len(order), *block.shape[1:]), block.dtype)
        found[run] = block[row[run] - start]
    if found is None:
        raise ValueError("no rows were asked for")
    return found
