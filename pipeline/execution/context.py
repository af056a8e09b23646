"""What the tasks of a build share: where images come from, what makes features of them, and where these go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from ...cache.spec import Spec
from ...cache.store import FeatureStore
from ...images.spec import ImageSpec
from ...models.diffusion.noise_schedule import NoiseSchedule
from ..config import BuildConfig
from ..planning.prepare import BuildResources
from ..sources.file import SourceFile
from .load import TaskImageLoader
from .networks import Models


@dataclass(frozen=True)
class TaskContext:
    """Everything that a task needs besides its keys.

    advance : called with a stage and the units of it that are done.
    """

    config: BuildConfig
    schedule: NoiseSchedule
    specs: Mapping[str, Spec]
    stores: Mapping[str, FeatureStore]
    images: TaskImageLoader
    models: Models
    advance: Callable[[str, int], None]

    @classmethod
    def of(
        cls,
        config: BuildConfig,
        setup: BuildResources,
        files: Mapping[str, SourceFile],
        advance: Callable[[str, int], None],
    ) -> Self:
        """Return the context of a build's tasks. files : key -> where its image is read. No model is loaded yet."""
        image = setup.specs["image"]
        assert isinstance(image, ImageSpec)
        store, threads = setup.stores["image"], config.decode_threads
        images = TaskImageLoader(image, store, setup.originals, files, threads, config.limits)
        models = Models(config, setup.device, image.size)
        return cls(config, setup.schedule, setup.specs, setup.stores, images, models, advance)
