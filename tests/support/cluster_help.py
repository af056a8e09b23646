"""Builds on workers for the tests of the cluster: small material, workers in threads of this process, and broken plugins."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from distil_cache.cache.store import Cache
from distil_cache.pipeline.cluster.client import WorkerPool
from distil_cache.pipeline.cluster.executor import ClusterExecutor
from distil_cache.pipeline.cluster.messages import read_task
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.cluster.worker import BuildPlugin
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.context import TaskContext
from distil_cache.pipeline.execution.tasks import TaskReport
from distil_cache.pipeline.planning.prepare import prepare
from distil_cache.pipeline.sources.file import SourceFile
from distil_cache.progress import Silent
from distil_cache.storage import AnyPath
from distributed import LocalCluster
from small_models import STEPS

SHARD = 4


def config_of(material: Path, cache: AnyPath, **changes: Any) -> BuildConfig:
    values: dict[str, Any] = {
        "sources": (material / "images",), "cache": cache, "dataset": "noise", "adm": str(material / "adm.safetensors"),
        "teacher": "small", "teacher_weights": material / "teacher.safetensors", "steps": STEPS, "batch_size": 4,
        "shard_size": SHARD, "device": "cpu",
    }  # fmt: skip
    return BuildConfig.checked(**{**values, **changes})


def arguments_of(material: Path, cache: Path) -> list[str]:
    """The same build as arguments of the command."""
    return [
        "build", str(material / "images"), "--cache", str(cache), "--dataset", "noise", "--steps", STEPS,
        "--adm", str(material / "adm.safetensors"), "--teacher", "small",
        "--teacher-weights", str(material / "teacher.safetensors"), "--batch-size", "4", "--shard-size", str(SHARD),
        "--device", "cpu",
    ]  # fmt: skip


@contextmanager
def scheduler_here(workers: int, grow_to: int = 0) -> Iterator[str]:
    """Run a scheduler and workers in threads of this process; yields the scheduler's address.

    grow_to : let Dask start up to this many workers when there is work, and end them when there is none.
    """
    with LocalCluster(
        n_workers=workers, threads_per_worker=3, processes=False, host="127.0.0.1", protocol="tcp",
        dashboard_address="127.0.0.1:0", worker_dashboard_address=None, memory_limit=0, silence_logs=50,
    ) as cluster:  # fmt: skip
        if grow_to:
            cluster.adapt(minimum=0, maximum=grow_to, interval="100ms")
        yield cluster.scheduler_address


@contextmanager
def work_on(
    pool: WorkerPool,
    config: BuildConfig,
    plugin: Callable[[str, str], BuildPlugin] = BuildPlugin,
    *,
    tries: int = 4,
    progress: Silent | None = None,
) -> Iterator[ClusterExecutor]:
    """Prepare a build and give the workers its plugin, or one of the tests' own."""
    progress = progress or Silent()
    with ExitStack() as held:
        ready = prepare(config, progress, held, dry_run=False, scanner=pool.scan_files)
        work = ClusterExecutor(pool, config, ready, Placement(tries=tries), progress, plugin)
        held.enter_context(pool.plugin(work.plugin))
        yield work


def first_shard(cache: Path) -> tuple[str, tuple[str, ...]]:
    """Return id and keys of the image shard with the smallest key."""
    (store,) = [store for store in Cache.open(cache).features() if store.feature == "image"]
    first = min(store.markers(), key=lambda marker: marker.keys)
    return first.shard, first.keys


def wait_for(path: str) -> str:
    """Wait until a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)
    return path


class FaultyPlugin(BuildPlugin):
    """Does something wrong; ``target`` says to which first key of a task, or on which worker."""

    target = ""

    def hits(self, message: str) -> bool:
        task, _ = read_task(message)
        return task.keys[0] == self.target

    @classmethod
    def at(cls, target: str) -> Callable[[str, str], BuildPlugin]:
        def make(name: str, request: str) -> BuildPlugin:
            plugin = cls(name, request)
            plugin.target = target
            return plugin

        return make


class RaisingPlugin(FaultyPlugin):
    """Raises over one task. ``where`` : the workers on which it did."""

    where: ClassVar[list[str]] = []

    def _make(self, message: str, context: TaskContext) -> TaskReport:
        if self.hits(message):
            self.where.append(self._address)
            raise RuntimeError("a bug over this picture")
        return super()._make(message, context)


class BlindPlugin(FaultyPlugin):
    """Fails whatever it gets on one of the workers."""

    def _make(self, message: str, context: TaskContext) -> TaskReport:
        if self._address == self.target:
            raise OSError("this worker's disk is gone")
        return super()._make(message, context)


class GatedPlugin(FaultyPlugin):
    """Lets four tasks through, and all others when ``go`` is there; writes down what each did. ``target`` : the folder for that."""

    def _make(self, message: str, context: TaskContext) -> TaskReport:
        folder = Path(self.target)
        task, _ = read_task(message)
        if len(list(folder.glob("*.done"))) >= 4:
            wait_for(f"{folder}/go")
        report = super()._make(message, context)
        (folder / f"{task.keys[0]} {os.getpid()}-{time.monotonic_ns()}.done").write_text(str(report.done.adm_calls))
        return report


class LethalPlugin(FaultyPlugin):
    """Kills its process over one task."""

    def _make(self, message: str, context: TaskContext) -> TaskReport:
        if self.hits(message):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._make(message, context)


class SmallDevicePlugin(BuildPlugin):
    """Has a device whose memory holds two images at a time. ``refused`` counts the batches that did not fit."""

    refused = 0

    def open_build(self, files: Mapping[str, SourceFile]) -> TaskContext:
        context = super().open_build(files)
        model = context.models.adm

        def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                SmallDevicePlugin.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(x, t)

        context.models.adm = call
        return context
