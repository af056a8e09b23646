"""Dispatch shards to workers until each is made, or has failed so often that it is given up.

A shard that raised an exception is tried again, on another worker if there is one. A worker that dies takes down all
its shards, only one of which can be the cause: they go to the end of the queue, and a shard that was present at too
many deaths has its last try alone, so that a shard that kills workers is distinguished from its neighbours. A worker on
which many shards in a row fail is removed. If the fault is common to all workers, the build ends when none is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ...errors import UserError
from ..execution.tasks import TaskReport
from ..planning.plan import Task
from .client import TaskFailure, TaskOutcome, WorkerPool
from .messages import read_report
from .worker import make_shard

MAX_FAILURES_IN_A_ROW = 5
"""Shards in a row that may fail on a worker before it is removed."""


@dataclass
class ShardTask:
    """One task and its state.

    Attributes
    ----------
    id
        Id of the image shard.
    load_task
        Returns the task, which is on disk.
    failures
        Number of failed tries.
    submissions
        How often it was submitted.
    alone
        Whether it is tried without other tasks.
    avoid
        Workers on which it raised an exception.
    last
        Description of its last failure.
    """

    id: str
    load_task: Callable[[], Task]
    failures: int = 0
    submissions: int = 0
    alone: bool = False
    avoid: set[str] = field(default_factory=set)
    last: str = ""

    @property
    def task(self) -> Task:
        """The task."""
        return self.load_task()


class Dispatcher:
    """The shards of a plan and their state: waiting, in flight, waiting to be tried alone, or given up.

    Parameters
    ----------
    pool
        The workers.
    plugin
        Name of the build's plugin on the workers.
    shards
        Shards to make.
    message
        Returns the text that a worker gets for a task.
    tries
        How often a shard may fail.
    say
        Called with a message when a worker is removed or a shard is given up.
    """

    def __init__(
        self,
        pool: WorkerPool,
        plugin: str,
        shards: list[ShardTask],
        message: Callable[[Task], str],
        tries: int,
        say: Callable[[str], None],
    ) -> None:
        self._pool, self._plugin, self._message, self._tries, self._say = pool, plugin, message, tries, say
        self._waiting = deque(shards)
        self._alone: deque[ShardTask] = deque()
        self._in_flight: dict[str, ShardTask] = {}
        self._failed_in_a_row: dict[str, set[str]] = {}
        self._removed: set[str] = set()
        self.failed: list[ShardTask] = []
        self.failures = 0

    def events(self) -> Iterator[tuple[ShardTask, TaskReport] | None]:
        """Yield each finished shard with the worker's report; None when a try failed or some time has passed.

        Raises UserError if the scheduler is gone, or every worker was removed.
        """
        while self._waiting or self._in_flight or self._alone:
            self._submit_waiting()
            outcomes = self._pool.ended()
            for outcome in outcomes:
                yield self._take(outcome)
            if not outcomes:
                yield None

    def _submit_waiting(self) -> None:
        if self._waiting:
            room = self._pool.window() - len(self._in_flight)
            if not self._in_flight:  # every device starts before any worker reads a second shard
                room = len(self._pool.workers()) or room
            for _ in range(min(room, len(self._waiting))):
                self._start(self._waiting.popleft())
        elif self._alone and not self._in_flight:
            shard = self._alone.popleft()
            shard.alone = True
            self._start(shard)

    def _start(self, shard: ShardTask) -> None:
        shard.submissions += 1
        key = f"shard-{shard.id}-{self._plugin}-{shard.submissions}"
        self._in_flight[key] = shard
        self._pool.submit(make_shard, self._plugin, self._message(shard.task), key=key, avoid=shard.avoid)

    def _take(self, outcome: TaskOutcome) -> tuple[ShardTask, TaskReport] | None:
        shard = self._in_flight.pop(outcome.key)
        if isinstance(outcome.result, TaskFailure):
            self._failed(shard, outcome.result)
            return None
        report = read_report(outcome.result)
        self._failed_in_a_row.pop(report.worker, None)
        return shard, report

    def _failed(self, shard: ShardTask, failure: TaskFailure) -> None:
        if not failure.tried:
            self._waiting.append(shard)
            return
        self.failures += 1
        shard.failures += max(1, failure.deaths)
        shard.last = failure.text if failure.worker is None else f"{failure.text} (on {failure.worker})"
        if failure.deaths == 0 and failure.worker is not None:
            shard.avoid.add(failure.worker)
            self._count_failure(failure.worker, shard)
        if failure.deaths and not shard.alone and shard.failures >= self._tries - 1 and self._tries > 1:
            self._alone.append(shard)
        elif shard.failures < self._tries:
            self._waiting.append(shard)
        else:
            self.failed.append(shard)
            self._say(f"shard {shard.id[:16]} is given up: {shard.last}")

    def _count_failure(self, worker: str, shard: ShardTask) -> None:
        """Count a failure on a worker; remove it after too many in a row, and stop if it was the last."""
        failed = self._failed_in_a_row.setdefault(worker, set())
        failed.add(shard.id)
        if len(failed) < MAX_FAILURES_IN_A_ROW:
            return
        self._failed_in_a_row.pop(worker)
        present = self._pool.workers().keys() - self._removed
        if worker in present:
            self._removed.add(worker)
            self._say(
                f"worker {worker} is removed: the last {MAX_FAILURES_IN_A_ROW} shards failed there ({shard.last})"
            )
            self._pool.retire(worker)
        if present == {worker}:
            raise UserError(
                f"every worker was removed because its shards failed. The last error: {shard.last}. "
                "Finished shards are kept. Fix the error and run the same command again."
            )
