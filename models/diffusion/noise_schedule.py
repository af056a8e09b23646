"""Noise schedules of guided-diffusion and their respacing (Ho et al. 2020; Nichol & Dhariwal 2021; Song et al. 2021).

A schedule is a list of original timesteps and the cumulative product of alpha ("abar") at each, in float64. Index 0 is
the cleanest step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import UserError

_Floats = NDArray[np.float64]

MAX_COSINE_BETA = 0.999


@dataclass(frozen=True)
class Step:
    """One step of a schedule, as plain numbers.

    The reference rounds abar to float32 before it takes the roots of the neighbouring steps. So does this; otherwise
    its results could not be reproduced bit for bit.

    Attributes
    ----------
    timestep
        Original timestep.
    recip, recipm1
        sqrt(1 / abar) and sqrt(1 / abar - 1) of this step, computed in float64.
    next_signal, next_noise
        sqrt(abar) and sqrt(1 - abar) of the next noisier step.
    prev_signal, prev_noise
        The same of the next cleaner step.
    """

    timestep: int
    recip: float
    recipm1: float
    next_signal: float
    next_noise: float
    prev_signal: float
    prev_noise: float


@dataclass(frozen=True)
class NoiseSchedule:
    """A respaced noise schedule.

    Attributes
    ----------
    timesteps
        Original timesteps, ascending.
    betas, alphas_cumprod : ndarray, shape (steps,)
        Beta and abar of each step, float64.
    """

    timesteps: tuple[int, ...]
    betas: _Floats
    alphas_cumprod: _Floats

    @property
    def alphas_cumprod_next(self) -> _Floats:
        """Abar of the next noisier step; 0 after the last, as in the reference."""
        return np.append(self.alphas_cumprod[1:], 0.0)

    @property
    def alphas_cumprod_prev(self) -> _Floats:
        """Abar of the next cleaner step; 1 before the first, as in the reference."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @property
    def sqrt_recip_alphas_cumprod(self) -> _Floats:
        """sqrt(1 / abar)."""
        return np.sqrt(1.0 / self.alphas_cumprod)

    @property
    def sqrt_recipm1_alphas_cumprod(self) -> _Floats:
        """sqrt(1 / abar - 1)."""
        return np.sqrt(1.0 / self.alphas_cumprod - 1.0)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.timesteps)

    def ascending(self, count: int | None = None) -> Iterator[Step]:
        """Iterate over the steps from the cleanest on, over the first ``count`` only if given."""
        return iter(self._steps()[:count])

    def descending(self, count: int | None = None) -> Iterator[Step]:
        """Iterate over the steps of ``ascending(count)`` from the noisiest to the cleanest."""
        return reversed(self._steps()[:count])

    def _steps(self) -> list[Step]:
        single = (torch.from_numpy(a).float() for a in (self.alphas_cumprod_next, self.alphas_cumprod_prev))
        columns = [self.sqrt_recip_alphas_cumprod.tolist(), self.sqrt_recipm1_alphas_cumprod.tolist()]
        for abar in single:
            columns += [abar.sqrt().tolist(), (1.0 - abar).sqrt().tolist()]
        return [Step(*row) for row in zip(self.timesteps, *columns, strict=True)]


def betas_of(noise_schedule: str, steps: int) -> _Floats:
    """Return the betas of the full schedule, (steps,) float64.

    Parameters
    ----------
    noise_schedule
        ``linear`` (1e-4 to 2e-2 at 1000 steps; Ho et al. 2020) or ``cosine`` (Nichol & Dhariwal 2021).
    steps
        Number of timesteps.
    """
    if noise_schedule == "linear":
        scale = 1000.0 / steps
        return np.linspace(scale * 1e-4, scale * 2e-2, steps, dtype=np.float64)
    if noise_schedule == "cosine":
        ratios = [_cosine_abar((i + 1) / steps) / _cosine_abar(i / steps) for i in range(steps)]
        return np.array([min(1.0 - ratio, MAX_COSINE_BETA) for ratio in ratios])
    raise UserError(f"Noise schedule {noise_schedule!r} is unknown; use linear or cosine.")


def full_schedule(noise_schedule: str = "linear", steps: int = 1000) -> NoiseSchedule:
    """Return the schedule that models are trained with: every timestep."""
    betas = betas_of(noise_schedule, steps)
    return NoiseSchedule(tuple(range(steps)), betas, (1.0 - betas).cumprod())


def respace(text: str, *, noise_schedule: str = "linear", steps: int = 1000) -> NoiseSchedule:
    """Keep some of the timesteps, with betas that lead through the same noise levels.

    Parameters
    ----------
    text
        ``"ddimN"`` (N steps at a fixed integer stride), ``"N"`` (N evenly spaced) or ``"a,b,c"`` (the range is cut into
        equal sections with a, b and c steps).
    noise_schedule, steps
        The full schedule; see `betas_of`.

    Raises
    ------
    UserError
        There is no such respacing.
    """
    return respaced(text, betas_of(noise_schedule, steps))


def respaced(text: str, betas: _Floats) -> NoiseSchedule:
    """Keep some of the timesteps of a schedule with these betas, (steps,) float64; see `respace`."""
    kept = timesteps_of(text, len(betas))
    full = (1.0 - betas).cumprod()[list(kept)]
    own = 1.0 - full / np.append(1.0, full[:-1])
    return NoiseSchedule(kept, own, (1.0 - own).cumprod())


def timesteps_of(text: str, steps: int = 1000) -> tuple[int, ...]:
    """Return the original timesteps that a respacing keeps, ascending. See `respace`."""
    if text.startswith("ddim"):
        return _strided(text, steps)
    counts = _counts(text, text.split(","))
    size, larger = divmod(steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < larger)
        if count > length:
            raise UserError(
                f"Steps {text!r}: section {section + 1} has {length} timesteps, not {count}; request fewer."
            )
        kept += [start + offset for offset in _spread(length, count)]
        start += length
    return tuple(kept)


def _strided(text: str, steps: int) -> tuple[int, ...]:
    (count,) = _counts(text, [text.removeprefix("ddim")])
    for stride in range(1, steps):
        kept = range(0, steps, stride)
        if len(kept) == count:
            return tuple(kept)
    if count > steps:
        raise UserError(f"Steps {text!r}: the model has only {steps} timesteps; use ddim20, ddim50 or ddim{steps}.")
    raise UserError(
        f"Steps {text!r}: no integer stride through {steps} timesteps gives {count}; use ddim20, ddim50 or {count}."
    )


def _spread(length: int, count: int) -> list[int]:
    """Return ``count`` integers from 0 to length - 1, both included, rounding a summed stride as the reference does."""
    stride = (length - 1) / (count - 1) if count > 1 else 1.0
    offsets, position = [], 0.0
    for _ in range(count):
        offsets.append(round(position))
        position += stride
    return offsets


def _counts(text: str, parts: list[str]) -> list[int]:
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"Steps {text!r} is not a respacing; write ddim20, 20 or 10,10.")
    return [int(part) for part in parts]


def _cosine_abar(fraction: float) -> float:
    return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2
