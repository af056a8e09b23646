"""Readers: a thread of this process, or worker processes, started by spawn so that they inherit no lock.

The data do not depend on the kind of reader. Pieces come in the requested order, read ahead by as many as there are
readers; a worker hands them over in shared memory. Requests to an object store are slow, but many at once take no
longer, so several threads read from it, and the features of a piece are read in parallel.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...cache.gather import open_store, read_rows
from ...cache.local_copy.reader import LocalCopy
from ...cache.store import FeatureStore
from ...errors import UserError
from ...storage import AnyPath
from .shuffle import POOL_BLOCKS, IntArray, RankShare

_ItemT = TypeVar("_ItemT")
AHEAD = 2
"""Pieces begun per reader, and finished batches, before they are requested."""
SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps the memory that processes share; containers often have 64 MiB of it."""
REMOTE_THREADS = POOL_BLOCKS
"""Pieces read from an object store at once: the first batch of a pool needs all of its blocks."""


@dataclass(frozen=True)
class RowLocation:
    """Location of some rows of one feature.

    Attributes
    ----------
    shards
        Shard ids.
    shard, row : ndarray, shape (n,)
        Index in ``shards``, and row in that shard.
    view : ndarray, shape (n,)
        View of each row, or None for whole rows.
    max_gap
        Unneeded rows between two needed ones that may be read with them.
    shape, dtype
        Shape and type of what is read per row.
    """

    shards: tuple[str, ...]
    shard: IntArray
    row: IntArray
    view: IntArray | None
    max_gap: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class ReadRequest:
    """A piece to read: row numbers (n,) in the dataset's table, and their location in each feature."""

    rows: IntArray
    locations: Mapping[str, RowLocation]


ImageTransform = Callable[..., Tensor]
"""Applied to images where they are read: (images (n, 3, S, S) uint8, rows (n,), epoch) -> images.

It must be a pure function of its arguments. Worker processes receive it pickled, through a pipe and never a file.
"""


class ReaderPool:
    """Reads pieces ahead. A context manager: worker processes live until it exits.

    Parameters
    ----------
    workers
        Number of processes; 0 for a thread, or ``REMOTE_THREADS`` threads if a feature is in an object store.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Return the pool; processes start with the first piece."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def read(
        self,
        stores: Mapping[str, FeatureStore],
        requests: Iterable[ReadRequest],
        change: ImageTransform | None = None,
        *,
        pin: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of each request in sequence, as feature -> (n, ...).

        Parameters
        ----------
        stores
            The features to read.
        requests
            What to read.
        change
            Applied to (images, rows) of each request.
        pin
            Return tensors in pinned memory.

        Raises
        ------
        IntegrityError
            A shard is damaged.
        UserError
            A worker process was killed, or there is too little shared memory.
        """
        if not self.workers:
            threads = REMOTE_THREADS if any(store.is_remote for store in stores.values()) else 1
            with ThreadPoolExecutor(threads) as pool:
                read_here = functools.partial(read_request, stores, change, pin)
                yield from _in_order(pool, read_here, requests, threads - 1 + AHEAD)
            return
        if self._pool is None:
            self._pool = self._started()
        locations = {name: _FeatureLocation(store.folder, store.local_copy) for name, store in stores.items()}
        try:
            read = functools.partial(_read_in_worker, locations, change)
            for rows in _in_order(self._pool, read, requests, AHEAD * self.workers):
                yield {name: x.pin_memory() for name, x in rows.items()} if pin else rows
        except BrokenProcessPool as error:
            raise UserError(
                f"--workers {self.workers}: a reader process was killed, perhaps for lack of memory. Use fewer workers."
            ) from error
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            raise self._no_shared_memory(error) from error

    def _started(self) -> ProcessPoolExecutor:
        try:
            return ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _begin_worker)
        except OSError as error:  # semaphores are in shared memory too
            raise self._no_shared_memory(error) from error

    def _no_shared_memory(self, error: Exception) -> UserError:
        try:
            space = os.statvfs(SHARED_MEMORY)
            size = f"has {space.f_frsize * space.f_blocks / 2**20:,.0f} MiB"
        except OSError:
            size = "is not there"
        return UserError(
            f"--workers {self.workers}: there is too little shared memory to hand over batches: {SHARED_MEMORY} {size} "
            f"({error}). Enlarge it (docker run --shm-size 2g), or use fewer workers or --workers 0."
        )


@dataclass(frozen=True)
class LoaderOptions:
    """How this process reads its batches: its readers, its share of each batch, and whether to pin memory."""

    readers: ReaderPool = field(default_factory=ReaderPool)
    share: RankShare = field(default_factory=RankShare)
    pin: bool = False


def read_request(
    stores: Mapping[str, FeatureStore], change: ImageTransform | None, pin: bool, request: ReadRequest
) -> dict[str, Tensor]:
    """Read the rows of a request, each feature from its store."""
    rows = {name: buffer((len(at.row), *at.shape), at.dtype, pin) for name, at in request.locations.items()}

    def fill(name: str) -> None:
        at = request.locations[name]
        out = rows[name].numpy()
        read_rows(stores[name], at.shards, at.shard, at.row, at.view, max_gap=at.max_gap, out=out)

    remote = [name for name in rows if stores[name].is_remote]
    if len(remote) > 1:
        with ThreadPoolExecutor(len(remote)) as pool:
            list(pool.map(fill, remote))
    for name in rows if len(remote) < 2 else rows.keys() - remote:
        fill(name)
    if change is not None:
        rows["image"] = change(rows["image"], request.rows)
    return rows


def read_ahead(items: Generator[_ItemT]) -> Generator[_ItemT]:
    """Yield the items of a generator, which runs in a thread while earlier items are used."""
    thread = ThreadPoolExecutor(1)
    try:
        pending = deque(thread.submit(next, items, None) for _ in range(AHEAD))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        items.close()


def buffer(shape: tuple[int, ...], dtype: torch.dtype, pin: bool) -> Tensor:
    """Allocate an uninitialised tensor to read into.

    Unless it is pinned, numpy allocates it: numpy asks the kernel for huge pages and torch does not, and touching new
    small pages takes longer than copying the rows.
    """
    if pin:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def _in_order(
    pool: Executor, read: Callable[[ReadRequest], dict[str, Tensor]], requests: Iterable[ReadRequest], depth: int
) -> Iterator[dict[str, Tensor]]:
    remaining = iter(requests)
    pending: deque[Future[dict[str, Tensor]]] = deque(pool.submit(read, first) for first in islice(remaining, depth))
    try:
        while pending:
            piece = pending.popleft().result()
            pending.extend(pool.submit(read, following) for following in islice(remaining, 1))
            yield piece
            del piece
    finally:
        for future in pending:
            future.cancel()


def _begin_worker() -> None:
    """Ignore signals, which the training process handles at the end of its step, and exit with that process."""
    os.setpgrp()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _FeatureLocation(NamedTuple):
    """Where a worker opens a feature: its folder and local copy."""

    folder: AnyPath
    local_copy: LocalCopy | None


def _read_in_worker(
    locations: Mapping[str, _FeatureLocation], change: ImageTransform | None, request: ReadRequest
) -> dict[str, Tensor]:
    return read_request({name: open_store(*where) for name, where in locations.items()}, change, False, request)
