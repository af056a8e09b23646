"""What the tasks of a build share: where results go, what makes them, and the settings that change only the speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..cache.spec import Spec
from ..cache.store import FeatureStore
from .batches import BatchSize
from .ddim import NoiseModel
from .image_file import Limits
from .schedule import Schedule
from .sources import SourceFile


@dataclass
class Tools:
    """Everything that a task needs besides its keys.

    pictures : the store of the pictures to perturb, or None where pictures are decoded from ``files``.
    load_adm and load_teacher are called once, when a task first needs the model; the models come back on ``device``.
    choose_batch finds the ADM's batch size when the model is there. The teacher's never depends on whether the ADM was
    loaded, so a build that was interrupted between the two makes the same bytes.
    """

    stores: Mapping[str, FeatureStore]
    specs: Mapping[str, Spec]
    pictures: FeatureStore | None
    files: Mapping[str, SourceFile]
    schedule: Schedule
    clip: bool
    real_step: int
    device: torch.device
    decoders: int
    limits: Limits
    load_adm: Callable[[], NoiseModel]
    load_teacher: Callable[[], nn.Module]
    choose_batch: Callable[[NoiseModel], BatchSize]
    teacher_batch: BatchSize
    advance: Callable[[str, int], None]

    @cached_property
    def adm(self) -> NoiseModel:
        """The diffusion model."""
        return self.load_adm()

    @cached_property
    def adm_batch(self) -> BatchSize:
        """How many images one ADM call takes."""
        return self.choose_batch(self.adm)

    @cached_property
    def teacher(self) -> nn.Module:
        """The frozen backbone."""
        return self.load_teacher()
