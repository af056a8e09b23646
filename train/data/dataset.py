"""Batches from the cache: a few contiguous reads for each block of neighbouring rows, in an order that ``order`` gives.

The flip of a sample is drawn before its features are read, and only the teacher's view that it needs is read. Small rows
are read block by block. Rows of more than 64 KiB, as those of 256 pixels, are decoded one by one anyway: they are read
straight into their batch, but block by block from an object store, where a request costs more than the rows. What is held
in memory is at most the rows of two pools that have not left yet, two pieces or batches that each reader has begun, and
two finished batches, whatever the size of the dataset; only the table of the rows and their places, some 100 bytes a row,
grow with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ...cache.gather import read_rows
from ...cache.records.builds import BuildRecord
from ...cache.shards.keys import keys_of_column
from ...cache.store import Cache, FeatureStore
from ...errors import UserError
from .readers import Change, LoaderOptions, ReadRequest, RowLocation, buffer, read_ahead
from .select import column, missing_feature
from .shuffle import BatchSlice, BlockRead, EpochOrder, ReadBlocks, batch_sizes, digest, divide, sequential, shuffled

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]

READ_OVER_BYTES = 64 * 2**10
"""Rows nobody asked for that are read over rather than starting another read: a fraction of what is decoded at once."""
READ_OVER_REMOTE_BYTES = 2**20
"""The same for rows in an object store: what comes in the time of a request."""


@dataclass(frozen=True)
class Batch:
    """Samples as they lie in the cache: all of a batch, or this process' share of it.

    rows : (B,) positions in the part's table. label : (B,) float32, 1 for generated. flip : (B,) bool.
    features : name -> (B, 3, S, S) uint8 or float16; ``teacher`` is the view of the flip, (B, C, h, w).
    whole : samples of the batch over all processes.
    """

    rows: Numbers
    label: Tensor
    flip: Tensor
    features: dict[str, Tensor]
    whole: int

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device, in their stored types."""
        features = {name: x.to(device, non_blocking=True) for name, x in self.features.items()}
        label, flip = self.label.to(device, non_blocking=True), self.flip.to(device, non_blocking=True)
        return Batch(self.rows, label, flip, features, self.whole)


