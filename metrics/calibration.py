"""Calibration: the decision threshold, chosen on validation and never on test, and the reliability diagram.

Each new best student of a training is saved with its validation scores and the threshold chosen on them; earlier versions
kept the threshold in ``calibration.json``. The threshold maximises the balanced accuracy, the mean of the accuracies on
reals and on fakes, so it does not depend on the ratio of the classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..storage.json_record import find_record
from .measures import CALIBRATION_BINS, Array, Interval, accuracy, calibration_bin

CALIBRATION = "calibration.json"

FEWEST = 5
"""Bins with fewer images say nothing and are left out."""
_Z = 1.959964  # 97.5 % of the normal distribution


class Calibration(BaseModel):
    """The content of ``calibration.json``.

    Attributes
    ----------
    threshold
        A score above it says generated.
    split
        The images that were scored: ``val``, or the part of ``train`` that was held out, such as ``10% of train, by key``.
    transform
        The test transform of these images.
    real, fake
        Images scored.
    checkpoint_sha256
        Digest of the student that scored them.
    accuracy, balanced_accuracy
        On these images, at the threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(ge=0, le=1)
    split: str
    transform: str
    real: int = Field(ge=1)
    fake: int = Field(ge=1)
    checkpoint_sha256: str
    accuracy: float = Field(ge=0, le=1)
    balanced_accuracy: float = Field(ge=0, le=1)

    @property
    def origin(self) -> str:
        """The images that chose the threshold, in words: ``200 images of val``."""
        return f"{self.real + self.fake:,} images of {self.split}"

    @property
    def beats_chance(self) -> bool:
        """Whether the balanced accuracy is above 1/2 by more than these few images can make by chance.

        The lower end of its 95 % interval, as if both classes had as many images as the smaller one, is above 1/2.
        """
        images = 2 * min(self.real, self.fake)
        return share_interval(self.balanced_accuracy * images, images).low > 0.5


_FORM: TypeAdapter[Calibration] = TypeAdapter(Calibration)


def calibrate(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, split: str, transform: str, checkpoint_sha256: str
) -> Calibration | None:
    """Choose the threshold for validation scores and measure it on them.

    Parameters
    ----------
    labels : array_like, shape (N,)
        1 for generated, 0 for real.
    scores : array_like, shape (N,)
        Probability of "generated", in 0..1.
    split, transform, checkpoint_sha256
        What to record; see `Calibration`.

    Returns
    -------
    Calibration or None
        None unless both classes are present.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    threshold = best_threshold(truth, values)
    if threshold is None:
        return None
    reals, fakes = values[truth == 0], values[truth == 1]
    return Calibration(
        threshold=threshold,
        split=split,
        transform=transform,
        real=len(reals),
        fake=len(fakes),
        checkpoint_sha256=checkpoint_sha256,
        accuracy=accuracy(truth, values, threshold) or 0.0,
        balanced_accuracy=float(np.mean(reals <= threshold) + np.mean(fakes > threshold)) / 2,
    )


def best_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the threshold in 0..1 with the highest balanced accuracy; None unless both classes are present.

    All thresholds in the gap between two neighbouring scores do the same, so the middle of the gap is taken. Of several
    gaps that do equally well, the one nearest to 0.5 wins.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    reals, fakes = np.sort(values[truth == 0]), np.sort(values[truth == 1])
    if not len(reals) or not len(fakes):
        return None
    ends = np.unique(np.concatenate([[0.0], values, [1.0]]))
    low, high = ends[:-1], ends[1:]
    middle = (low + high) / 2
    # integers, so that gaps that do equally well compare equal
    reached = np.searchsorted(reals, middle, "right") * len(fakes)
    reached = reached + (len(fakes) - np.searchsorted(fakes, middle, "right")) * len(reals)
    distance = np.maximum(0.0, np.maximum(low - 0.5, 0.5 - high))
    best = np.flatnonzero(reached == reached.max())
    return float(middle[best[np.argmin(distance[best])]])


def read_calibration(path: Path) -> Calibration | None:
    """Read a ``calibration.json``; None if there is none.

    Raises
    ------
    UserError
        The file is damaged.
    """
    advice = "It is damaged: delete it to use a threshold of 0.5, or train again to restore it."
    return find_record(path, _FORM, "the threshold of a validation", advice)


@dataclass(frozen=True)
class Bin:
    """Images whose scores fall in one bin: their number, mean score, and share of generated ones with its interval."""

    images: int
    mean_score: float
    share: float
    interval: Interval


def reliability(labels: Array, scores: Array) -> list[Bin]:
    """Return the bins of a reliability diagram: do about 80 % of images with scores near 0.8 turn out generated?

    Parameters
    ----------
    labels : ndarray, shape (N,)
        1 for generated, 0 for real.
    scores : ndarray, shape (N,)
        Probability of "generated", in 0..1.

    Returns
    -------
    list of Bin
        By rising score. The bins are those of the calibration error; bins with fewer than five images are left out.
    """
    bin_of_row = calibration_bin(scores)
    bins = []
    for number in range(CALIBRATION_BINS):
        rows = bin_of_row == number
        images = int(rows.sum())
        if images >= FEWEST:
            fakes = int(np.sum(labels[rows] == 1))
            bins.append(Bin(images, float(np.mean(scores[rows])), fakes / images, share_interval(fakes, images)))
    return bins


def share_interval(hits: float, images: float, quantile: float = _Z) -> Interval:
    """Return the 95 % interval of a share (Wilson 1927), which has a sensible width even if all or none are hits.

    Parameters
    ----------
    hits, images : float
        Need not be whole, since images that depend on each other count as fewer.
    quantile : float
        97.5 % quantile of the normal distribution, or of Student's t if the number of images is an estimate.
    """
    share, z2 = hits / images, quantile * quantile
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    reach = quantile / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images * images))
    return Interval(max(0.0, centre - reach) if share > 0 else 0.0, min(1.0, centre + reach) if share < 1 else 1.0)
