"""``dire``: the reconstruction error of the image (Wang et al. 2023, eq. 6; truncated as in their code)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...cache.records.about import Layout
from ...models.diffusion.ddim import NoisePrediction, dire_image, to_uint8
from ...models.diffusion.noise_schedule import Step
from ..walk import PathSpec, Reach, Tap, WalkFeature


class DireSpec(PathSpec):
    """Spec of ``dire``, uint8 (3, S, S)."""

    feature: Literal["dire"] = "dire"
    algorithm: Literal[1] = 1


class _Error(Tap):
    """Keeps the last state of the sampling, to compare it with the image."""

    def __init__(self, start: Tensor) -> None:
        self._start = self._state = start

    def down(self, step: Step, seen: NoisePrediction, cleaner: Tensor) -> None:
        self._state = cleaner

    def rows(self) -> Tensor:
        return to_uint8(dire_image(self._start, self._state))


class Dire(WalkFeature[DireSpec]):
    """The reconstruction error."""

    spec_type = DireSpec
    description = "abs(image - reconstruction), both in [-1, 1], times 127.5 and truncated: 0 to 255"
    built = "for train"

    def layout(self, spec: DireSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((3, spec.image.size, spec.image.size), "uint8", "pixels")

    def reach(self, spec: DireSpec) -> Reach:
        """See :class:`..walk.WalkFeature`."""
        return "path"

    def tap(self, spec: DireSpec, start: Tensor) -> Tap:
        """See :class:`..walk.WalkFeature`."""
        return _Error(start)
