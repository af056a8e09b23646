"""``eps``: the noise that the ADM predicts at the first inversion step, t = 0 (DistilDIRE, section 3.2)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...cache.records.about import Layout
from ...choices import FloatStorage
from ...models.diffusion.ddim import NoisePrediction
from ...models.diffusion.noise_schedule import Step
from ..rounding import float_pixels, stored_floats
from ..walk import Reach, Tap, WalkFeature, WalkSpec


class EpsSpec(WalkSpec):
    """Spec of ``eps``, float16 or float32 of shape (3, S, S).

    It is the same for every respacing, so the spec has no number of steps. With a ``storage`` of int8 or int4 the rows
    are float16 that :mod:`...cache.shards.packed` has rounded.
    """

    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    storage: FloatStorage = "float16"


class FirstNoise(Tap):
    """Keeps the noise of the first call."""

    def __init__(self, storage: FloatStorage) -> None:
        self._storage = storage
        self._noise: Tensor | None = None

    def up(self, step: Step, state: Tensor, seen: NoisePrediction) -> None:
        """See :class:`..walk.Tap`."""
        if self._noise is None:
            self._noise = seen.eps

    def rows(self) -> Tensor:
        """See :class:`..walk.Tap`."""
        assert self._noise is not None
        return stored_floats(self._noise, self._storage)


class Eps(WalkFeature[EpsSpec]):
    """The first noise of the inversion."""

    spec_type = EpsSpec
    description = "the noise that the diffusion model predicts at the first step of DDIM inversion (DistilDIRE's input)"
    built = "always"

    def layout(self, spec: EpsSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return float_pixels(spec.image.size, spec.storage)

    def reach(self, spec: EpsSpec) -> Reach:
        """See :class:`..walk.WalkFeature`."""
        return "first"

    def tap(self, spec: EpsSpec, start: Tensor) -> Tap:
        """See :class:`..walk.WalkFeature`."""
        return FirstNoise(spec.storage)
