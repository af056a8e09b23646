"""Tasks from plan to cache: the next one's images are read, and the last one's features written, while one is computed.

A batch never crosses a task's shard and has one shape, so a build that was interrupted computes with the very batches of
an undisturbed one. Memory holds three tasks, whatever the size of the build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from .compute import compute
from .images import Images, load_images
from .plan import FEATURES, Task
from .tools import Tools
from .transfer import Rows


@dataclass
class Done:
    """What one task did: rows computed by feature, images x ADM calls, and why keys have no picture."""

    computed: dict[str, int] = field(default_factory=dict)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)


def run_tasks(tasks: Sequence[Task], tools: Tools) -> Iterator[Done]:
    """Run the tasks in order; each is yielded when all that it made is committed. Idempotent: what is there stays."""
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        coming = [reader.submit(load_images, task, tools) for task in tasks[:1]]
        writing: list[Future[Done]] = []
        for number, task in enumerate(tasks):
            images = coming.pop().result()
            coming += [reader.submit(load_images, after, tools) for after in tasks[number + 1 : number + 2]]
            pictures = writer.submit(commit_images, task, images, tools)
            made, calls = compute(task, images, tools)
            pictures.result()
            for earlier in writing:
                yield earlier.result()
            writing = [writer.submit(_finish, task, images, made, calls, tools)]
        for last in writing:
            yield last.result()


def commit_images(task: Task, images: Images, tools: Tools) -> None:
    """Commit the pictures that were decoded for a task.

    Keys whose bytes cannot be decoded go into the marker with the reason and are never tried again. Those whose file is
    gone are left out of the shard, so the next build wants them again.
    """
    if task.image_shard is not None:
        return
    planned = [key for key in task.keys if key not in images.gone]
    if planned:
        tools.stores["image"].commit(planned, images.pixels, keys=images.keys, rejected=images.bad)
    tools.advance("image", len(task.keys))


def _finish(task: Task, images: Images, made: Mapping[str, Rows], calls: int, tools: Tools) -> Done:
    """Commit what was computed for a task, each feature after those that it is made of."""
    computed = {"image": len(images.keys)} if task.image_shard is None else {}
    for feature in FEATURES:
        keys = images.lacking(task, feature)
        if feature in made and keys:
            tools.stores[feature].commit(keys, made[feature])
            computed[feature] = len(keys)
    return Done(computed, calls, {**images.bad, **images.gone})
