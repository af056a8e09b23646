"""Start workers on this machine: one process per GPU, or a number of CPU processes.

All sockets listen on the loopback interface only, and connections are encrypted with a key that exists as long as the
build: any process that can connect to a Dask scheduler can run code as its user, and a machine may have other users.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask
import torch
from distributed import Nanny, Scheduler, SpecCluster, Status
from distributed.security import Security

from ...errors import UsageError, UserError
from ..config import threads_each

LOOPBACK = "127.0.0.1"
OVERLAP = 3
"""Tasks of a worker: one reads, one is computed, one is written."""
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_IGNORE_ENDINGS = "import signal\n" + "\n".join(
    f"signal.signal(signal.{name}, signal.SIG_IGN)" for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)
)
"""Run by each worker as it starts: Ctrl-C and the end of a terminal reach all processes, but the build ends its workers
itself. SIGTERM keeps its meaning: Python ends stray processes with it."""
QUIET_SETTINGS = {
    "distributed.worker.profile.enabled": False,  # samples every thread a hundred times a second
    "distributed.admin.tick.interval": "1s",  # 20 ms by default, to notice an event loop that hangs
    "distributed.admin.system-monitor.interval": "5s",  # the dashboard's curves, twice a second by default
    "distributed.admin.system-monitor.disk": False,
}
"""Settings of Dask with which a worker that waits for its device does not use the CPU."""


def kind_of_device(device: str) -> str:
    """Return ``cuda`` or ``cpu``: where the processes compute for an option ``--device``.

    It is told to them in place of ``auto``, so that one whose GPU fails says so and does not compute on its CPU.

    Raises
    ------
    UsageError
        If ``device`` names a single GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: with --workers each process uses its own GPU. Leave it out, or use cpu.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def environments(processes: int, device: str) -> list[dict[str, str]]:
    """Return the environment of each process: one GPU each, or none if they compute on the CPU.

    A process sees one MIG instance, however many its environment names, so these are counted by their names.

    Raises
    ------
    UsageError
        If ``device`` names a GPU, or there are fewer GPUs than processes.
    """
    if kind_of_device(device) == "cpu":
        return [{"CUDA_VISIBLE_DEVICES": ""} for _ in range(processes)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ""
    names = [name.strip() for name in visible.split(",") if name.strip()]
    instances = bool(names) and names[0].startswith("MIG-")
    count = len(names) if instances else torch.cuda.device_count()
    if processes > count:
        kind = "MIG instances in CUDA_VISIBLE_DEVICES" if instances else "GPUs"
        raise UsageError(f"--workers {processes}: this machine has {count} {kind}, and each worker needs one.")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in (names or [str(number) for number in range(count)])[:processes]]


class LocalWorkers:
    """The worker processes of this machine. A nanny in this process restarts each when it dies."""

    def __init__(self, cluster: SpecCluster) -> None:
        self.cluster = cluster

    def revive(self) -> None:
        """Start workers again whose nanny gave up, as it does when a worker dies while it starts."""

        async def replace() -> None:
            for name, nanny in list(self.cluster.workers.items()):
                if nanny.status in (Status.closed, Status.failed):
                    del self.cluster.workers[name]
            self.cluster.scale(len(self.cluster.worker_spec))

        self.cluster.sync(replace)

    def dismiss(self, address: str) -> None:
        """Stop a worker for good."""

        async def remove() -> None:
            for name, nanny in list(self.cluster.workers.items()):
                if nanny.worker_address == address:
                    self.cluster.worker_spec.pop(name)
                    await nanny.close()

        self.cluster.sync(remove)


@contextmanager
def local_workers(processes: int, device: str) -> Iterator[LocalWorkers]:
    """Run a scheduler and workers for the length of a ``with`` block. Raises UserError if they do not start."""
    security = Security.temporary()
    threads = str(threads_each(processes))
    common: dict[str, Any] = {"host": LOOPBACK, "protocol": "tls://", "security": security}
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                **common,
                "nthreads": OVERLAP,
                "memory_limit": 0,  # data goes to the cache and never stays in a worker
                "dashboard_address": f"{LOOPBACK}:0",
                "preload": [_IGNORE_ENDINGS],
                "env": environment,
                "silence_logs": logging.CRITICAL,
            },
        }
        for number, environment in enumerate(environments(processes, device))
    }
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0, "dashboard_address": f"{LOOPBACK}:0"}}
    settings = {
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(THREAD_LIMITS, threads),
        "distributed.scheduler.allowed-failures": 0,  # the dispatcher counts failures itself
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.deploy.lost-worker-timeout": "1 day",  # Dask gives up workers that take long to restart
        "distributed.logging.distributed": "critical",
        **QUIET_SETTINGS,
    }
    with _restored(THREAD_LIMITS), dask.config.set(settings):
        try:
            cluster = SpecCluster(
                workers=workers, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL
            )
        except (OSError, RuntimeError, TimeoutError) as error:
            raise UserError(f"--workers {processes}: the workers did not start ({error}).") from error
        with cluster:
            yield LocalWorkers(cluster)


@contextmanager
def _restored(names: tuple[str, ...]) -> Iterator[None]:
    """Restore environment variables afterwards: Dask sets them here for the processes that it starts."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
