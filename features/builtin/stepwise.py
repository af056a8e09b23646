"""``stepwise``: by how much a step of inversion and one of sampling miss the state that they began at (SeDID).

SeDID (arXiv 2307.06272, section 3.2) takes a state x_k of the inversion one step on and back, by phi and psi, and measures
the error e_k = mean((psi(phi(x_k)) - x_k)^2) over channels and positions. Its code has one step; here are all. phi's
result is the next state of the inversion, and psi there is the model call that the inversion makes next, so N steps give
N - 1 errors and no call beyond those of the inversion. SeDID's stride is that of ``--steps``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...cache.records.about import Layout
from ...errors import UserError
from ...models.diffusion.ddim import NoisePrediction
from ...models.diffusion.noise_schedule import Step
from ..walk import PathSpec, Reach, Tap, WalkFeature


class StepwiseSpec(PathSpec):
    """Spec of ``stepwise``, float32 (N - 1,) for N steps, the cleanest state first."""

    feature: Literal["stepwise"] = "stepwise"
    algorithm: Literal[1] = 1


class _StepErrors(Tap):
    """Takes each state back to the one before it."""

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._errors: list[Tensor] = []

    def up(self, step: Step, state: Tensor, seen: NoisePrediction) -> None:
        if self._before is not None:
            back = step.prev_signal * seen.x0 + step.prev_noise * seen.eps
            self._errors.append((back - self._before).square().flatten(1).mean(dim=1))
        self._before = state

    def rows(self) -> Tensor:
        return torch.stack(self._errors, dim=1)


class Stepwise(WalkFeature[StepwiseSpec]):
    """The errors of single steps."""

    spec_type = StepwiseSpec
    description = (
        "mean squared error of a step of inversion and one of sampling, for each state of the inversion (SeDID)"
    )

    def layout(self, spec: StepwiseSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        if spec.used_steps < 2:
            raise UserError("stepwise: compares neighbouring states, so it needs at least two steps. Raise --steps.")
        return Layout((spec.used_steps - 1,), "float32", "vector")

    def reach(self, spec: StepwiseSpec) -> Reach:
        """See :class:`..walk.WalkFeature`."""
        return "inversion"

    def tap(self, spec: StepwiseSpec, start: Tensor) -> Tap:
        """See :class:`..walk.WalkFeature`."""
        return _StepErrors()
