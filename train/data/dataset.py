"""Batches from the cache: a few contiguous reads for each block of neighbouring rows, in the order of ``shuffle``.

The flip of a sample is drawn before its features are read, so only the required view is read of a feature that has
views, which are the first axis of its rows. Small rows are read block by block. Rows of
more than 64 KiB, such as those of 256 pixels, are decoded one by one anyway, so they are read straight into their batch;
but block by block from an object store, where a request costs more than the rows. Memory is bounded whatever the size of
the dataset: the rows of two pools, two pieces or batches begun by each reader, and two finished batches. Only the table
of rows and their locations, some 100 bytes per row, grows with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ...cache.gather import read_rows
from ...cache.records.about import OVER_IMAGE, Layout, View
from ...cache.records.builds import BuildRecord
from ...cache.shards.keys import binary_keys, keys_of_column
from ...cache.spec import image_of
from ...cache.store import Cache, FeatureStore
from ...errors import UsageError, UserError
from .readers import ImageTransform, LoaderOptions, ReadRequest, RowLocation, buffer, read_ahead
from .select import column, missing_feature
from .shuffle import (
    BatchSlice,
    BlockRead,
    EpochOrder,
    IntArray,
    ReadBlocks,
    batch_sizes,
    digest,
    divide,
    sequential,
    shuffled,
)

_Array = npt.NDArray[Any]

READ_OVER_BYTES = 64 * 2**10
"""Unneeded bytes to read between two rows rather than start another read: a fraction of what is decoded at once."""
READ_OVER_REMOTE_BYTES = 2**20
"""The same for rows in an object store: as much as arrives in the time of a request."""


@dataclass(frozen=True)
class Batch:
    """Samples as stored in the cache: a whole batch, or this process' share of it.

    Attributes
    ----------
    rows : ndarray, shape (B,)
        Row numbers in the dataset's table.
    label : Tensor, shape (B,)
        float32, 1 for generated.
    flip : Tensor, shape (B,)
        bool, whether to mirror the sample.
    features
        Features by name, such as (B, 3, S, S) uint8 or float16; of a feature with views the view of the flip, such as
        (B, C, h, w).
    whole
        Samples of the batch over all processes.
    """

    rows: IntArray
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
    """The rows of a split joined to their features.

    Rows whose image could not be decoded are left out. ``table`` holds the others, in the order of the dataset.

    Parameters
    ----------
    cache
        The cache.
    build
        The build whose features to read. The table may join several datasets whose builds have the same features.
    table
        Rows in the schema of a dataset.
    features
        Names of the features.
    split, purpose
        The split, and what needs the features, for error messages.
    mirrored
        Whether samples will be mirrored, so that of a feature with views that of each sample's flip is read. Otherwise
        the plain one is.

    Attributes
    ----------
    geometry
        Feature -> what a row is, see :data:`...cache.records.about.Geometry`.

    Raises
    ------
    UserError
        The build lacks a feature for some row.
    UsageError
        A feature lacks the view that would be read.
    """

    def __init__(
        self,
        cache: Cache,
        build: BuildRecord,
        table: pa.Table,
        features: Sequence[str],
        *,
        split: str,
        purpose: str,
        mirrored: bool = True,
    ) -> None:
        self.stores = {name: cache.open_feature(build.features[name].folder) for name in features}
        self.geometry = {name: store.geometry for name, store in self.stores.items()}
        self._views = {name: _views(store, mirrored=mirrored) for name, store in self.stores.items() if store.views}
        self.table = _decoded(cache, build, table)
        self.label = column(self.table, "label")
        self._locations: dict[str, tuple[_Array, _Array]] = {}
        keys = keys_of_column(self.table["key"])
        for name, store in self.stores.items():
            shard, row = store.index().locate(keys)
            lacking = int(np.sum(shard < 0))
            if lacking:
                raise missing_feature(
                    cache, table, build.dataset, purpose, name, lacking, len(keys), split, tuple(features)
                )
            self._locations[name] = shard, row
        self._blocks = ReadBlocks.of(*next(iter(self._locations.values())))
        self._types = {name: self._type(name) for name in self.stores if len(self)}
        self._gap = {
            name: _read_over(self.stores[name]) // (math.prod(s) * t.itemsize) for name, (s, t) in self._types.items()
        }

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.label)

    def row_shape(self, feature: str) -> tuple[int, ...]:
        """Return the shape of one stored row of a feature."""
        store, (shard, _) = self.stores[feature], self._locations[feature]
        return tuple(store.marker(store.index().shards[shard[0]]).shape)

    def layout(self, feature: str) -> Layout:
        """Return what a stored row of a feature is."""
        store, (shard, _) = self.stores[feature], self._locations[feature]
        marker = store.marker(store.index().shards[shard[0]])
        return Layout(tuple(marker.shape), marker.dtype, store.geometry, views=cast(tuple[View, ...], store.views))

    def image_side(self) -> int:
        """Return the side in pixels of the images that the rows were computed of."""
        for name, store in self.stores.items():
            if self.geometry[name] in OVER_IMAGE:
                return self.row_shape(name)[-1]
            size = image_of(store.spec).get("size")
            if isinstance(size, int):
                return size
        raise UserError(f"{', '.join(self.stores)}: do not say of which images they were computed. Build them again.")

    def not_finite(self, batch: Batch) -> str | None:
        """Return the first feature of a batch with a value that is no finite number, its image and shard, as a phrase."""
        for name, values in batch.features.items():
            bad = (~torch.isfinite(values.float())).flatten(1).any(dim=1).nonzero()
            if len(bad):
                row = int(batch.rows[int(bad[0])])
                store, shard = self.stores[name], int(self._locations[name][0][row])
                key = self.table["key"][row].as_py()
                return f"the feature {name} of image {key} (shard {store.index().shards[shard]} in {store.folder})"
        return None

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        skip: int = 0,
        loading: LoaderOptions | None = None,
        change: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        """Return the training batches of one epoch; the last may be smaller.

        Parameters
        ----------
        seed, epoch
            They determine order and flips.
        batch_size
            Over all processes.
        skip
            Number of batches to leave out at the beginning.
        loading
            How to read.
        change
            What the readers do to the images.
        """
        changed = functools.partial(change, epoch=epoch) if change else None
        order = shuffled(self._blocks, seed, epoch)
        return read_ahead(self._batches(order, batch_size, skip, loading or LoaderOptions(), changed))

    def epoch_digest(self, seed: int, epoch: int, batch_size: int) -> str:
        """Return the digest of a training epoch's order, see :func:`.shuffle.digest`; arguments as in :meth:`epoch`."""
        return self._digest(shuffled(self._blocks, seed, epoch), batch_size)

    def storage_digest(self, batch_size: int) -> str:
        """Return the digest of the order in which :meth:`in_order` yields the rows."""
        return self._digest(sequential(self._blocks), batch_size)

    def in_order(
        self, batch_size: int, loading: LoaderOptions | None = None, change: ImageTransform | None = None
    ) -> Iterator[Batch]:
        """Return batches of all rows once, not mirrored, in storage order; several processes share the rows.

        ``change`` is applied to (images, rows) where they are read.
        """
        return read_ahead(self._batches(sequential(self._blocks), batch_size, 0, loading or LoaderOptions(), change))

    def read(self, feature: str, rows: IntArray) -> _Array:
        """Read a feature of ``rows`` completely, in their order."""
        shard, row = self._locations[feature]
        store = self.stores[feature]
        return read_rows(store, store.index().shards, shard[rows], row[rows])

    def _digest(self, order: EpochOrder, batch_size: int) -> str:
        return digest(order, keys_of_column(self.table["key"]), batch_sizes(len(self), batch_size))

    def _batches(
        self, order: EpochOrder, batch_size: int, skip: int, loading: LoaderOptions, change: ImageTransform | None
    ) -> Generator[Batch]:
        sizes = batch_sizes(len(self), batch_size)
        pieces, cuts = divide(self._blocks, order, sizes, skip, loading.share)
        cuts = [cut for cut in cuts if len(cut.rows)]
        read = functools.partial(loading.readers.read, self.stores, change=change)
        if any(self._gap.values()):
            batches = _collected(cuts, pieces, read(map(self._request, pieces)), loading.pin)
        else:  # rows so large that each is read by itself are read straight into their batch
            batches = read((self._request(BlockRead(cut.rows, cut.flip)) for cut in cuts), pin=loading.pin)
        for cut, features in zip(cuts, batches, strict=True):
            yield self._labelled(cut.rows, cut.flip, features, cut.whole, loading.pin)

    def _labelled(
        self, rows: IntArray, flip: npt.NDArray[np.bool_], features: dict[str, Tensor], whole: int, pin: bool
    ) -> Batch:
        """Return a batch of features that were read, with their labels; those are pinned here, the features before."""
        label, flipped = torch.from_numpy(self.label[rows].astype(np.float32)), torch.from_numpy(flip)
        if pin:
            label, flipped = label.pin_memory(), flipped.pin_memory()
        return Batch(rows, label, flipped, features, whole)

    def _request(self, piece: BlockRead) -> ReadRequest:
        """Locate the rows of a piece by shard id, so that readers need no index; the flip selects the view."""
        locations = {}
        for name, (shard, row) in self._locations.items():
            numbers, shard_index = np.unique(shard[piece.rows], return_inverse=True)
            shards = tuple(self.stores[name].index().shards[number] for number in numbers)
            view = self._views[name][piece.flip.astype(np.int64)] if name in self._views else None
            locations[name] = RowLocation(
                shards, shard_index, row[piece.rows], view, self._gap[name], *self._types[name]
            )
        return ReadRequest(piece.rows, locations)

    def _type(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and type of what is read per row: one view of a feature that has views."""
        store, (shard, _) = self.stores[name], self._locations[name]
        marker = store.marker(store.index().shards[shard[0]])
        dtype = torch.from_numpy(np.empty(0, marker.dtype)).dtype
        return (marker.shape[1:] if name in self._views else marker.shape), dtype


def _collected(
    cuts: Sequence[BatchSlice], pieces: Sequence[BlockRead], arriving: Iterator[dict[str, Tensor]], pin: bool
) -> Iterator[dict[str, Tensor]]:
    """Yield the features of each batch, collected from the pieces of its rows; a piece is freed with its last row."""
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
    example = held[int(cut.piece[0])][name]
    out = buffer((len(cut.rows), *example.shape[1:]), example.dtype, pin)
    target = out.numpy()
    for index, (number, at) in enumerate(zip(cut.piece.tolist(), cut.at.tolist(), strict=True)):
        target[index] = sources[number][at]
    return out


def _decoded(cache: Cache, build: BuildRecord, table: pa.Table) -> pa.Table:
    if "image" not in build.features:
        return table
    rejected = cache.open_feature(build.features["image"].folder).index().rejected
    if not rejected:
        return table
    return table.filter(pa.array(~np.isin(keys_of_column(table["key"]), binary_keys(list(rejected)))))


def _read_over(store: FeatureStore) -> int:
    return READ_OVER_REMOTE_BYTES if store.by_requests else READ_OVER_BYTES


def _views(store: FeatureStore, *, mirrored: bool) -> IntArray:
    """Return the stored views of a plain and of a mirrored sample, (2,); of the plain one twice if none is mirrored."""
    wanted = ("identity", "hflip" if mirrored else "identity")
    if not set(wanted) <= set(store.views):
        needs = "training mirrors images, so it needs identity and hflip" if mirrored else "it needs identity"
        raise UsageError(
            f"{store.folder.name}: has the views {list(store.views)}, but {needs}. Build `{store.feature}` with them."
        )
    return np.array([store.views.index(view) for view in wanted])
