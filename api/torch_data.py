"""Features as datasets of torch: with random access, or as a stream that reads in long runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import UsageError
from ..train.data.shuffle import ReadBlocks, shuffled
from .rows import RowReader

Sample = dict[str, Any]
_NO_EPOCH = -1


class _Joined:
    """Features joined to columns of their table, row by row."""

    def __init__(self, readers: Mapping[str, RowReader], table: pa.Table, columns: Sequence[str]) -> None:
        unknown = [name for name in columns if name not in table.column_names]
        if unknown:
            raise UsageError(f"columns: there is no {unknown[0]}, only {', '.join(table.column_names)}.")
        both = [name for name in columns if name in readers]
        if both:
            raise UsageError(f"columns: {both[0]} is the name of a feature as well. Leave the column out.")
        self._readers = dict(readers)
        self._table = table.select(list(columns))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def samples(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Read rows, each feature's at once, and return a sample for each."""
        numbers = np.asarray(rows, np.int64)
        values = {name: torch.from_numpy(reader.part(numbers).read()) for name, reader in self._readers.items()}
        columns = self._table.take(pa.array(numbers)).to_pylist()
        return [
            {**{name: rows[index] for name, rows in values.items()}, **column} for index, column in enumerate(columns)
        ]


class FeatureRows(Dataset[Sample]):
    """A dataset with random access. A ``DataLoader`` reads the rows of a batch at once.

    Samples are dicts: each feature a tensor of its stored shape and type, and the columns as int or str. Samplers decide
    on the order, and may share the rows among processes.

    Parameters
    ----------
    readers : Mapping of str to RowReader
        The features, N rows each.
    table : pyarrow.Table
        The same N rows.
    columns : sequence of str
        Columns of the table to join.
    """

    def __init__(self, readers: Mapping[str, RowReader], table: pa.Table, columns: Sequence[str]) -> None:
        self._joined = _Joined(readers, table, columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._joined)

    def __getitem__(self, row: int) -> Sample:
        """Return one sample. Raises IndexError outside the dataset."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._joined.samples([row % len(self)])[0]

    def __getitems__(self, rows: list[int]) -> list[Sample]:
        """Return several samples; ``DataLoader`` asks for a batch this way."""
        return self._joined.samples(rows)


class FeatureStream(IterableDataset[Sample]):
    """A dataset that yields its rows in an order of its own: every row once, neighbours of eight random blocks mixed.

    Each pass has a new order, which follows from the seed and torch's random numbers, as that of a shuffling
    ``DataLoader`` does; after :meth:`set_epoch`, from the seed and the epoch alone. Worker processes of a ``DataLoader``
    share the rows; several training processes do not: give them :class:`FeatureRows`.

    A stream has no length. A ``DataLoader`` would take it for the number of its batches, but each worker process ends
    with a batch that is not full, and trainers stop at that number.

    Parameters
    ----------
    readers, table, columns
        As for :class:`FeatureRows`.
    seed : int
        Decides the order.
    """

    def __init__(self, readers: Mapping[str, RowReader], table: pa.Table, columns: Sequence[str], seed: int) -> None:
        self._joined = _Joined(readers, table, columns)
        first = next(iter(readers.values()))
        self._blocks = ReadBlocks.of(first.shard, first.row)
        self._seed = seed
        self._passes = 0
        self._epoch = torch.full((), _NO_EPOCH)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # so that worker processes see when it changes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order is used from now on."""
        if epoch < 0:
            raise UsageError(f"epoch {epoch}: epochs are counted from 0 or 1.")
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples, or this worker's."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch = int(self._epoch)
        if epoch == _NO_EPOCH and worker:  # the same in all workers of a pass; those that persist keep their seed
            epoch = worker.seed - worker.id + self._passes
            self._passes += 1
        elif epoch == _NO_EPOCH:
            epoch = int(torch.empty((), dtype=torch.int64).random_())
        order = shuffled(self._blocks, self._seed, epoch)
        for pool in np.unique(order.pool)[number::workers]:
            yield from self._joined.samples(order.rows[order.pool == pool])
