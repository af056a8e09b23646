"""Doing the same for many things: one after the other on a disk, many at a time where each is a request's waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .paths import AnyPath
from .remote import RemotePath

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

AT_ONCE = 16
"""Items in work at a time. Each may make several requests, and a client allows 64 at a time."""


def map_ordered(
    work: Callable[[_Item], _Result], items: Iterable[_Item], place: AnyPath, *, at_once: int | None = None
) -> Iterator[_Result]:
    """Yield ``work(item)`` for each item, in their order; up to ``at_once`` at a time if ``place`` is in an object store.

    Raises what ``work`` raises: for the first item that failed, when those under way have ended. Nothing begins after it.
    """
    if not isinstance(place, RemotePath):
        yield from map(work, items)
        return
    limit = min(at_once or AT_ONCE, AT_ONCE)
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(limit) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * limit:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
