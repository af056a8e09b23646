"""Run a build on many processes: Dask distributes the tasks of the plan to workers that hold the models.

A worker runs a task as :mod:`..execution.tasks` does; docs/how-to/cluster.md describes the use. ``distributed`` is an optional
dependency that is imported only for a build with workers. Other folders use ``Placement``; the build uses
``open_worker_pool``.
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
    """Start workers on this machine or connect to a scheduler, for the length of a ``with`` block.

    Parameters
    ----------
    placement
        Where the build computes.
    device
        The ``--device`` option.
    progress
        Receives messages.

    Yields
    ------
    WorkerPool or None
        None for a build in this process.

    Raises
    ------
    UserError
        If Dask is not installed, the scheduler does not answer, or the workers do not start.
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
        else start_local_pool(placement.workers or 1, device, progress.say)
    )
    with opened as pool:
        progress.say(f"{pool.name}; dashboard: {pool.dashboard}" if pool.dashboard else pool.name)
        yield pool
