"""Who reads: a thread of this process, or worker processes that are started afresh (spawn), so that no lock is inherited.

What is read does not depend on it. Rows come in the order asked, as many pieces ahead as there are readers, and a worker
hands them over in shared memory. From an object store, where each request takes long and many at once take no longer, several
threads read in the place of one, and the features of a piece side by side.
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

from ...cache.gather import read_rows
from ...cache.local_copy.reader import LocalCopy
from ...cache.store import FeatureStore
from ...errors import UserError
from ...storage import AnyPath as Folder
from .shuffle import POOL_BLOCKS, Numbers, RankShare

T = TypeVar("T")
AHEAD = 2
"""Pieces that each reader has begun, and batches that are made, before they are asked for."""
REMOTE_THREADS = POOL_BLOCKS
"""Pieces that are read from an object store at once: the first batch of a pool needs all of its blocks."""


@dataclass(frozen=True)
class RowLocation:
    """Where some rows of one feature lie.

    shards : ids. shard, row : (n,) position in ``shards`` and row in that shard. view : (n,) view of each row, or None
    for whole rows. max_gap : rows between them that may be read over. shape, dtype : of what is read of one row.
    """

    shards: tuple[str, ...]
    shard: Numbers
    row: Numbers
    view: Numbers | None
    max_gap: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class ReadRequest:
    """A piece to read: ``rows`` of the part's table, (n,), and where they lie in each feature."""

    rows: Numbers
    places: Mapping[str, RowLocation]


Change = Callable[..., Tensor]
"""What is done to pictures where they are read: (images (n, 3, S, S) uint8, rows (n,), epoch) -> images, the same for
the same arguments whoever calls it. Worker processes get a pickled copy, by way of a pipe and never of a file."""


class ReaderPool:
    """Reads pieces ahead. A context manager: worker processes live until it is left.

    workers : processes; 0 for one thread, or ``REMOTE_THREADS`` if a feature lies in an object store.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start nothing yet: processes come with the first piece."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def read(
        self,
        stores: Mapping[str, FeatureStore],
        requests: Iterable[ReadRequest],
        change: Change | None = None,
        *,
        pin: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """The rows of each request, feature -> (n, ...), one request after the other; ``change`` gets (images, rows).

        pin : the tensors are to lie in pinned memory.
        Raises what reading raises, IntegrityError above all, and UserError if a worker process was killed.
        """
        if not self.workers:
            threads = REMOTE_THREADS if any(store.is_remote for store in stores.values()) else 1
            with ThreadPoolExecutor(threads) as pool:
                read_here = functools.partial(read_request, stores, change, pin)
                yield from _in_order(pool, read_here, requests, threads - 1 + AHEAD)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, context, _begin_worker)
        lying = {name: _FeatureLocation(store.folder, store.local_copy) for name, store in stores.items()}
        try:
            read = functools.partial(_read_in_worker, lying, change)
            for found in _in_order(self._pool, read, requests, AHEAD * self.workers):
                yield {name: x.pin_memory() for name, x in found.items()} if pin else found
        except BrokenProcessPool as error:
            raise UserError(
                f"--workers {self.workers}: a process that reads was killed, perhaps for lack of memory. Use fewer workers."
            ) from error


@dataclass(frozen=True)
class LoaderOptions:
    """How the batches of this process come: who reads them, its share of each, and whether in pinned memory."""

    readers: ReaderPool = field(default_factory=ReaderPool)
    share: RankShare = field(default_factory=RankShare)
    pin: bool = False


def read_request(
    stores: Mapping[str, FeatureStore], change: Change | None, pin: bool, request: ReadRequest
) -> dict[str, Tensor]:
    """Read the rows of a request, each feature from its store."""
    found = {name: buffer((len(at.row), *at.shape), at.dtype, pin) for name, at in request.places.items()}

    def fill(name: str) -> None:
        at = request.places[name]
        out = found[name].numpy()
        read_rows(stores[name], at.shards, at.shard, at.row, at.view, max_gap=at.max_gap, out=out)

    far = [name for name in found if stores[name].is_remote]
    if len(far) > 1:
        with ThreadPoolExecutor(len(far)) as pool:
            list(pool.map(fill, far))
    for name in found if len(far) < 2 else found.keys() - far:
        fill(name)
    if change is not None:
        found["image"] = change(found["image"], request.rows)
    return found


def read_ahead(items: Generator[T]) -> Generator[T]:
    """The same items, made in a thread while earlier ones are used."""
    thread = ThreadPoolExecutor(1)
    try:
        coming = deque(thread.submit(next, items, None) for _ in range(AHEAD))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        items.close()


def buffer(shape: tuple[int, ...], dtype: torch.dtype, pin: bool) -> Tensor:
    """An uninitialised tensor to read into.

    Unless it is pinned, numpy allocates it: numpy asks the kernel for huge pages and torch does not, and touching fresh
    small pages takes longer than copying the rows.
    """
    if pin:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def _in_order(
    pool: Executor, read: Callable[[ReadRequest], dict[str, Tensor]], requests: Iterable[ReadRequest], depth: int
) -> Iterator[dict[str, Tensor]]:
    waiting = iter(requests)
    coming: deque[Future[dict[str, Tensor]]] = deque(pool.submit(read, one) for one in islice(waiting, depth))
    try:
        while coming:
            piece = coming.popleft().result()
            coming.extend(pool.submit(read, one) for one in islice(waiting, 1))
            yield piece
            del piece
    finally:
        for future in coming:
            future.cancel()


def _begin_worker() -> None:
    """Leave signals to the process that trains, which stops when its step is done, and end with it."""
    os.setpgrp()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _FeatureLocation(NamedTuple):
    """Where a worker finds a feature, and its copy."""

    folder: Folder
    local_copy: LocalCopy | None


def _read_in_worker(
    lying: Mapping[str, _FeatureLocation], change: Change | None, request: ReadRequest
) -> dict[str, Tensor]:
    return read_request({name: _store(where) for name, where in lying.items()}, change, False, request)


@functools.lru_cache(maxsize=32)
def _store(where: _FeatureLocation) -> FeatureStore:
    store = FeatureStore(where.folder, local_copy=where.local_copy)
    store.index()  # with it, the store notices a shard that holds other keys than its index says
    return store
