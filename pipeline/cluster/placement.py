"""Where a build computes, and which part of it: nothing of this decides a value."""

from __future__ import annotations

from dataclasses import dataclass

from ...choices import TRIES
from ...errors import UsageError
from ..planning.plan import PlanPartition

PROTOCOLS = ("tcp", "tls", "ucx", "ws", "wss")


@dataclass(frozen=True)
class Placement:
    """In this process, in ``workers`` processes of this machine, or on the workers of ``scheduler``.

    part : only this part of the plan. tries : how often a shard may fail on workers before it is set aside.
    """

    scheduler: str | None = None
    workers: int | None = None
    part: PlanPartition | None = None
    tries: int = TRIES

    @classmethod
    def checked(
        cls, scheduler: str | None = None, workers: int | None = None, array: str | None = None, tries: int = TRIES
    ) -> Placement:
        """Return the placement that these options ask for; UsageError if they do not go together."""
        if scheduler is not None:
            if workers is not None:
                raise UsageError("--workers: starts workers here, and --scheduler has its own. Give one of them.")
            protocol, found, rest = scheduler.partition("://")
            if not found or protocol not in PROTOCOLS or not rest:
                raise UsageError(f"--scheduler {scheduler}: write the scheduler's address, such as tcp://HOST:8786.")
        if workers is not None and workers < 1:
            raise UsageError(f"--workers {workers}: give the number of processes, from 1 on.")
        if tries < 1:
            raise UsageError(f"--tries {tries}: a shard must be tried at least once.")
        return cls(scheduler, workers, None if array is None else PlanPartition.parse(array), tries)

    @property
    def on_cluster(self) -> bool:
        """Whether other processes compute."""
        return self.scheduler is not None or self.workers is not None

    @property
    def processes(self) -> int:
        """How many processes compute at the same time, as far as the options say: here, and in the parts together."""
        return (self.workers or 1) * (self.part.of if self.part else 1)
