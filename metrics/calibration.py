"""The threshold above which a student says "generated", chosen on validation and never on test.

While it trains, each new best student leaves its validation scores (``validation.parquet``) and what follows from them
(``calibration.json``) in the run. The threshold maximises the balanced accuracy, the mean of the shares of reals and of
generated images that are told rightly, so that it does not depend on how many there are of each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError
from .measures import accuracy

CALIBRATION = "calibration.json"
VALIDATION = "validation.parquet"


class Calibration(BaseModel):
    """The content of ``calibration.json``.

    threshold : a score above it says generated. split, transform : what was scored, and what its images went through.
    real, fake : images scored. checkpoint_sha256 : of the student that scored them.
    accuracy, balanced_accuracy : on these images, at the threshold.
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


def calibrate(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, split: str, transform: str, checkpoint_sha256: str
) -> Calibration | None:
    """The threshold for these validation scores and what it reaches on them; None unless both classes are there."""
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
    """The threshold in 0..1 of the highest balanced accuracy; None unless both classes are there.

    Thresholds within a gap between neighbouring scores do the same, so the middle of the gap is taken; of several gaps that
    do equally well, the one nearest to 0.5.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    reals, fakes = np.sort(values[truth == 0]), np.sort(values[truth == 1])
    if not len(reals) or not len(fakes):
        return None
    ends = np.unique(np.concatenate([[0.0], values, [1.0]]))
    low, high = ends[:-1], ends[1:]
    middle = (low + high) / 2
    # in whole numbers, so that gaps that do equally well compare equal
    reached = np.searchsorted(reals, middle, "right") * len(fakes)
    reached = reached + (len(fakes) - np.searchsorted(fakes, middle, "right")) * len(reals)
    away = np.maximum(0.0, np.maximum(low - 0.5, 0.5 - high))
    best = np.flatnonzero(reached == reached.max())
    return float(middle[best[np.argmin(away[best])]])


def read_calibration(path: Path) -> Calibration | None:
    """Read a ``calibration.json``; None where there is none, UserError if it is damaged."""
    if not path.is_file():
        return None
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path}: is damaged. Delete it: then the threshold is 0.5. Training again restores it."
        ) from error
