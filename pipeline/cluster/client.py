"""A pool of workers behind a Dask scheduler: submit tasks, and collect results and failures."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from ...errors import DistilCacheError, UserError
from ...images.file import ImageRejected
from ..scan.memory import ScanEntry
from ..scan.scan import ScannedFile, scan_file
from ..sources.file import SourceFile
from .connection import LOST, NO_ANSWER, Connection, silenced_logging
from .local_workers import LocalWorkers, local_workers
from .messages import read_entries, write_files
from .worker import BuildPlugin, UnknownBuildError, scan_block

CONNECT_SECONDS = 30.0
WAIT_SECONDS = 1.0
REVIVE_SECONDS = 5.0
_MAX_AGE_SECONDS = 1.0
"""Largest age of the list of workers."""
_FILES = 256
"""Files that a worker scans in one task."""
_SAME_WINDOW = 256
"""Blocks of files after which a scan asks again for the number of workers."""
_SPARE = 8
"""Tasks submitted beyond two for each thread, so that an adaptive cluster has a reason to grow."""


@dataclass(frozen=True)
class TaskFailure:
    """Why a task was not done.

    Attributes
    ----------
    text
        Description of the failure.
    worker
        Address of the (last) worker, if known.
    deaths
        Number of workers that died while they had the task; 0 if it raised an exception.
    tried
        Whether it counts as a try. It does not if the scheduler, or all workers that may run the task, went away.
    """

    text: str
    worker: str | None
    deaths: int = 0
    tried: bool = True


@dataclass(frozen=True)
class TaskOutcome:
    """Outcome of the task with this key: the text that it returned, or a failure."""

    key: str
    result: str | TaskFailure


class WorkerPool:
    """The workers of a Dask scheduler.

    Every method raises UserError if the scheduler is gone for good. If another one takes over, tasks that were
    submitted before come back untried.

    Attributes
    ----------
    name
        Description of the workers.
    dashboard
        URL of Dask's dashboard; empty if it has none.
    """

    def __init__(self, connection: Connection, name: str, local: LocalWorkers | None = None) -> None:
        self._connection = connection
        self._local = local
        self._revived = time.monotonic()
        self.name = name
        self.dashboard = "" if local else str(connection.client.dashboard_link or "")
        self._ended: queue.SimpleQueue[Future[str]] = queue.SimpleQueue()
        self._futures: dict[str, Future[str]] = {}
        self._limited: dict[str, frozenset[str]] = {}
        self._known_workers: tuple[float, dict[str, int]] | None = None

    def workers(self) -> dict[str, int]:
        """Return the address of each worker with its number of threads; the answer may be a second old."""
        if self._known_workers is None or time.monotonic() - self._known_workers[0] > _MAX_AGE_SECONDS:
            there = self._connection.ask(lambda client: dict(client.nthreads()))
            self._known_workers = time.monotonic(), there
        return self._known_workers[1]

    def window(self) -> int:
        """Return how many tasks to have submitted at a time: enough to keep all workers busy."""
        return 2 * sum(self.workers().values()) + _SPARE

    def submit(self, function: Callable[..., str], *arguments: str, key: str, avoid: Collection[str] = ()) -> None:
        """Submit a task. Workers in ``avoid`` get it only if there is no other."""
        others = [address for address in self.workers() if address not in avoid] if avoid else []
        future = self._connection.ask(
            lambda client: client.submit(function, *arguments, key=key, pure=False, workers=others or None)
        )
        self._futures[key] = future
        if others:
            self._limited[key] = frozenset(others)
        future.add_done_callback(self._ended.put)

    def ended(self) -> list[TaskOutcome]:
        """Wait a moment for tasks to end, and return their outcomes."""
        if self._local and time.monotonic() - self._revived > REVIVE_SECONDS:
            self._local.revive()
            self._revived = time.monotonic()
        futures: list[Future[str]] = []
        with suppress(queue.Empty):
            futures.append(self._ended.get(timeout=WAIT_SECONDS))
            while True:
                futures.append(self._ended.get_nowait())
        if not futures and not self._connection.running:
            self._connection.renew()
        outcomes = self._outcomes([future for future in futures if self._futures.get(str(future.key)) is future])
        outcomes += self._left_behind()
        return outcomes if futures or outcomes else self._stranded()

    def _outcomes(self, futures: Sequence[Future[str]]) -> list[TaskOutcome]:
        """Return the outcomes of tasks. Tasks that the loss of the scheduler cancelled are left out."""
        try:
            ended = _gathered(self._connection.client, futures)
        except LOST as error:
            self._connection.renew(error)
            return []
        outcomes = [TaskOutcome(str(future.key), result) for future, result in ended if result is not None]
        for outcome in outcomes:
            self._forget(outcome.key)
        if len(outcomes) < len(futures):
            self._connection.renew()
        return outcomes

    def _left_behind(self) -> list[TaskOutcome]:
        """Take back the tasks that were submitted to a scheduler that has gone away."""
        client = self._connection.client
        behind = [key for key, future in self._futures.items() if future.client is not client]
        if behind:
            self._known_workers = None
        for key in behind:
            self._forget(key)
        return [TaskOutcome(key, TaskFailure("the scheduler went away", None, tried=False)) for key in behind]

    def _stranded(self) -> list[TaskOutcome]:
        """Take back the tasks whose workers are all gone, while others may exist."""
        there = self.workers().keys() if self._limited else ()
        stranded = [key for key, others in self._limited.items() if others.isdisjoint(there)]
        for key in stranded:
            self._futures[key].cancel()
            self._forget(key)
        return [TaskOutcome(key, TaskFailure("its workers are gone", None, tried=False)) for key in stranded]

    def _forget(self, key: str) -> None:
        del self._futures[key]
        self._limited.pop(key, None)

    def retire(self, worker: str) -> None:
        """Remove a worker for good."""
        self._known_workers = None
        if self._local:
            self._local.dismiss(worker)
        else:
            self._connection.ask(lambda client: client.retire_workers([worker], close_workers=True))

    @contextmanager
    def plugin(self, plugin: BuildPlugin) -> Iterator[None]:
        """Install a plugin on every worker, including those that join later, for the length of a ``with`` block."""
        self._connection.give(plugin)
        try:
            yield
        finally:
            futures = list(self._futures.values())
            self._futures.clear()
            self._limited.clear()
            if self._connection.running:
                with suppress(*LOST):
                    self._connection.client.cancel(futures)
            self._connection.take_back(plugin)

    def scan_files(
        self, files: Sequence[SourceFile], trusted: Sequence[ScanEntry | None]
    ) -> Iterator[Sequence[ScannedFile]]:
        """Scan files on the workers (a :data:`..scan.scan.FileScanner`); files that they cannot read are scanned here."""
        starts = range(0, len(files), _FILES)
        in_flight: dict[str, int] = {}
        found: dict[int, str | TaskFailure] = {}
        window = submitted = 0

        def submit_block(number: int) -> None:
            block = slice(starts[number], starts[number] + _FILES)
            key = f"scan-{secrets.token_hex(8)}"
            in_flight[key] = number
            self.submit(scan_block, write_files(files[block], trusted[block]), key=key)

        for number, start in enumerate(starts):
            window = window if number % _SAME_WINDOW else self.window()
            for later in range(submitted, min(number + window, len(starts))):
                submit_block(later)
                submitted = later + 1
            while number not in found:
                for outcome in self.ended():
                    block_number = in_flight.pop(outcome.key)
                    if isinstance(outcome.result, TaskFailure) and not outcome.result.tried:
                        submit_block(block_number)
                    else:
                        found[block_number] = outcome.result
            block = slice(start, start + _FILES)
            yield _merged(files[block], trusted[block], found.pop(number))


@contextmanager
def connect(address: str, say: Callable[[str], None] = lambda text: None) -> Iterator[WorkerPool]:
    """Connect to a running scheduler. Raises UserError if it does not answer.

    Parameters
    ----------
    address
        Address of the scheduler.
    say
        Called with a message when the scheduler goes away and when there is one again.
    """
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except NO_ANSWER as error:
        raise UserError(f"--scheduler {address}: no scheduler answers ({error}).") from error
    with silenced_logging(), closing(Connection(client, address, say)) as connection:
        yield WorkerPool(connection, f"scheduler at {address}")


@contextmanager
def start_local_pool(
    processes: int, device: str, say: Callable[[str], None] = lambda text: None
) -> Iterator[WorkerPool]:
    """Start workers on this machine for the length of a ``with`` block; see :func:`.local_workers.local_workers`."""
    with ExitStack() as held:
        local = held.enter_context(local_workers(processes, device, say))
        client = held.enter_context(Client(local.cluster, set_as_default=False))
        address = str(local.cluster.scheduler_address)
        yield WorkerPool(Connection(client, address), f"{processes} worker processes on this machine", local)


def _gathered(client: Client, futures: Sequence[Future[str]]) -> list[tuple[Future[str], str | TaskFailure | None]]:
    """Return each task with its outcome; None if the loss of the scheduler cancelled it."""
    finished = {str(future.key): future for future in futures if future.status == "finished"}
    results: dict[str, str | None] = client.gather(finished, errors="skip") if finished else {}
    ended: list[tuple[Future[str], str | TaskFailure | None]] = []
    for future in futures:
        result: str | TaskFailure | None = results.get(str(future.key))
        if result is None and future.status == "error":  # also one that was lost, and failed when it was repeated
            error = future.exception()
            result = None if isinstance(error, UnknownBuildError) else _failure(error)
        elif result is None and future.status == "lost":
            future.cancel()
            result = TaskFailure("its worker died when it was done", None, tried=False)
        ended.append((future, result))
    return ended


def _failure(error: BaseException) -> TaskFailure:
    if isinstance(error, KilledWorker):
        return TaskFailure("the worker process died", str(error.last_worker.address), error.allowed_failures + 1)
    notes: list[Any] = getattr(error, "__notes__", [])
    text = str(error) if isinstance(error, DistilCacheError) else f"{type(error).__name__}: {error}"
    return TaskFailure(text.strip(), str(notes[0]) if notes else None)


def _merged(
    files: Sequence[SourceFile], trusted: Sequence[ScanEntry | None], result: str | TaskFailure
) -> list[ScannedFile]:
    """Return the scanned files of a block from a worker's answer."""
    answers = [False] * len(files) if isinstance(result, TaskFailure) else read_entries(result)
    scanned: list[ScannedFile] = []
    for file, known, answer in zip(files, trusted, answers, strict=True):
        if isinstance(answer, ScanEntry):
            found: ScanEntry | ImageRejected = answer
        else:
            found = known if answer and known is not None else scan_file(file, known)
        scanned.append(ScannedFile(file, found, found is known))
    return scanned
