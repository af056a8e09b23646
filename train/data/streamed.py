"""Training batches in the order in which webdataset streams tars: those of the cache, or of an export of it.

An epoch shuffles the tars, streams their samples through webdataset's shuffle buffer, and cuts batches from it. All of this
follows from (seed, epoch) and the tars; so do the flips, which are drawn by row. The content of a batch is that of the
cache's own reader for the same rows. Memory holds the buffer and two batches. One process reads, in a thread.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ...cache.records.builds import BuildRecord
from ...cache.shards.keys import keys_of_column
from ...cache.store import Cache
from ...cache.streaming import ROW, Sample, TarSource, expanded, export_source, shard_source
from ...errors import UserError
from .dataset import Batch, FeatureDataset
from .readers import ImageTransform, LoaderOptions, read_ahead
from .shuffle import POOL_ROWS, batch_sizes

_FLIPS, _ORDER = 1, 2
"""What a random generator of an epoch is for."""


class StreamedDataset(FeatureDataset):
    """The rows of a split, streamed from tars by webdataset.

    Parameters
    ----------
    cache, build, table, features, split, purpose, mirrored
        As for :class:`FeatureDataset`.
    export
        Folder of an export to stream in place of the cache's shards.

    Raises
    ------
    UserError
        As :class:`FeatureDataset`; a shard is no tar, or the export is of another build.
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
        export: Path | None = None,
    ) -> None:
        super().__init__(cache, build, table, features, split=split, purpose=purpose, mirrored=mirrored)
        self._source: TarSource = (
            shard_source(self.table, self.stores)
            if export is None
            else export_source(export, self.table, self.stores, build.revision)
        )

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        skip: int = 0,
        loading: LoaderOptions | None = None,
        change: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        """Return the training batches of one epoch; see :meth:`FeatureDataset.epoch`. Batches to skip are read all the same."""
        changed = partial(change, epoch=epoch) if change else None
        pin = loading is not None and loading.pin
        return read_ahead(self._streamed(seed, epoch, batch_size, skip, changed, pin))

    def epoch_digest(self, seed: int, epoch: int, batch_size: int) -> str:
        """Return the digest of all that decides which rows each batch of an epoch has, and what is drawn for them."""
        decides = {
            "webdataset": version("webdataset"),
            "buffer": POOL_ROWS,
            "epoch": [seed, epoch],
            "sizes": batch_sizes(len(self), batch_size),
            "tars": [self._source.names(group) for group in self._groups(seed, epoch)],
        }
        hashed = hashlib.sha256(json.dumps(decides).encode())
        hashed.update(keys_of_column(self.table["key"]).tobytes())
        return hashed.hexdigest()

    def _groups(self, seed: int, epoch: int) -> list[Any]:
        groups = list(self._source.groups)
        order = np.random.default_rng([seed, epoch, _ORDER]).permutation(len(groups))
        return [groups[number] for number in order]

    def _streamed(
        self, seed: int, epoch: int, batch_size: int, skip: int, change: ImageTransform | None, pin: bool
    ) -> Generator[Batch]:
        import webdataset

        generator = random.Random(f"{seed} {epoch}")
        shuffled = webdataset.shuffle(POOL_ROWS, initial=POOL_ROWS, rng=generator)
        groups = self._groups(seed, epoch)
        samples = iter(webdataset.DataPipeline(lambda: iter(groups), partial(expanded, self._source), shuffled))
        flips = np.random.default_rng([seed, epoch, _FLIPS]).random(len(self)) < 0.5
        for number, size in enumerate(batch_sizes(len(self), batch_size)):
            taken = list(islice(samples, size))
            if len(taken) < size:
                raise UserError(
                    f"--reader webdataset: the tars lack rows of the training, which has {len(self):,}. Export the build "
                    "again, or train without --export."
                )
            if number >= skip:
                yield self._batch(taken, flips, change, pin)

    def _batch(
        self, samples: Sequence[Sample], flips: npt.NDArray[np.bool_], change: ImageTransform | None, pin: bool
    ) -> Batch:
        rows = np.array([sample[ROW] for sample in samples], np.int64)
        flip = flips[rows]
        features = {name: self._stacked(name, samples, flip) for name in self.stores}
        if change is not None:
            features["image"] = change(features["image"], rows)
        if pin:
            features = {name: x.pin_memory() for name, x in features.items()}
        return self._labelled(rows, flip, features, len(rows), pin)

    def _stacked(self, name: str, samples: Sequence[Sample], flip: npt.NDArray[np.bool_]) -> Tensor:
        """Return a feature of samples, (B, ...): of one with views, the view of each sample's flip."""
        arrays = [sample[f"{name}.npy"] for sample in samples]
        if name in self._views:
            views = self._views[name][flip.astype(np.int64)]
            arrays = [array[view] for array, view in zip(arrays, views, strict=True)]
        return torch.from_numpy(np.stack(arrays))
