"""Batches from the cache: contiguous reads, in an order that follows from (seed, epoch) alone.

The rows of a part are sorted by where they lie and cut into blocks of 64. An epoch shuffles the blocks, joins eight of
them to a pool, and shuffles the rows of the pool; batches are cut from the pools one after the other. So a batch mixes
rows from eight random places of the cache (which itself is sorted by a hash of the pictures), every occurrence comes
exactly once an epoch, and memory holds two pools whatever the size of the dataset.

The flip of a sample is drawn before its features are read, and only the teacher's view that it needs is read: of each
block one half, drawn anew every epoch, is mirrored. Every sample is mirrored with probability 1/2, independently of all
earlier epochs and of all other blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ..cache.builds import BuildRecord
from ..cache.gather import read_rows
from ..cache.store import Cache, FeatureStore
from ..errors import UserError
from .select import column, missing_feature

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BLOCK_ROWS = 64
POOL_BLOCKS = 8


@dataclass(frozen=True)
class Batch:
    """Samples as they lie in the cache.

    rows : (B,) positions in the part's table. label : (B,) float32, 1 for generated. flip : (B,) bool.
    features : name -> (B, 3, S, S) uint8 or float16; ``teacher`` is the view of the flip, (B, C, h, w).
    """

    rows: Numbers
    label: Tensor
    flip: Tensor
    features: dict[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device, in their stored types."""
        features = {name: x.to(device, non_blocking=True) for name, x in self.features.items()}
        return Batch(self.rows, self.label.to(device), self.flip.to(device), features)


class Pool(NamedTuple):
    """Rows that are read together, in the order in which they leave, and which of them are mirrored."""

    rows: Numbers
    flip: Mask


