"""Rows of one feature by their places in the cache: picklable, so that other processes can read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..cache.gather import open_store, read_rows
from ..cache.local_copy.reader import LocalCopy
from ..cache.shards.format import Rows
from ..cache.store import FeatureStore
from ..storage import AnyPath

_Integers = NDArray[np.integer[Any]]

READ_OVER_BYTES = 64 * 2**10
"""Unneeded bytes to read between two rows rather than start another read."""


@dataclass(frozen=True)
class RowReader:
    """The places of N rows of a feature.

    Attributes
    ----------
    folder : path
        Folder of the feature.
    local_copy : LocalCopy or None
        Through which shards are read.
    shards : tuple of str
        Ids of shards.
    shard, row : ndarray, shape (N,)
        Index in ``shards``, and row in that shard.
    shape : tuple of int
        Shape of one row.
    dtype : numpy.dtype
    """

    folder: AnyPath
    local_copy: LocalCopy | None
    shards: tuple[str, ...]
    shard: _Integers
    row: _Integers
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, store: FeatureStore, shard: _Integers, row: _Integers) -> Self:
        """Return a reader of rows of the shards in a feature's index, at least one row."""
        shards = tuple(store.index().shards)
        marker = store.marker(shards[int(shard[0])])
        return cls(store.folder, store.local_copy, shards, shard, row, tuple(marker.shape), np.dtype(marker.dtype))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.row)

    def part(self, rows: slice | Sequence[int] | _Integers) -> Self:
        """Return a reader of some of the rows, which names only their shards."""
        numbers, shard = np.unique(self.shard[rows], return_inverse=True)
        return replace(self, shards=tuple(self.shards[number] for number in numbers), shard=shard, row=self.row[rows])

    def read(self) -> Rows:
        """Read all rows, (N, *shape). Raises IntegrityError if a shard is damaged."""
        out = np.empty((len(self), *self.shape), self.dtype)
        if not len(self):
            return out
        gap = READ_OVER_BYTES // max(1, math.prod(self.shape) * self.dtype.itemsize)
        store = open_store(self.folder, self.local_copy)
        return read_rows(store, self.shards, self.shard, self.row, max_gap=gap, out=out)
