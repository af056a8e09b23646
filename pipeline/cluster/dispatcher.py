"""Handing out shards to workers until each is made, or has failed so often that it is set aside.

A shard that raised is tried again, if there is one on a worker where it did not. A worker that dies takes down all shards it had,
and only one of them can be to blame: they go to the end of the line, and one that was there at a death too often has its
last try alone, so that a shard which kills workers is told from its neighbours. A worker on which many shards
in a row fail is sent away: the fault is then its own, or everybody's, and in that case the build ends when nobody is left.
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
"""Shards in a row that fail on a worker before it is sent away."""


@dataclass
class ShardTask:
    """One task on its way.

    failures : tries that failed; avoid : workers on which it raised; last : how it failed last. handed_in : how often.
    """

    id: str
    task: Task
    failures: int = 0
    handed_in: int = 0
    alone: bool = False
    avoid: set[str] = field(default_factory=set)
    last: str = ""


class Dispatcher:
    """The shards of a plan and where they are: waiting, under way, waiting to be tried alone, or set aside.

    plugin : name under which the workers know the build. message : writes the text that a worker gets for a task.
    tell : called with a sentence when a worker is sent away or a shard is set aside.
    """

    def __init__(
        self,
        pool: WorkerPool,
        plugin: str,
        shards: list[ShardTask],
        message: Callable[[Task], str],
        tries: int,
        tell: Callable[[str], None],
    ) -> None:
        self._pool, self._plugin, self._message, self._tries, self._tell = pool, plugin, message, tries, tell
        self._waiting = deque(shards)
        self._alone: deque[ShardTask] = deque()
        self._flying: dict[str, ShardTask] = {}
        self._rows: dict[str, set[str]] = {}
        self._away: set[str] = set()
        self.aside: list[ShardTask] = []
        self.failures = 0

    def events(self) -> Iterator[tuple[ShardTask, TaskReport] | None]:
        """Yield each shard that is made, with the worker's report; None where a try failed, or just time passed.

        UserError if the scheduler is gone, or every worker was sent away.
        """
        while self._waiting or self._flying or self._alone:
            self._hand_out()
            outcomes = self._pool.ended()
            for outcome in outcomes:
                yield self._take(outcome)
            if not outcomes:
                yield None

    def _hand_out(self) -> None:
        if self._waiting:
            room = self._pool.window() - len(self._flying)
            if not self._flying:  # every device begins before anybody reads a second shard
                room = len(self._pool.workers()) or room
            for _ in range(min(room, len(self._waiting))):
                self._start(self._waiting.popleft())
        elif self._alone and not self._flying:
            shard = self._alone.popleft()
            shard.alone = True
            self._start(shard)

    def _start(self, shard: ShardTask) -> None:
        shard.handed_in += 1
        key = f"shard-{shard.id}-{self._plugin}-{shard.handed_in}"
        self._flying[key] = shard
        self._pool.submit(make_shard, self._plugin, self._message(shard.task), key=key, avoid=shard.avoid)

    def _take(self, outcome: TaskOutcome) -> tuple[ShardTask, TaskReport] | None:
        shard = self._flying.pop(outcome.key)
        if isinstance(outcome.result, TaskFailure):
            self._failed(shard, outcome.result)
            return None
        report = read_report(outcome.result)
        self._rows.pop(report.worker, None)
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
            self._blame(failure.worker, shard)
        if failure.deaths and not shard.alone and shard.failures >= self._tries - 1 and self._tries > 1:
            self._alone.append(shard)
        elif shard.failures < self._tries:
            self._waiting.append(shard)
        else:
            self.aside.append(shard)
            self._tell(f"shard {shard.id[:16]} is set aside: {shard.last}")

    def _blame(self, worker: str, shard: ShardTask) -> None:
        """Note a failure on a worker; send it away after too many in a row, and stop if it was the last."""
        row = self._rows.setdefault(worker, set())
        row.add(shard.id)
        if len(row) < MAX_FAILURES_IN_A_ROW:
            return
        self._rows.pop(worker)
        there = self._pool.workers().keys() - self._away
        if worker in there:
            self._away.add(worker)
            self._tell(
                f"worker {worker} is sent away: the last {MAX_FAILURES_IN_A_ROW} shards failed there ({shard.last})"
            )
            self._pool.retire(worker)
        if there == {worker}:
            raise UserError(
                f"every worker was sent away, because shard after shard failed. The last said: {shard.last}. "
                "What was finished is kept: mend that and run the same command again."
            )