class FeatureDataset:
    """The rows of one part of a dataset, or of several datasets with the same features, joined to their features.

    Rows whose picture the build could not decode are left out. ``table`` holds the rest, in the order of the dataset.
    Raises UserError if the build lacks a feature for one of them.
    """

    def __init__(
        self, cache: Cache, build: BuildRecord, table: pa.Table, features: Sequence[str], *, split: str, purpose: str
    ) -> None:
        self.stores = {name: cache.open_feature(build.features[name].folder) for name in features}
        self.table = _decoded(cache, build, table)
        self.label = column(self.table, "label")
        self._where: dict[str, tuple[Array, Array]] = {}
        keys = keys_of_column(self.table["key"])
        for name, store in self.stores.items():
            shard, row = store.index().locate(keys)
            lacking = int(np.sum(shard < 0))
            if lacking:
                raise missing_feature(
                    cache, table, build.dataset, purpose, name, lacking, len(keys), split, tuple(features)
                )
            self._where[name] = shard, row
        self._blocks = ReadBlocks.of(*next(iter(self._where.values())))
        self._views = _views(self.stores["teacher"]) if "teacher" in self.stores else None
        self._types = {name: self._type(name) for name in self.stores if len(self)}
        self._gap = {
            name: _read_over(self.stores[name]) // (math.prod(s) * t.itemsize) for name, (s, t) in self._types.items()
        }

    def __len__(self) -> int:
        """Number of occurrences."""
        return len(self.label)

    def row_shape(self, feature: str) -> tuple[int, ...]:
        """Shape of one stored row of a feature."""
        store, (shard, _) = self.stores[feature], self._where[feature]
        return tuple(store.marker(store.index().shards[shard[0]]).shape)

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        skip: int = 0,
        loading: LoaderOptions | None = None,
        change: Change | None = None,
    ) -> Iterator[Batch]:
        """Training batches of one epoch, less the first ``skip``; the last may be smaller.

        batch_size : over all processes. change : what the readers do to the pictures before they leave.
        """
        changed = functools.partial(change, epoch=epoch) if change else None
        order = shuffled(self._blocks, seed, epoch)
        return read_ahead(self._batches(order, batch_size, skip, loading or LoaderOptions(), changed))

    def epoch_digest(self, seed: int, epoch: int, batch_size: int) -> str:
        """Digest of the order of a training epoch: see :func:`.shuffle.digest`. The arguments are those of :meth:`epoch`."""
        return self._digest(shuffled(self._blocks, seed, epoch), batch_size)

    def storage_digest(self, batch_size: int) -> str:
        """Digest of the order in which :meth:`in_order` yields the rows."""
        return self._digest(sequential(self._blocks), batch_size)

    def in_order(self, batch_size: int, loading: LoaderOptions | None = None) -> Iterator[Batch]:
        """All rows once, unmirrored, in the order of storage; of several processes, each gets other rows."""
        return read_ahead(self._batches(sequential(self._blocks), batch_size, 0, loading or LoaderOptions(), None))

    def read(self, feature: str, rows: Numbers) -> Array:
        """A feature of ``rows``, whole, in their order."""
        shard, row = self._where[feature]
        store = self.stores[feature]
        return read_rows(store, store.index().shards, shard[rows], row[rows])

    def _digest(self, order: EpochOrder, batch_size: int) -> str:
        return digest(order, keys_of_column(self.table["key"]), batch_sizes(len(self), batch_size))

    def _batches(
        self, order: EpochOrder, batch_size: int, skip: int, loading: LoaderOptions, change: Change | None
    ) -> Generator[Batch]:
        sizes = batch_sizes(len(self), batch_size)
        pieces, cuts = divide(self._blocks, order, sizes, skip, loading.share)
        cuts = [cut for cut in cuts if len(cut.rows)]
        read = functools.partial(loading.readers.read, self.stores, change=change)
        if any(self._gap.values()):
            found = _collected(cuts, pieces, read(map(self._request, pieces)), loading.pin)
        else:  # rows so large that each is read by itself need no detour over blocks
            found = read((self._request(BlockRead(cut.rows, cut.flip)) for cut in cuts), pin=loading.pin)
        for cut, features in zip(cuts, found, strict=True):
            label = torch.from_numpy(self.label[cut.rows].astype(np.float32))
            yield Batch(cut.rows, label, torch.from_numpy(cut.flip), features, cut.whole)

    def _request(self, piece: BlockRead) -> ReadRequest:
        """Where the rows of a piece lie, by shard id, so that a reader needs no index; teacher by the view of its flip."""
        places = {}
        for name, (shard, row) in self._where.items():
            numbers, position = np.unique(shard[piece.rows], return_inverse=True)
            shards = tuple(self.stores[name].index().shards[number] for number in numbers)
            view = self._views[piece.flip.astype(np.int64)] if name == "teacher" and self._views is not None else None
            places[name] = RowLocation(shards, position, row[piece.rows], view, self._gap[name], *self._types[name])
        return ReadRequest(piece.rows, places)

    def _type(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of what is read of one row: of the teacher, one view."""
        store, (shard, _) = self.stores[name], self._where[name]
        marker = store.marker(store.index().shards[shard[0]])
        dtype = torch.from_numpy(np.empty(0, marker.dtype)).dtype
        return (marker.shape[1:] if name == "teacher" else marker.shape), dtype


def _collected(
    cuts: Sequence[BatchSlice], pieces: Sequence[BlockRead], arriving: Iterator[dict[str, Tensor]], pin: bool
) -> Iterator[dict[str, Tensor]]:
    """The features of each batch, put together from the pieces that its rows come with; a piece goes with its last row."""
    held: dict[int, dict[str, Tensor]] = {}
    left = [len(piece.rows) for piece in pieces]
    arrived = 0
    for cut in cuts:
        for number in range(arrived, int(cut.piece.max()) + 1):
            held[number] = next(arriving)
            arrived += 1
        numbers, counts = np.unique(cut.piece, return_counts=True)
        yield {name: _copied(held, cut, name, pin) for name in held[int(numbers[0])]}
        for number, used in zip(numbers.tolist(), counts.tolist(), strict=True):
            left[number] -= used
            if not left[number]:
                del held[number]


def _copied(held: dict[int, dict[str, Tensor]], cut: BatchSlice, name: str, pin: bool) -> Tensor:
    sources = {number: held[number][name].numpy() for number in np.unique(cut.piece).tolist()}
    one = held[int(cut.piece[0])][name]
    out = buffer((len(cut.rows), *one.shape[1:]), one.dtype, pin)
    target = out.numpy()
    for place, (number, at) in enumerate(zip(cut.piece.tolist(), cut.at.tolist(), strict=True)):
        target[place] = sources[number][at]
    return out


def _decoded(cache: Cache, build: BuildRecord, table: pa.Table) -> pa.Table:
    if "image" not in build.features:
        return table
    rejected = cache.open_feature(build.features["image"].folder).index().rejected
    keep = np.array([key not in rejected for key in table["key"].to_pylist()], dtype=bool)
    return table.filter(pa.array(keep))


def _read_over(store: FeatureStore) -> int:
    return READ_OVER_REMOTE_BYTES if store.is_remote else READ_OVER_BYTES


def _views(store: FeatureStore) -> Numbers:
    """Which stored view of the teacher belongs to a plain and to a mirrored sample, (2,)."""
    views = store.spec.get("views")
    if not isinstance(views, list) or not {"identity", "hflip"} <= set(views):
        raise UserError(
            f"{store.folder.name}: holds the views {views}, and training mirrors pictures, so it needs identity and "
            "hflip. Build `teacher` with both."
        )
    return np.array([views.index("identity"), views.index("hflip")])
