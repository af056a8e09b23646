"""Start workers on this machine: one process per GPU, or a number of CPU processes.

All sockets listen on the loopback interface only, and connections are encrypted with a key that exists as long as the
build: any process that can connect to a Dask scheduler can run code as its user, and a machine may have other users.
Dask's dashboard, which asks nobody for a key and whose server also passes requests on to others, is not served.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import dask
import torch
from distributed import Nanny, Scheduler, SpecCluster, Status, Worker
from distributed.security import Security

from ...errors import UsageError, UserError
from ..config import threads_each

LOOPBACK = "127.0.0.1"
STARTS = 3
"""How often workers are started before a build without any ends."""
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


class UnservedScheduler(Scheduler):
    """A scheduler without a server for HTTP."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Bind nothing."""


class UnservedWorker(Worker):
    """A worker without a server for HTTP."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Bind nothing."""


class LocalWorkers:
    """The worker processes of this machine. A nanny in this process restarts each when it dies."""

    def __init__(self, cluster: SpecCluster) -> None:
        self.cluster = cluster

    def start(self, workers: Mapping[int, Mapping[str, Any]], say: Callable[[str], None]) -> None:
        """Start workers, and wait until at least one runs. One that dies while it starts is started again later.

        Raises
        ------
        UserError
            If none of them starts.
        """
        self.cluster.worker_spec.update(workers)
        for _ in range(STARTS):
            error = self.cluster.sync(self._start_lacking)
            running = sum(nanny.status is Status.running for nanny in self.cluster.workers.values())
            if running == len(workers):
                return
            if running:
                say(
                    f"{len(workers) - running} of {len(workers)} workers died while they started; they are started again"
                )
                return
        raise UserError(f"--workers {len(workers)}: the workers did not start ({error}).")

    def revive(self) -> None:
        """Start workers again whose nanny gave up, as it does when a worker dies while it starts. Does not wait for them."""
        loop = self.cluster.loop
        assert loop is not None  # the cluster is running
        loop.add_callback(self._start_lacking)

    async def _start_lacking(self) -> Exception | None:
        """Start the workers that are lacking; return what went wrong with the first that did not start."""
        self._drop_closed()
        try:
            await self.cluster._correct_state()  # what `scale` leaves to itself, and whose errors nobody would hear
        except (OSError, RuntimeError, TimeoutError) as error:
            self._drop_closed()  # a client waits for every nanny that is there
            return error
        return None

    def _drop_closed(self) -> None:
        """Forget the nannies that gave up, so that workers are started in their place."""
        for name, nanny in list(self.cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del self.cluster.workers[name]

    def dismiss(self, address: str) -> None:
        """Stop a worker for good."""

        async def remove() -> None:
            for name, nanny in list(self.cluster.workers.items()):
                if nanny.worker_address == address:
                    self.cluster.worker_spec.pop(name)
                    await nanny.close()

        self.cluster.sync(remove)


@contextmanager
def local_workers(processes: int, device: str, say: Callable[[str], None]) -> Iterator[LocalWorkers]:
    """Run a scheduler and workers for the length of a ``with`` block.

    Parameters
    ----------
    processes
        Number of workers.
    device
        The ``--device`` option.
    say
        Called with a message if some of the workers do not start at once.

    Raises
    ------
    UserError
        If none of them starts.
    """
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
                "worker_class": UnservedWorker,
                "preload": [_IGNORE_ENDINGS],
                "env": environment,
                "silence_logs": logging.CRITICAL,
            },
        }
        for number, environment in enumerate(environments(processes, device))
    }
    scheduler = {"cls": UnservedScheduler, "options": {**common, "port": 0, "dashboard": False}}
    settings = {
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(THREAD_LIMITS, threads),
        "distributed.scheduler.allowed-failures": 0,  # the dispatcher counts failures itself
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.deploy.lost-worker-timeout": "1 day",  # Dask gives up workers that take long to restart
        "distributed.logging.distributed": "critical",
        **QUIET_SETTINGS,
    }
    _start_quiet_tracker()
    with _restored(THREAD_LIMITS), dask.config.set(settings):
        try:
            cluster = SpecCluster(workers={}, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise UserError(f"--workers {processes}: Dask's scheduler did not start ({error}).") from error
        with cluster:
            local = LocalWorkers(cluster)
            local.start(workers, say)
            yield local


def _start_quiet_tracker() -> None:
    """Start Python's tracker of semaphores, which removes what a killed worker left, without its lines on how many."""
    with _restored(("PYTHONWARNINGS",)), suppress(OSError):
        asked = os.environ.get("PYTHONWARNINGS")
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (asked, "ignore:resource_tracker")))
        resource_tracker.ensure_running()


@contextmanager
def _restored(names: tuple[str, ...]) -> Iterator[None]:
    """Restore environment variables afterwards: they are set for the processes that are started meanwhile."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
