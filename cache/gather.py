"""Rows of arbitrary keys, in the order that the caller asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import IntegrityError
from .formats import Rows
from .store import FeatureStore


def gather(store: FeatureStore, keys: Sequence[str]) -> Rows:
    """Return the rows of ``keys`` as one array (len(keys), *shape).

    One contiguous read a shard, from the first wanted row to the last: meant for keys that lie close together, as
    those of one task do. Raises IntegrityError if the feature lacks a key or a shard is damaged.
    """
    shard_numbers, rows = store.index().locate(keys)
    if len(keys) == 0 or shard_numbers.min() < 0:
        absent = [key for key, number in zip(keys, shard_numbers, strict=True) if number < 0]
        raise IntegrityError(f"{store.folder}: has no row for {absent[:1] or 'an empty list of keys'}.")
    result: Rows | None = None
    for number in np.unique(shard_numbers):
        places = np.flatnonzero(shard_numbers == number)
        start, stop = int(rows[places].min()), int(rows[places].max()) + 1
        block = store.read(store.index().shards[number], start, stop)
        if result is None:
            result = np.empty((len(keys), *block.shape[1:]), block.dtype)
        result[places] = block[rows[places] - start]
    assert result is not None
    return result
