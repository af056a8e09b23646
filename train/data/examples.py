"""From a batch as it lies in the cache to what one training step learns from, on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..methods import Method
from .augment import cutmix, train_input
from .dataset import Batch
from .online_teacher import OnlineTeacher
from .randomness import mix_draws, sample_draws


class Example(NamedTuple):
    """What a step learns from: student input (B, channels, size, size), label (B,), teacher's map or None; float."""

    x: Tensor
    label: Tensor
    teacher: Tensor | None


@dataclass(frozen=True)
class ExampleBuilder:
    """One training's way from features to examples. ``teacher`` is None where its cached maps serve, or none is needed."""

    method: Method
    size: int
    seed: int
    teacher: OnlineTeacher | None

    def __call__(self, batch: Batch, epoch: int) -> Example:
        """Prepare a batch of one epoch, counted from 1: the same for the same (seed, epoch, rows), mixing included."""
        method, features, label = self.method, dict(batch.features), batch.label
        rows = batch.rows
        if method.cutmix:
            drawn = mix_draws(self.seed, epoch, int(rows[0]))
            if drawn.mix < method.cutmix:
                features, label = cutmix(features, label, drawn)
        window = sample_draws(self.seed, epoch, rows) if method.window == "random-crop" else None
        x = train_input(features, batch.flip, method, self.size, window)
        if self.teacher is None:
            return Example(x, label, features.get("teacher"))
        flip = batch.flip if method.flips else batch.flip.new_zeros(batch.flip.shape)
        return Example(x, label, self.teacher(features["dire"], flip))