class Part:
    """The rows of one part of a dataset, joined to their features.

    Rows whose picture the build could not decode are left out. ``table`` holds the rest, in the order of the dataset.
    Raises UserError if the build lacks a feature for one of them.
    """

    def __init__(
        self, cache: Cache, build: BuildRecord, table: pa.Table, features: Sequence[str], *, split: str, purpose: str
    ) -> None:
        self.stores = {name: cache.open_feature(build.features[name].folder) for name in features}
        self.table = _decoded(cache, build, table)
        self.label = column(self.table, "label")
        self._place: dict[str, tuple[Numbers, Numbers]] = {}
        keys = column(self.table, "key")
        for name, store in self.stores.items():
            shard, row = store.index().locate(keys)
            lacking = int(np.sum(shard < 0))
            if lacking:
                raise missing_feature(
                    cache, table, build.dataset, purpose, name, lacking, len(keys), split, tuple(features)
                )
            self._place[name] = (shard.astype(np.int64), row.astype(np.int64))
        self._views = _views(self.stores["teacher"]) if "teacher" in self.stores else {}

    def __len__(self) -> int:
        """Number of occurrences."""
        return len(self.label)

    def row_shape(self, feature: str) -> tuple[int, ...]:
        """Shape of one stored row of a feature."""
        store, (shard, _) = self.stores[feature], self._place[feature]
        return tuple(store.marker(store.index().shards[shard[0]]).shape)

    def epoch(self, seed: int, epoch: int, batch_size: int, skip: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch, less the first ``skip``; the last may be smaller."""
        return self._batches(shuffled_pools(self.blocks(), seed, epoch), batch_sizes(len(self), batch_size)[skip:])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All rows once, unmirrored, in the order of storage."""
        return self._batches(plain_pools(self.blocks()), batch_sizes(len(self), batch_size))

    def blocks(self) -> list[Numbers]:
        """Rows in the order of storage of the first feature, cut where a block is full or a shard ends."""
        shard, row = next(iter(self._place.values()))
        order = np.lexsort((row, shard))
        pieces = np.split(order, np.flatnonzero(np.diff(shard[order])) + 1)
        return [piece[i : i + BLOCK_ROWS] for piece in pieces for i in range(0, len(piece), BLOCK_ROWS)]

    def read(self, feature: str, rows: Numbers, view: int | None = None) -> Array:
        """A feature of ``rows``, in their order."""
        shard, row = self._place[feature]
        return read_rows(self.stores[feature], shard[rows], row[rows], view)

    def _load(self, pool: Pool) -> dict[str, Array]:
        found = {name: self.read(name, pool.rows) for name in self.stores if name != "teacher"}
        if "teacher" in self.stores:
            parts = {flip: np.flatnonzero(pool.flip == flip) for flip in (False, True)}
            read = {
                flip: self.read("teacher", pool.rows[where], self._views[flip])
                for flip, where in parts.items()
                if len(where)
            }
            shape, dtype = next((part.shape[1:], part.dtype) for part in read.values())
            found["teacher"] = np.empty((len(pool.rows), *shape), dtype)
            for flip, part in read.items():
                found["teacher"][parts[flip]] = part
        return found

    def _batches(self, pools: list[Pool], sizes: list[int]) -> Iterator[Batch]:
        """Cut the last ``sum(sizes)`` rows of the pools into batches; the next pool is read while this one is used."""
        pools = _without_first(pools, len(self) - sum(sizes))
        waiting: list[Batch] = []
        with ThreadPoolExecutor(max_workers=1) as reader:
            coming = [reader.submit(self._load, pool) for pool in pools[:1]]
            for number, pool in enumerate(pools):
                features = coming.pop().result()
                coming += [reader.submit(self._load, after) for after in pools[number + 1 : number + 2]]
                waiting.append(self._batch(pool, features))
                while sizes and sizes[0] <= sum(len(part.rows) for part in waiting):
                    batch, rest = _split(_joined(waiting), sizes[0])
                    waiting, sizes = [rest], sizes[1:]
                    yield batch

    def _batch(self, pool: Pool, features: dict[str, Array]) -> Batch:
        label = torch.from_numpy(self.label[pool.rows].astype(np.float32))
        tensors = {name: torch.from_numpy(array) for name, array in features.items()}
        return Batch(pool.rows, label, torch.from_numpy(pool.flip), tensors)


def shuffled_pools(blocks: Sequence[Numbers], seed: int, epoch: int) -> list[Pool]:
    """The pools of one epoch, from (seed, epoch) alone."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(blocks))
    pools = []
    for start in range(0, len(blocks), POOL_BLOCKS):
        chosen = [blocks[i] for i in order[start : start + POOL_BLOCKS]]
        flip = [(np.arange(len(block)) < len(block) // 2) ^ (rng.random() < 0.5) for block in chosen]
        shuffle = rng.permutation(sum(len(block) for block in chosen))
        pools.append(Pool(np.concatenate(chosen)[shuffle], np.concatenate(flip)[shuffle]))
    return pools


def plain_pools(blocks: Sequence[Numbers]) -> list[Pool]:
    """The blocks in their order, none of their rows mirrored."""
    pools = []
    for start in range(0, len(blocks), POOL_BLOCKS):
        rows = np.concatenate(blocks[start : start + POOL_BLOCKS])
        pools.append(Pool(rows, np.zeros(len(rows), dtype=bool)))
    return pools


def batch_sizes(rows: int, batch_size: int) -> list[int]:
    """Sizes of the batches that hold ``rows`` rows.

    A last batch of one row joins the batch before it: normalisation over a batch is not defined for one sample.
    """
    sizes = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
    if batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def _decoded(cache: Cache, build: BuildRecord, table: pa.Table) -> pa.Table:
    if "image" not in build.features:
        return table
    rejected = cache.open_feature(build.features["image"].folder).index().rejected
    keep = np.array([key not in rejected for key in column(table, "key")], dtype=bool)
    return table.filter(pa.array(keep))


def _views(store: FeatureStore) -> dict[bool, int]:
    """Which stored view of the teacher belongs to a plain and to a mirrored sample."""
    views = store.spec.get("views")
    if not isinstance(views, list) or not {"identity", "hflip"} <= set(views):
        raise UserError(
            f"{store.folder.name}: holds the views {views}, and training mirrors pictures, so it needs identity and "
            "hflip. Build `teacher` with both."
        )
    return {False: views.index("identity"), True: views.index("hflip")}


def _without_first(pools: list[Pool], rows: int) -> list[Pool]:
    """The pools without their first ``rows`` rows."""
    kept = []
    for pool in pools:
        if rows < len(pool.rows):
            kept.append(Pool(pool.rows[rows:], pool.flip[rows:]))
        rows = max(0, rows - len(pool.rows))
    return kept


def _split(batch: Batch, size: int) -> tuple[Batch, Batch]:
    return tuple(  # type: ignore[return-value]
        Batch(batch.rows[at], batch.label[at], batch.flip[at], {name: x[at] for name, x in batch.features.items()})
        for at in (slice(0, size), slice(size, None))
    )


def _joined(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return Batch(
        np.concatenate([part.rows for part in parts]),
        torch.cat([part.label for part in parts]),
        torch.cat([part.flip for part in parts]),
        {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features},
    )
