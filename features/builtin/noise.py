"""``noise``: the noises along the inversion, reduced to one (DNF: Zhang and Xu 2023, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...cache.records.about import Layout
from ...choices import FloatStorage, NoiseReduction
from ...models.diffusion.ddim import NoisePrediction
from ...models.diffusion.noise_schedule import Step
from ..rounding import float_pixels, stored_floats
from ..walk import PathSpec, Reach, Tap, WalkFeature
from .eps import FirstNoise


class NoiseSpec(PathSpec):
    """Spec of ``noise``, float16 or float32 of shape (3, S, S)."""

    feature: Literal["noise"] = "noise"
    algorithm: Literal[1] = 1
    reduction: NoiseReduction = "mean"
    storage: FloatStorage = "float16"


class _MeanNoise(Tap):
    """Sums the noises of the inversion."""

    def __init__(self, start: Tensor, storage: FloatStorage) -> None:
        self._storage = storage
        self._total = torch.zeros_like(start)
        self._calls = 0

    def up(self, step: Step, state: Tensor, seen: NoisePrediction) -> None:
        self._total += seen.eps
        self._calls += 1

    def rows(self) -> Tensor:
        return stored_floats(self._total / self._calls, self._storage)


class Noise(WalkFeature[NoiseSpec]):
    """The noise along the inversion: its mean, or the first one."""

    spec_type = NoiseSpec
    description = "the noise along the DDIM inversion (DNF)"

    def layout(self, spec: NoiseSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return float_pixels(spec.image.size, spec.storage)

    def reach(self, spec: NoiseSpec) -> Reach:
        """See :class:`..walk.WalkFeature`."""
        return "first" if spec.reduction == "first" else "inversion"

    def tap(self, spec: NoiseSpec, start: Tensor) -> Tap:
        """See :class:`..walk.WalkFeature`."""
        return FirstNoise(spec.storage) if spec.reduction == "first" else _MeanNoise(start, spec.storage)
