"""A model that sleeps as long as a real one would compute: what is left of a build's time is the engine's own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from distil_cache.pipeline.cluster.worker import BuildPlugin
from distil_cache.pipeline.execution.batches import BatchSize
from distil_cache.pipeline.execution.context import TaskContext
from distil_cache.pipeline.sources.file import SourceFile
from torch import Tensor

BATCH = 8


def with_sleep(context: TaskContext, seconds: float) -> TaskContext:
    """Put a model in the place of the ADM that takes ``seconds`` for an image and no processor."""

    def model(x: Tensor, _t: Tensor) -> Tensor:
        time.sleep(seconds * len(x))
        return torch.zeros_like(x)

    context.models.adm = model
    context.models.adm_batch = BatchSize(BATCH)
    return context


class SleepPlugin(BuildPlugin):
    """A build on a worker with such a model."""

    def __init__(self, name: str, request: str, seconds: float) -> None:
        super().__init__(name, request)
        self.seconds = seconds

    def open_build(self, files: Mapping[str, SourceFile]) -> TaskContext:
        """Return what the build's tasks share, with the sleeping model."""
        return with_sleep(super().open_build(files), self.seconds)


def sleeping(seconds: float) -> Any:
    """Return what makes the plugin of a build."""
    return lambda name, request: SleepPlugin(name, request, seconds)
