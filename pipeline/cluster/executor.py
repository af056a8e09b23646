"""Run the tasks of a plan on a worker pool: send messages, receive reports, show progress, and name failed shards."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from ... import __version__
from ...cache.store import FeatureStore
from ...errors import UserError
from ...features.registry import FEATURES
from ...models.addresses import absolute_name
from ...models.diffusion.checkpoints import OFFICIAL, SHIPPED
from ...models.weights import split_choice
from ...progress import Progress
from ..config import BuildConfig, threads_each
from ..execution.deviation import Deviation
from ..execution.tasks import TaskReport
from ..planning.estimate import task_calls
from ..planning.plan import Task
from ..planning.prepare import BuildPlan
from ..sources.file import SourceFile, printable
from .client import TaskFailure, TaskOutcome, WorkerPool
from .dispatcher import Dispatcher, ShardTask
from .local_workers import kind_of_device
from .messages import OpenBuild, write_task
from .placement import Placement
from .worker import BuildPlugin, measure

VISIBLE_SECONDS = 120.0
"""How long a network file system may take until this machine sees what workers wrote."""
_NAMED = 5
"""Failed shards that an error names."""


class ClusterExecutor:
    """Runs the tasks of a build on a worker pool, inside a ``with pool.plugin(executor.plugin)`` block.

    Attributes
    ----------
    plugin
        The build's plugin for the workers.
    failures
        Number of failed tries so far.
    """

    def __init__(
        self,
        pool: WorkerPool,
        config: BuildConfig,
        ready: BuildPlan,
        placement: Placement,
        progress: Progress,
        make_plugin: Callable[[str, str], BuildPlugin] = BuildPlugin,
    ) -> None:
        self._pool, self._config, self._ready, self._placement, self._progress = (
            pool,
            config,
            ready,
            placement,
            progress,
        )
        name = f"build-{secrets.token_hex(4)}"
        self.plugin = make_plugin(name, _request(config, ready, placement).model_dump_json())
        self._dispatch: Dispatcher | None = None

    @property
    def failures(self) -> int:
        """Number of failed tries so far."""
        return self._dispatch.failures if self._dispatch else 0

    def reports(self) -> Iterator[TaskReport]:
        """Yield the workers' report of each task.

        Raises UserError if the scheduler went away for good, or at the end, after all other shards are made, for shards
        that failed too often.
        """
        ready, progress = self._ready, self._progress
        files = ready.files()
        images = ready.stores["image"]
        tasks = ready.plan.tasks
        shards = [
            ShardTask(task.image_shard or images.shard_id(task.keys), partial(tasks.__getitem__, number))
            for number, task in enumerate(tasks)
        ]
        self._dispatch = Dispatcher(
            self._pool,
            self.plugin.name,
            shards,
            lambda task: write_task(task, files),
            self._placement.tries,
            progress.say,
        )
        progress.start("shards", len(shards))
        rates = Throughput()
        made: dict[str, set[str]] = {}
        for event in self._dispatch.events():
            if event is not None:
                shard, report = event
                rates.add(report.worker, len(shard.task.keys))
                self._advance(shard.task)
                for feature, made_shard in report.done.shards.items():
                    made.setdefault(feature, set()).add(made_shard)
                yield report
            progress.note("shards", rates.text(self._pool.workers(), self.failures))
        _wait_until_visible(ready.stores, made)
        if self._dispatch.failed:
            raise _shards_failed(self._dispatch.failed, len(shards), self._placement.tries, files)

    def deviation(self, keys: Collection[str]) -> Deviation | None:
        """Compare reduced precision with float32 on a worker, for these images; return None if that failed."""
        while True:
            key = f"deviation-{self.plugin.name}-{secrets.token_hex(4)}"
            self._pool.submit(measure, self.plugin.name, json.dumps(list(keys)), key=key)
            outcomes: list[TaskOutcome] = []
            while not outcomes:
                outcomes = self._pool.ended()
            result = outcomes[0].result
            if not isinstance(result, TaskFailure):
                return Deviation(**json.loads(result))
            if result.tried:
                self._progress.say(f"reduced precision could not be compared with float32: {result.text}")
                return None

    def _advance(self, task: Task) -> None:
        ready, progress = self._ready, self._progress
        progress.advance("shards", 1)
        if task.image_shard is None:
            progress.advance("image", len(task.keys))
        for unit, calls in task_calls(task, ready.producers).items():
            progress.advance(unit, calls)


class Throughput:
    """Images a second of each worker since the build began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._images: Counter[str] = Counter()

    def add(self, worker: str, images: int) -> None:
        """Add images that a worker has finished."""
        self._images[worker] += images

    def text(self, workers: Collection[str], failures: int) -> str:
        """Return a line with the number of workers, their rates and the failed tries."""
        if not workers:
            return "waiting for a worker"
        seconds = max(time.monotonic() - self._began, 1e-9)
        rates = sorted(images / seconds for worker, images in self._images.items() if worker in workers) or [0.0]
        failed = f"; {failures} failed tries" if failures else ""
        each = f"{rates[0]:.2f} to {rates[-1]:.2f}" if len(rates) > 1 else f"{rates[0]:.2f}"
        return f"{len(workers)} workers, {each} images/s each{failed}"


