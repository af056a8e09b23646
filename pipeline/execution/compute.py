"""Compute the features of a task on its device, one producer after another, each by the shortest routes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...cache.gather import gather
from ...features.contract import Producer, Route
from ...models.transfer import HostArray, HostCopy, to_device
from ..planning.plan import Task
from .batches import pad_batch, run_batches
from .context import TaskContext
from .load import TaskImages


def load_models(task: Task, images: TaskImages, context: TaskContext) -> None:
    """Load the models that :func:`compute` needs for this task, unless they are loaded."""
    for producer in context.producers:
        if any(images.to_compute(task, feature) for feature in producer.specs):
            context.models.load(producer)


def compute(task: Task, images: TaskImages, context: TaskContext) -> tuple[dict[str, HostArray], Counter[str]]:
    """Compute all features, except the images, that the task's images lack and for which no row is taken over.

    Returns
    -------
    dict of str to array
        Feature -> rows, in the order of ``images.to_compute``.
    Counter
        Images x network calls, by the units of the producers.

    Raises
    ------
    UserError
        If a model returns values that are not finite, or the device has too little memory.
    """
    made: dict[str, HostArray] = {}
    calls: Counter[str] = Counter()
    for producer in context.producers:
        lacking = {feature: images.to_compute(task, feature) for feature in producer.specs}
        for route, keys in producer.divide(images.keys, lacking).items():
            read = {feature: _reader(feature, keys, task, images, made, context) for feature in producer.reads}
            _Pass(producer, route, read, lacking, made, context).run(keys)
            calls[producer.unit] += len(keys) * route.calls
    return made, calls


RowReader = Callable[[Sequence[str]], HostArray]
"""Returns the rows of a feature for these keys."""


def _reader(
    feature: str,
    keys: Sequence[str],
    task: Task,
    images: TaskImages,
    made: Mapping[str, HostArray],
    context: TaskContext,
) -> RowReader:
    """Return how to read the rows of a feature for some of ``keys``: just made, taken over, or from the cache."""
    if feature == "image":
        row_of = {key: row for row, key in enumerate(images.keys)}
        return lambda some: images.pixels[[row_of[key] for key in some]]
    computed = zip(images.to_compute(task, feature), made.get(feature, ()), strict=True)
    rows = {**images.taken.get(feature, {}), **dict(computed)}
    stored = [key for key in keys if key not in rows]
    if stored:
        rows |= zip(stored, gather(context.stores[feature], stored), strict=True)
    return lambda some: np.stack([rows[key] for key in some])


@dataclass(frozen=True)
class _Pass:
    """The images of a task that take one route. Their rows go to ``made``, in the order of ``lacking``."""

    producer: Producer
    route: Route
    read: Mapping[str, RowReader]
    lacking: Mapping[str, Sequence[str]]
    made: dict[str, HostArray]
    context: TaskContext

    def run(self, keys: Sequence[str]) -> None:
        """Run the pass over the images of these keys."""
        index = {feature: {key: row for row, key in enumerate(lacking)} for feature, lacking in self.lacking.items()}
        wanted = [feature for feature, rows in index.items() if not rows.keys().isdisjoint(keys)]
        models = self.context.models
        network = models.network(self.producer)

        def launch(batch: Sequence[str], size: int) -> HostCopy:
            padded = pad_batch(batch, size)
            rows = {feature: to_device(read(padded), models.device) for feature, read in self.read.items()}
            return HostCopy(self.producer.queue(network, rows, padded, wanted, self.route))

        def land(batch: Sequence[str], values: dict[str, HostArray]) -> None:
            for feature, rows in self.producer.checked(batch, values).items():
                target = self.made.setdefault(feature, np.empty((len(index[feature]), *rows.shape[1:]), rows.dtype))
                for key, row in zip(batch, rows, strict=False):  # the rows may be padded
                    if key in index[feature]:
                        target[index[feature][key]] = row
            self.context.progress.advance(self.producer.unit, len(batch) * self.route.calls)

        run_batches(keys, models.batch(self.producer), launch, land)
