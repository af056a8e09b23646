"""``recon``: the image after DDIM inversion and sampling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...cache.records.about import Layout
from ...models.diffusion.ddim import NoisePrediction, to_uint8
from ...models.diffusion.noise_schedule import Step
from ..walk import PathSpec, Reach, Tap, WalkFeature


class ReconSpec(PathSpec):
    """Spec of ``recon``, uint8 (3, S, S).

    ``algorithm`` 2 truncates, as DIRE's script does when it saves the file; 1 rounded.
    """

    feature: Literal["recon"] = "recon"
    algorithm: Literal[1, 2] = 2


class _Reconstruction(Tap):
    """Keeps the last state of the sampling."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def down(self, step: Step, seen: NoisePrediction, cleaner: Tensor) -> None:
        self._state = cleaner

    def rows(self) -> Tensor:
        assert self._state is not None
        return truncated_pixels(self._state)


class Recon(WalkFeature[ReconSpec]):
    """The reconstruction."""

    spec_type = ReconSpec
    description = "the image after DDIM inversion and sampling, RGB, 0 to 255"

    def layout(self, spec: ReconSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((3, spec.image.size, spec.image.size), "uint8", "image")

    def reach(self, spec: ReconSpec) -> Reach:
        """See :class:`..walk.WalkFeature`."""
        return "path"

    def tap(self, spec: ReconSpec, start: Tensor) -> Tap:
        """See :class:`..walk.WalkFeature`."""
        return _Reconstruction()


def truncated_pixels(x: Tensor) -> Tensor:
    """Return values in [-1, 1] as uint8, truncated, as DIRE's script writes them."""
    return to_uint8(x + 1)
