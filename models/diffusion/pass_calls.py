"""The model calls of a DDIM pass: one at every step, or at about half of the steps with the noise between from those.

The second is this project's own approximation, made for DIRE, whose sampling runs back along the inversion:

* The **inversion** calls the model at its two cleanest steps, at every second one, and at all of the noisiest third,
  where a step is long. In between, the noise lies on the line through the last two calls, over log(signal / noise), in
  which DPM-Solver's steps are even (Lu et al. 2022). Once the next call is made, it is placed between its neighbours.
* The **sampling** calls the model at every third step from the noisiest, and at the two cleanest. In between, the noise
  is that of the inversion at this step plus a difference, which lies on the line through those of the last two calls.

Of the 40 calls of ``ddim20`` it makes 22. How near the results come is measured in docs/measurements/performance.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ...choices import PassCalls
from .ddim import NoiseModel, NoisePrediction, denoised, predict
from .noise_schedule import Step


class Predictor(Protocol):
    """Predicts noise and clean image along one pass over a batch: up through its steps, then down."""

    def up(self, index: int, state: Tensor) -> NoisePrediction:
        """Predict for the state (B, 3, S, S) of the inversion at a step."""
        ...

    def down(self, index: int, state: Tensor) -> NoisePrediction:
        """Predict for the state (B, 3, S, S) of the sampling at a step."""
        ...


def predictor_of(calls: PassCalls, model: NoiseModel, steps: Sequence[Step], *, clip: bool) -> Predictor:
    """Return what predicts along a pass of these steps, the cleanest first."""
    return FewerCalls(model, steps, clip=clip) if calls == "fewer" else EveryCall(model, steps, clip=clip)


def steps_called(calls: PassCalls, steps: int) -> tuple[frozenset[int], frozenset[int]]:
    """Return at which of ``steps`` steps, 0 the cleanest, inversion and sampling call the model."""
    every = range(steps)
    if calls == "all":
        return frozenset(every), frozenset(every)
    up = frozenset(index for index in every if index < 2 or index % 2 == 1 or 3 * index >= 2 * steps)
    down = frozenset(index for index in every if index < 2 or (steps - 1 - index) % 3 == 0)
    return up, down


class EveryCall:
    """Calls the model at every step."""

    def __init__(self, model: NoiseModel, steps: Sequence[Step], *, clip: bool) -> None:
        self._model, self._steps, self._clip = model, steps, clip

    def up(self, index: int, state: Tensor) -> NoisePrediction:
        """See :class:`Predictor`."""
        return predict(self._model, state, self._steps[index], clip=self._clip)

    down = up


class FewerCalls:
    """Calls the model at the steps that `steps_called` names, and keeps the inversion's noise at all of them."""

    def __init__(self, model: NoiseModel, steps: Sequence[Step], *, clip: bool) -> None:
        self._model, self._steps, self._clip = model, steps, clip
        self._up, self._down = steps_called("fewer", len(steps))
        self._positions = [-math.log(step.recipm1) for step in steps]
        self._noise: list[Tensor] = []
        self._called: list[tuple[int, Tensor]] = []
        self._differences: list[tuple[int, Tensor]] = []

    def up(self, index: int, state: Tensor) -> NoisePrediction:
        """See :class:`Predictor`."""
        if index not in self._up:
            noise = self._on_line(self._called, index)
            self._noise.append(noise)
            return denoised(state, noise, self._steps[index], clip=self._clip)
        seen = predict(self._model, state, self._steps[index], clip=self._clip)
        self._called = [*self._called[-1:], (index, seen.eps)]
        self._noise.append(seen.eps)
        if index - 1 not in self._up and index:
            self._noise[index - 1] = self._on_line(self._called, index - 1)
        return seen

    def down(self, index: int, state: Tensor) -> NoisePrediction:
        """See :class:`Predictor`."""
        if index not in self._down:
            noise = self._noise[index] + self._on_line(self._differences, index)
            return denoised(state, noise, self._steps[index], clip=self._clip)
        seen = predict(self._model, state, self._steps[index], clip=self._clip)
        self._differences = [*self._differences[-1:], (index, seen.eps - self._noise[index])]
        return seen

    def _on_line(self, points: Sequence[tuple[int, Tensor]], index: int) -> Tensor:
        """Return the value at a step on the line through the values at two; with one point, its value."""
        (first, before), (last, value) = points[0], points[-1]
        if first == last:
            return value
        share = (self._positions[index] - self._positions[last]) / (self._positions[last] - self._positions[first])
        return value + share * (value - before)
