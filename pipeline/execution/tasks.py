"""Tasks from plan to cache: the next one's images are read, and the last one's features written, while one is computed.

A batch never crosses a task's shard and has one shape, so a build that was interrupted computes with the very batches of
an undisturbed one. Memory holds three tasks, whatever the size of the build.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ...cache.store import FeatureStore
from ...models.device import device_name
from ...progress import Progress
from ..config import BuildConfig
from ..planning.plan import FEATURES, Task
from ..planning.prepare import BuildPlan
from .compute import compute, load_models
from .context import TaskContext
from .deviation import Deviation, deviation_on
from .load import TaskImages
from .transfer import Rows


@dataclass
class TaskResult:
    """What one task did.

    computed : rows by feature. adm_calls : images x ADM calls. unusable : why keys have no image.
    shards : feature -> id of the shard that holds these rows. seconds : the device's time, without loading models.
    batch_size : images in an ADM call at the end; None if there was none.
    """

    computed: dict[str, int] = field(default_factory=dict)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    batch_size: int | None = None


@dataclass(frozen=True)
class TaskReport:
    """What became of one task, by which worker (empty: this process), on a device of which name."""

    done: TaskResult
    worker: str
    device: str


@dataclass(frozen=True)
class _Made:
    """What the device made for a task: feature -> rows, images x ADM calls, seconds, and the batch size at the end."""

    rows: Mapping[str, Rows]
    calls: int
    seconds: float
    batch_size: int | None


def run_tasks(tasks: Sequence[Task], context: TaskContext) -> Iterator[TaskResult]:
    """Run the tasks in order; each is yielded when all that it made is committed. Idempotent: what is there stays."""
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        coming = [reader.submit(context.images.load, task) for task in tasks[:1]]
        writing: list[Future[TaskResult]] = []
        for number, task in enumerate(tasks):
            images = coming.pop().result()
            coming += [reader.submit(context.images.load, after) for after in tasks[number + 1 : number + 2]]
            writing_images = writer.submit(commit_images, task, images, context)
            made = _compute(task, images, context)
            shards = writing_images.result()
            for earlier in writing:
                yield earlier.result()
            writing = [writer.submit(_finish, task, images, made, shards, context)]
        for last in writing:
            yield last.result()


def run_task(task: Task, images: TaskImages, context: TaskContext, device: Executor) -> TaskResult:
    """Run one task whose images were read, among others of this process that wait for the same device.

    device : the one thread in which everything is computed. Each thread that computes on a CPU brings OpenMP threads of its
    own, and when there are more of these than cores, all of them wait for each other.
    """
    shards = commit_images(task, images, context)
    made = device.submit(_compute, task, images, context).result()
    return _finish(task, images, made, shards, context)


def still_missing(task: Task, stores: Mapping[str, FeatureStore]) -> tuple[Task, TaskResult]:
    """Divide a task into what is left of it and what came since it was planned, by another builder or one that was lost.

    Returns the rest, which misses nothing if all is there, and what is there as if it had just been done.
    """
    found = TaskResult()
    rest = task
    image = stores["image"]
    shard = image.shard_id(task.keys)
    if task.image_shard is None and image.has(shard):
        keys = image.marker(shard).keys
        stored = frozenset(keys)
        kept = {name: tuple(key for key in wanted if key in stored) for name, wanted in task.missing.items()}
        found.computed["image"], found.shards["image"] = len(keys), shard
        rest = Task(shard, keys, {name: wanted for name, wanted in kept.items() if wanted and name != "image"})
    if rest.image_shard is not None:
        for name, wanted in rest.missing.items():
            shard = stores[name].shard_id(wanted)
            if stores[name].has(shard):
                found.computed[name], found.shards[name] = len(wanted), shard
        missing = {name: wanted for name, wanted in rest.missing.items() if name not in found.shards}
        rest = Task(rest.image_shard, rest.keys, missing)
    return rest, found


def _compute(task: Task, images: TaskImages, context: TaskContext) -> _Made:
    load_models(task, images, context)
    began = time.perf_counter()
    rows, calls = compute(task, images, context)
    return _Made(rows, calls, time.perf_counter() - began, context.models.adm_batch.size if calls else None)


def commit_images(task: Task, images: TaskImages, context: TaskContext) -> dict[str, str]:
    """Commit the images that were decoded for a task; returns ``image`` -> id of their shard if there are any.

    Keys whose bytes cannot be decoded go into the marker with the reason and are never tried again. Those whose file is
    gone are left out of the shard, so the next build wants them again.
    """
    if task.image_shard is not None:
        return {}
    planned = [key for key in task.keys if key not in images.gone]
    shards = {}
    if planned:
        marker = context.stores["image"].commit(planned, images.pixels, keys=images.keys, rejected=images.bad)
        shards["image"] = marker.shard
    context.progress.advance("image", len(task.keys))
    return shards


def _finish(task: Task, images: TaskImages, made: _Made, shards: Mapping[str, str], context: TaskContext) -> TaskResult:
    """Commit what was computed for a task, each feature after those that it is made of."""
    computed = {"image": len(images.keys)} if task.image_shard is None else {}
    there = dict(shards)
    for feature in FEATURES:
        keys = images.lacking(task, feature)
        if feature in made.rows and keys:
            there[feature] = context.stores[feature].commit(keys, made.rows[feature]).shard
            computed[feature] = len(keys)
    unusable = {**images.bad, **images.gone}
    return TaskResult(computed, made.calls, unusable, there, made.seconds, made.batch_size)


class InProcessExecutor:
    """One build's work in the loop of :func:`.tasks.run_tasks`. ``context`` : what its tasks share."""

    def __init__(self, config: BuildConfig, ready: BuildPlan, progress: Progress) -> None:
        self._tasks = ready.plan.tasks
        self.context = TaskContext.of(config, ready, ready.files(), progress)

    def reports(self) -> Iterator[TaskReport]:
        """Do the tasks; yields what became of each."""
        name = device_name(self.context.models.device, of_machine=True)
        return (TaskReport(done, "", name) for done in run_tasks(self._tasks, self.context))

    def deviation(self, keys: Sequence[str]) -> Deviation:
        """Compare reduced precision with float32 on these cached images."""
        return deviation_on(self.context, keys)
