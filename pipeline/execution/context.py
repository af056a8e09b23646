"""What the tasks of a build share: image loader, networks, specs and stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ...cache.spec import Spec
from ...cache.store import FeatureStore
from ...features.contract import Producer
from ...images.budget import PIXELS_IN_FLIGHT
from ...images.spec import ImageSpec
from ...progress import Progress
from ..config import BuildConfig
from ..planning.host_memory import decoding_bytes
from ..planning.prepare import BuildResources
from ..sources.file import SourceFile
from .load import TaskImageLoader
from .networks import Models
from .takeover import Takeover


@dataclass(frozen=True)
class TaskContext:
    """Everything that a task needs apart from its keys.

    Attributes
    ----------
    config
        Configuration of the build.
    producers
        What makes the features, in the order of computation.
    specs, stores
        By feature.
    images
        Loads the images of a task.
    models
        Networks on their device.
    progress
        Receives the units of each stage that are done.
    """

    config: BuildConfig
    producers: Sequence[Producer]
    specs: Mapping[str, Spec]
    stores: Mapping[str, FeatureStore]
    images: TaskImageLoader
    models: Models
    progress: Progress

    @classmethod
    def of(
        cls,
        config: BuildConfig,
        setup: BuildResources,
        files: Mapping[str, SourceFile],
        progress: Progress,
    ) -> Self:
        """Return the context of a build's tasks, without loading a model. ``files`` maps keys to image files."""
        image = setup.specs["image"]
        assert isinstance(image, ImageSpec)
        store, threads = setup.stores["image"], config.decode_threads
        takeover = Takeover(setup.predecessors)
        images = TaskImageLoader(image, store, setup.originals, files, threads, config.limits, takeover)
        PIXELS_IN_FLIGHT.resize(decoding_bytes(config.memory_bytes))
        models = Models(config, setup.device, image.size, setup.specs)
        return cls(config, setup.producers, setup.specs, setup.stores, images, models, progress)
