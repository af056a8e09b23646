"""Apply a function to many items: sequentially on a local disk, concurrently in an object store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .paths import AnyPath
from .remote import RemotePath

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MAX_WORKERS = 16
"""Items processed concurrently. Each may make several requests, and a client allows 64 at a time."""


def map_ordered(
    work: Callable[[_Item], _Result], items: Iterable[_Item], path: AnyPath, *, max_workers: int | None = None
) -> Iterator[_Result]:
    """Yield ``work(item)`` for each item, in order.

    Parameters
    ----------
    work
        The function to apply. It must be thread-safe.
    items
        Taken as they are needed.
    path
        Where the items are. On a local disk each call runs in the caller's thread when its result is asked for; in an
        object store several run concurrently in threads.
    max_workers
        The most concurrent calls in an object store, at most ``MAX_WORKERS``.

    Raises
    ------
    Exception
        The error of the first item that failed, once the calls in progress have ended. No further call is started.
    """
    if not isinstance(path, RemotePath):
        yield from map(work, items)
        return
    limit = min(max_workers or MAX_WORKERS, MAX_WORKERS)
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(limit) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 2 * limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
