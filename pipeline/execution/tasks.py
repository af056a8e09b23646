"""Run tasks as a pipeline: while one is computed, the next one's images are read and the last one's features written.

All batches have one shape and none crosses a shard, so a build that was interrupted uses the same batches as an
undisturbed one. Memory holds at most three tasks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ...cache.store import FeatureStore
from ...features.walk import CALLS
from ...models.device import arithmetic, device_name, is_out_of_memory
from ...models.transfer import HostArray
from ...progress import Progress
from ..config import BuildConfig
from ..planning.estimate import task_calls
from ..planning.plan import Task
from ..planning.prepare import BuildPlan
from .compute import compute, load_models
from .context import TaskContext
from .deviation import Deviation, deviation_on
from .load import TaskImages


@dataclass
class TaskResult:
    """Result of one task.

    Attributes
    ----------
    computed
        Feature -> number of rows that were computed, or decoded.
    taken_over
        Feature -> number of rows that are those of an earlier algorithm; for images, decoded and found equal.
    adm_calls
        Images x ADM calls.
    unusable
        Key without an image -> ``reason: detail``.
    shards
        Feature -> id of the shard with these rows.
    seconds
        Time of the computation, without loading models.
    batch_size
        Final batch size of the ADM; None without an ADM call.
    normalisation
        How the ADM normalised, see :attr:`.networks.Models.normalisation`; None without an ADM call.
    """

    computed: dict[str, int] = field(default_factory=dict)
    taken_over: dict[str, int] = field(default_factory=dict)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    batch_size: int | None = None
    normalisation: str | None = None


@dataclass(frozen=True)
class TaskReport:
    """Result of one task, the address of its worker (empty for this process), and the name of the device."""

    done: TaskResult
    worker: str
    device: str


@dataclass(frozen=True)
class _Computed:
    """What the device computed for a task: feature -> rows, images x calls by unit, seconds; see also `TaskResult`."""

    rows: Mapping[str, HostArray]
    calls: Counter[str]
    seconds: float
    batch_size: int | None
    normalisation: str | None


def run_tasks(tasks: Sequence[Task], context: TaskContext) -> Iterator[TaskResult]:
    """Run the tasks in order; yield each result when its rows are committed. Existing shards are kept."""
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        loading = [reader.submit(context.images.load, task) for task in tasks[:1]]
        writing: list[Future[TaskResult]] = []
        for number, task in enumerate(tasks):
            images = loading.pop().result()
            loading += [reader.submit(context.images.load, after) for after in tasks[number + 1 : number + 2]]
            writing_images = writer.submit(commit_images, task, images, context)
            made = _compute(task, images, context)
            shards = writing_images.result()
            for earlier in writing:
                yield earlier.result()
            writing = [writer.submit(_finish, task, images, made, shards, context)]
        for last in writing:
            yield last.result()


def run_task(task: Task, images: TaskImages, context: TaskContext, device: Executor) -> TaskResult:
    """Run one task whose images are loaded, while other tasks of this process use the same device.

    Parameters
    ----------
    task, images, context
        The task, its images, and what tasks share.
    device
        Executor with the one thread that computes. On a CPU every computing thread has its own OpenMP threads, and more
        of them than cores slow each other down.
    """
    shards = commit_images(task, images, context)
    made = device.submit(_compute, task, images, context).result()
    return _finish(task, images, made, shards, context)


def still_missing(task: Task, stores: Mapping[str, FeatureStore]) -> tuple[Task, TaskResult]:
    """Divide a task into what is still missing and what another builder has committed since it was planned.

    Returns
    -------
    Task
        The rest; its ``missing`` is empty if nothing is left.
    TaskResult
        What is there, as if it had just been computed.
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


def _compute(task: Task, images: TaskImages, context: TaskContext) -> _Computed:
    with arithmetic(context.config.precision, context.models.device):
        load_models(task, images, context)
        began = time.perf_counter()
        rows, calls = compute(task, images, context)
        _skip_stages(task, images, calls, context)
        seconds = time.perf_counter() - began
    models = context.models
    return _Computed(
        rows,
        calls,
        seconds,
        models.adm_batch.size if calls[CALLS] else None,
        models.normalisation if calls[CALLS] else None,
    )


def _skip_stages(task: Task, images: TaskImages, calls: Counter[str], context: TaskContext) -> None:
    """Let the progress leave out what was planned and, for rows that are taken over, not computed."""
    if images.taken:
        for unit, planned in task_calls(task, context.producers).items():
            context.progress.advance(unit, planned - calls[unit])


def commit_images(task: Task, images: TaskImages, context: TaskContext) -> dict[str, str]:
    """Commit the images that were decoded for a task; return ``image`` -> id of their shard, if there are any.

    Keys whose bytes cannot be decoded are recorded in the marker with the reason and are not tried again. Keys whose
    file is gone are left out of the shard, so the next build tries them again.
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


def _finish(
    task: Task, images: TaskImages, made: _Computed, shards: Mapping[str, str], context: TaskContext
) -> TaskResult:
    """Commit what was computed for a task or taken over, each feature after those that it depends on."""
    taken_over = {feature: len(rows) for feature, rows in images.taken.items() if rows}
    computed = {"image": len(images.keys) - taken_over.get("image", 0)} if task.image_shard is None else {}
    committed = dict(shards)
    for feature in context.specs:
        keys = images.lacking(task, feature)
        rows = _rows_of(feature, task, images, made)
        if rows is not None and keys:
            committed[feature] = context.stores[feature].commit(keys, rows).shard
            computed[feature] = len(keys) - taken_over.get(feature, 0)
    unusable = {**images.bad, **images.gone}
    return TaskResult(
        computed, taken_over, made.calls[CALLS], unusable, committed, made.seconds, made.batch_size, made.normalisation
    )


def _rows_of(feature: str, task: Task, images: TaskImages, made: _Computed) -> HostArray | None:
    """Return the rows of a feature that a task lacks, in row order; None for images, which are committed already."""
    taken = images.taken.get(feature, {})
    if feature == "image" or not taken:
        return made.rows.get(feature)
    computed = zip(images.to_compute(task, feature), made.rows.get(feature, ()), strict=True)
    rows = {**taken, **dict(computed)}
    return np.stack([rows[key] for key in images.lacking(task, feature)])


class InProcessExecutor:
    """Runs the tasks of a build in this process; ``context`` is what they share."""

    def __init__(self, config: BuildConfig, ready: BuildPlan, progress: Progress) -> None:
        self._tasks = ready.plan.tasks
        self.context = TaskContext.of(config, ready, ready.files(), progress)

    def reports(self) -> Iterator[TaskReport]:
        """Run the tasks and yield a report of each."""
        name = device_name(self.context.models.device, of_machine=True)
        return (TaskReport(done, "", name) for done in run_tasks(self._tasks, self.context))

    def deviation(self, keys: Sequence[str]) -> Deviation | None:
        """Compare reduced precision with float32 on these cached images; return None, and say so, if that failed.

        It needs memory for two more models when everything is computed and stored.
        """
        try:
            return deviation_on(self.context, keys)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).strip().partition("\n")[0]
            self.context.progress.say(f"reduced precision could not be compared with float32: {said}")
            return None
