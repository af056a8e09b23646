"""Where a build computes, and which part of the plan. None of it changes a value."""

from __future__ import annotations

from dataclasses import dataclass

from ...choices import TRIES
from ...errors import UsageError
from ..planning.plan import PlanPartition

PROTOCOLS = ("tcp", "tls", "ucx", "ws", "wss")


@dataclass(frozen=True)
class Placement:
    """Where a build computes: in this process, in processes on this machine, or on the workers of a scheduler.

    Attributes
    ----------
    scheduler
        Address of a Dask scheduler.
    workers
        Number of processes on this machine.
    part
        Compute only this part of the plan.
    tries
        How often a shard may fail on workers before it is given up.
    """

    scheduler: str | None = None
    workers: int | None = None
    part: PlanPartition | None = None
    tries: int = TRIES

    @classmethod
    def checked(
        cls, scheduler: str | None = None, workers: int | None = None, array: str | None = None, tries: int = TRIES
    ) -> Placement:
        """Return the placement for the given options. Raises UsageError if they contradict each other."""
        if scheduler is not None:
            if workers is not None:
                raise UsageError(
                    "--workers: starts workers on this machine, but --scheduler has its own. Give one of them."
                )
            protocol, found, rest = scheduler.partition("://")
            if not found or protocol not in PROTOCOLS or not rest:
                raise UsageError(f"--scheduler {scheduler}: write the scheduler's address, such as tcp://HOST:8786.")
        if workers is not None and workers < 1:
            raise UsageError(f"--workers {workers}: give the number of processes, 1 or more.")
        if tries < 1:
            raise UsageError(f"--tries {tries}: must be 1 or more.")
        return cls(scheduler, workers, None if array is None else PlanPartition.parse(array), tries)

    @property
    def on_cluster(self) -> bool:
        """Whether other processes compute."""
        return self.scheduler is not None or self.workers is not None

    @property
    def processes(self) -> int:
        """Number of processes that compute at the same time according to the options, over all parts."""
        return (self.workers or 1) * (self.part.of if self.part else 1)
