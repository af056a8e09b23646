"""``trajectory``: by how much sampling misses the states of the inversion, at each noise level.

After each call of the sampling, its state is compared with the inversion's of the same noise level: the mean absolute
difference over channels and positions. Number 0 is that of the reconstruction and the image, the mean DIRE before it is
rounded (0 to 2 in a model's range of [-1, 1]); number k is that of timestep k - 1, where the image counts as the
inversion's state at the first timestep, as in :mod:`...models.diffusion.ddim`. So N steps give N numbers, and no call
beyond the 2 N of DIRE. SeDID (arXiv 2307.06272) compares states of one level, too, but a single step apart: ``stepwise``.

A tap holds the states of the inversion: N x 12 S^2 bytes an image, 15 MB for 20 steps at 256 pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...cache.records.about import Layout
from ...models.diffusion.ddim import NoisePrediction, dire_image
from ...models.diffusion.noise_schedule import Step
from ..walk import PathSpec, Reach, Tap, WalkFeature


class TrajectorySpec(PathSpec):
    """Spec of ``trajectory``, float32 (N,) for N steps, the reconstruction first."""

    feature: Literal["trajectory"] = "trajectory"
    algorithm: Literal[1] = 1


class _Differences(Tap):
    """Keeps the states of the inversion until the sampling comes by them."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []
        self._differences: list[Tensor] = []

    def up(self, step: Step, state: Tensor, seen: NoisePrediction) -> None:
        self._states.append(state)

    def down(self, step: Step, seen: NoisePrediction, cleaner: Tensor) -> None:
        if len(self._states) > 1:  # the sampling begins a level below the last state; the image is met twice
            self._states.pop()
        self._differences.append(dire_image(self._states[-1], cleaner).flatten(1).mean(dim=1))

    def rows(self) -> Tensor:
        return torch.stack(self._differences[::-1], dim=1)


class Trajectory(WalkFeature[TrajectorySpec]):
    """The differences between inversion and sampling."""

    spec_type = TrajectorySpec
    description = "mean absolute difference of inversion and sampling at each noise level, the mean DIRE first"

    def layout(self, spec: TrajectorySpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((spec.used_steps,), "float32", "vector")

    def reach(self, spec: TrajectorySpec) -> Reach:
        """See :class:`..walk.WalkFeature`."""
        return "path"

    def tap(self, spec: TrajectorySpec, start: Tensor) -> Tap:
        """See :class:`..walk.WalkFeature`."""
        return _Differences()

    def held(self, spec: TrajectorySpec) -> int:
        """See :class:`..walk.WalkFeature`."""
        return spec.used_steps
