"""A build on many processes: the tasks of the plan, handed out by Dask to workers that each hold the models.

What a worker does with a task is what the loop of :mod:`..execution.tasks` does; see docs/cluster.md for how it is used. ``distributed``
is an optional dependency: it is imported when a build asks for workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...errors import UserError
from ...progress import Progress
from .placement import Placement

if TYPE_CHECKING:
    from .client import WorkerPool

__all__ = ["Placement", "open_worker_pool"]


@contextmanager
def open_worker_pool(placement: Placement, device: str, progress: Progress) -> Iterator[WorkerPool | None]:
    """Start the workers of this machine, or connect to a scheduler; yields None for a build in this process.

    device : what ``--device`` says. Raises UserError if Dask is not installed, the scheduler does not answer, or the
    workers do not start.
    """
    if not placement.on_cluster:
        yield None
        return
    if find_spec("distributed") is None:
        option = "--scheduler" if placement.scheduler else "--workers"
        raise UserError(f"{option}: needs Dask. Install it with: pip install 'distil-cache[cluster]'")
    from .client import connect, start_local_pool

    opened = (
        connect(placement.scheduler, progress.say)
        if placement.scheduler
        else start_local_pool(placement.workers or 1, device)
    )
    with opened as pool:
        progress.say(f"{pool.name}; dashboard: {pool.dashboard}")
        yield pool
