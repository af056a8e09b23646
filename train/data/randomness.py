"""The random numbers of augmentation, from (seed, epoch, row) alone.

They depend on nothing else: not on the batch that a row falls into, on its neighbours, on the number of workers or
ranks, or on where a training was interrupted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SAMPLE, BATCH = 1, 2
"""End the seed sequences, which must not collide: numpy pads them with zeros, and the order of rows has two numbers."""


class SampleDraws(NamedTuple):
    """Uniform numbers in [0, 1) of some samples, (B,) float64 each: where the crop lies, whether and how to degrade."""

    top: Array
    left: Array
    blur: Array
    sigma: Array
    jpeg: Array
    quality: Array


class MixDraws(NamedTuple):
    """Uniform numbers in [0, 1) of one batch: whether to mix it, how much stays, and the corner of the pasted square."""

    mix: float
    keep: float
    top: float
    left: float


def sample_draws(seed: int, epoch: int, rows: npt.NDArray[Any]) -> SampleDraws:
    """Draw for each of ``rows``, (B,) non-negative integers, in one epoch of one training."""
    drawn = [np.random.default_rng([seed, epoch, int(row), SAMPLE]).random(len(SampleDraws._fields)) for row in rows]
    return SampleDraws(*np.array(drawn).reshape(len(rows), len(SampleDraws._fields)).T)


def mix_draws(seed: int, epoch: int, first_row: int) -> MixDraws:
    """Draw for the batch whose first sample is ``first_row``."""
    return MixDraws(*np.random.default_rng([seed, epoch, first_row, BATCH]).random(len(MixDraws._fields)).tolist())
