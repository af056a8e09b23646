"""The workers behind a scheduler, as a build sees them: hand in a task, hear which have ended and how."""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker

from ...errors import UserError
from ..scan import Sight, look_at_file, place_of
from ..scan_memory import Finding
from ..source_file import SourceFile
from .local import LocalWorkers, local_workers
from .messages import read_findings, write_files
from .worker import BuildPlugin, look_at

CONNECT_SECONDS = 30.0
WAIT_SECONDS = 1.0
REVIVE_SECONDS = 5.0
_FILES = 256
"""Files that a worker looks at in one task."""
_SAME_WINDOW = 256
"""Blocks of files after which a scan asks again how many workers there are."""
_SPARE = 8
"""Tasks handed in beyond two for each thread, so that an adaptive cluster sees a reason to grow."""
_LOST = (OSError, TimeoutError, asyncio.CancelledError, ClosedClientError)


@dataclass(frozen=True)
class Failure:
    """Why a task was not done.

    deaths : workers that died while they had it; 0 if it raised. worker : address of the (last) one, if known.
    tried : whether anybody tried; not if all the workers went away that might have.
    """

    text: str
    worker: str | None
    deaths: int = 0
    tried: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of the task with this key: the text it returned, or a failure."""

    key: str
    result: str | Failure


class Crew:
    """A client of a Dask scheduler. ``name`` says who works, ``dashboard`` where Dask shows it.

    local : the workers, if they are processes that this one started.
    """

    def __init__(self, client: Client, address: str, name: str, local: LocalWorkers | None = None) -> None:
        self._client = client
        self._address = address
        self._local = local
        self._lost = False
        self._revived = time.monotonic()
        self.name = name
        self.dashboard = str(client.dashboard_link)
        self._ended: queue.SimpleQueue[Future[str]] = queue.SimpleQueue()
        self._futures: dict[str, Future[str]] = {}
        self._limited: dict[str, frozenset[str]] = {}

    def workers(self) -> dict[str, int]:
        """Return the address of each worker with its number of threads."""
        with self._connected():
            return dict(self._client.nthreads())

    def window(self) -> int:
        """Return how many tasks to hand in at a time: enough to keep everybody busy, whatever the size of the build."""
        return 2 * sum(self.workers().values()) + _SPARE

    def submit(self, function: Callable[..., str], *arguments: str, key: str, avoid: Collection[str] = ()) -> None:
        """Hand in a task; ``avoid`` names workers that get it only if there is no other."""
        others = [address for address in self.workers() if address not in avoid] if avoid else []
        with self._connected():
            future = self._client.submit(function, *arguments, key=key, pure=False, workers=others or None)
            self._futures[key] = future
            if others:
                self._limited[key] = frozenset(others)
            future.add_done_callback(self._ended.put)

    def ended(self) -> list[Outcome]:
        """Wait a moment for tasks that have ended and return what became of them. UserError if the scheduler is gone."""
        if self._local and time.monotonic() - self._revived > REVIVE_SECONDS:
            self._local.revive()
            self._revived = time.monotonic()
        with suppress(queue.Empty):
            first = self._ended.get(timeout=WAIT_SECONDS)
            futures = [first, *(self._ended.get_nowait() for _ in range(self._ended.qsize()))]
            return [self._outcome(future) for future in futures if future.key in self._futures]
        if self._client.status != "running":
            raise self._gone()
        return self._stranded()

    def _stranded(self) -> list[Outcome]:
        """Take back the tasks whose workers are all gone while others may be there."""
        there = self.workers().keys() if self._limited else ()
        stranded = [key for key, others in self._limited.items() if others.isdisjoint(there)]
        for key in stranded:
            self._limited.pop(key)
            self._futures.pop(key).cancel()
        return [Outcome(key, Failure("its workers are gone", None, tried=False)) for key in stranded]

    def retire(self, worker: str) -> None:
        """Send a worker away for good."""
        with self._connected():
            if self._local:
                self._local.dismiss(worker)
            else:
                self._client.retire_workers([worker], close_workers=True)

    @contextmanager
    def plugin(self, plugin: BuildPlugin) -> Iterator[None]:
        """Give every worker, also those that join later, a plugin for the length of a ``with`` block."""
        with self._connected():
            self._client.register_plugin(plugin)
        try:
            yield
        finally:
            with suppress(*_LOST):
                self._leave(plugin)

    def _leave(self, plugin: BuildPlugin) -> None:
        """Take back what was handed in and has not ended, and the plugin; a scheduler that is gone is not asked."""
        futures = list(self._futures.values())
        self._futures.clear()
        self._limited.clear()
        if not self._lost:
            self._client.cancel(futures)
            self._client.unregister_worker_plugin(plugin.name)

    def sights(self, files: Sequence[SourceFile], trusted: Mapping[bytes, Finding]) -> Iterator[Sequence[Sight]]:
        """Look at source files as :func:`..scan.scan` does, many at a time; what workers cannot read is looked at here."""
        roots = {root: os.path.abspath(root) for root in {file.root for file in files}}  # noqa: PTH100
        places = [place_of(roots[file.root], file) for file in files]
        blocks = [slice(start, start + _FILES) for start in range(0, len(files), _FILES)]
        names = [f"look-{secrets.token_hex(8)}" for _ in blocks]
        found: dict[str, str | Failure] = {}
        window = handed_in = 0
        for number, block in enumerate(blocks):
            window = window if number % _SAME_WINDOW else self.window()
            for later in range(handed_in, min(number + window, len(blocks))):
                known = [trusted.get(place) for place in places[blocks[later]]]
                self.submit(look_at, write_files(files[blocks[later]], known), key=names[later])
                handed_in = later + 1
            while names[number] not in found:
                found |= {outcome.key: outcome.result for outcome in self.ended()}
            yield _merged(files[block], places[block], trusted, found.pop(names[number]))

    def _outcome(self, future: Future[str]) -> Outcome:
        key = str(future.key)
        if future.status in ("cancelled", "lost"):
            raise self._gone()
        with self._connected():
            # none if it was lost and failed when it was done again
            results = self._client.gather([future], errors="skip")
            error = None if results else future.exception()
        del self._futures[key]
        self._limited.pop(key, None)
        return Outcome(key, _failure(error) if error is not None else str(results[0]))

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except _LOST as error:
            raise self._gone() from error

    def _gone(self) -> UserError:
        self._lost = True
        return UserError(
            f"the scheduler at {self._address} went away. What was finished is kept: start it and run the same command again."
        )


@contextmanager
def connect(address: str) -> Iterator[Crew]:
    """Connect to a scheduler that is there. UserError if it does not answer."""
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise UserError(f"--scheduler {address}: no scheduler answers ({error}).") from error
    with client:
        yield Crew(client, address, f"scheduler at {address}")


@contextmanager
def start_here(processes: int, device: str) -> Iterator[Crew]:
    """Start workers on this machine for the length of a ``with`` block."""
    with ExitStack() as held:
        local = held.enter_context(local_workers(processes, device))
        client = held.enter_context(Client(local.cluster, set_as_default=False))
        address = str(local.cluster.scheduler_address)
        yield Crew(client, address, f"{processes} worker processes on this machine", local)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, KilledWorker):
        return Failure("the worker process died", str(error.last_worker.address), error.allowed_failures + 1)
    notes: list[Any] = getattr(error, "__notes__", [])
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Failure(text.strip(), str(notes[0]) if notes else None)


def _merged(
    files: Sequence[SourceFile], places: Sequence[bytes], trusted: Mapping[bytes, Finding], result: str | Failure
) -> list[Sight]:
    """Return what a scan wants to know of a block of files, from a worker's answer."""
    answers = [False] * len(files) if isinstance(result, Failure) else read_findings(result)
    sights: list[Sight] = []
    for file, place, answer in zip(files, places, answers, strict=True):
        known = trusted.get(place)
        if isinstance(answer, Finding):
            sights.append((file, place, answer))
        else:
            sights.append((file, place, known if answer and known is not None else look_at_file(file, known)))
    return sights