def _request(config: BuildConfig, ready: BuildPlan, placement: Placement) -> OpenBuild:
    """Return what a worker must know. Settings that were not given take the defaults of the worker's machine."""
    assert ready.cache is not None
    changes: dict[str, object] = {"cache": config.cache.absolute()}
    if config.adm_config is not None:
        changes["adm_config"] = config.adm_config.absolute()
    for field in ("teacher_weights", "embedding_weights", "autoencoder", "lpips"):
        if (weights := getattr(config, field)) is not None:
            changes[field] = absolute_name(str(weights))
    if split_choice(config.adm)[0] not in (*SHIPPED, *OFFICIAL):
        changes["adm"] = absolute_name(config.adm)
    if placement.workers is not None:
        changes |= {
            "decode_threads": threads_each(placement.workers),
            "device": kind_of_device(config.device),
        }
    sent = config.model_copy(update=changes)
    return OpenBuild(
        version=__version__,
        config=sent.model_dump(mode="json", exclude_unset=True),
        fingerprints={feature: spec.fingerprint() for feature, spec in ready.specs.items()},
        image_algorithm=ready.specs["image"].algorithm,
        lease=ready.lease,
        pictures=ready.originals.folder.name if ready.originals else None,
        packages={feature: str(package) for feature in ready.specs if (package := FEATURES.package(feature))},
    )


def _wait_until_visible(stores: Mapping[str, FeatureStore], made: Mapping[str, set[str]]) -> None:
    """Wait until this machine sees the shards that workers made. Raises UserError if it does not."""
    end = time.monotonic() + VISIBLE_SECONDS
    for feature, shards in made.items():
        while absent := shards - set(stores[feature].marker_ids()):
            if time.monotonic() > end:
                raise UserError(
                    f"{stores[feature].folder}: {len(absent)} shards that workers made are not visible here. "
                    "Put the cache on a file system that all machines share, and run the same command again."
                )
            time.sleep(0.5)


def _shards_failed(failed: Sequence[ShardTask], shards: int, tries: int, files: Mapping[str, SourceFile]) -> UserError:
    """Return the error that names the failed shards."""
    named = [f"{shard.id[:16]} ({_first_file(shard, files)}{shard.last})" for shard in failed[:_NAMED]]
    more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return UserError(
        f"{len(failed)} of {shards} shards failed in each of {tries} tries: {'; '.join(named)}{more}. "
        "All other shards are kept. Run the same command again to retry these."
    )


def _first_file(shard: ShardTask, files: Mapping[str, SourceFile]) -> str:
    key = shard.task.keys[0]
    return f"its first file {printable(files[key].location)}: " if key in files else ""
