"""Whether scores are probabilities: among images that score about 0.8, are about 80 % generated?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .measures import CALIBRATION_BINS, Array, Interval, calibration_bin

FEWEST = 5
"""Bins of fewer images say nothing and are left out."""
_Z = 1.959964  # 97.5 % of the normal distribution


@dataclass(frozen=True)
class Bin:
    """Images whose scores lie in one bin: their number, their mean score, the share of generated ones and its interval."""

    images: int
    mean_score: float
    share: float
    interval: Interval


def reliability(labels: Array, scores: Array) -> list[Bin]:
    """The bins of equal width over 0..1 that hold at least five images, by rising score: those of the calibration error.

    labels : (n,) with 1 for generated; scores : (n,) in 0..1.
    """
    place = calibration_bin(scores)
    found = []
    for number in range(CALIBRATION_BINS):
        rows = place == number
        images = int(rows.sum())
        if images >= FEWEST:
            fakes = int(np.sum(labels[rows] == 1))
            found.append(Bin(images, float(np.mean(scores[rows])), fakes / images, share_interval(fakes, images)))
    return found


def share_interval(hits: int, images: int) -> Interval:
    """95 % interval of a share (Wilson 1927): of sensible width also where all or none are hits."""
    share, z2 = hits / images, _Z * _Z
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    reach = _Z / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images * images))
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))
