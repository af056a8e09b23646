"""The swap test: how much of a detector's verdict follows from the history of the file and not from the image.

Each test image is scored as it is, under a history of its own class (a control for compressing once more as such), and
under a history of the other class. The move of the score between the last two, towards the other class, is compared
with the distance between the classes. The result is stored in the run, as ``swap.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter

from ..storage.json_record import find_record
from .bootstrap import REPLICATES, cluster_numbers, interval, resamples
from .measures import FloatArray, Interval

SWAP = "swap.json"
"""Name of the file in the folder of a run."""


class ClassHistory(BaseModel):
    """How many images of a class have one history, and whether the other class can be given it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: int = Field(ge=0, le=1)
    history: str
    images: int = Field(ge=1)
    given: bool


class Swap(BaseModel):
    """The content of ``swap.json``.

    Attributes
    ----------
    dataset, revision, split
        The images.
    checkpoint_sha256
        Digest of the student that scored them.
    real, fake
        Images scored.
    moved_real, moved_fake
        Images that could be given a history of the other class.
    histories
        The histories of each class.
    carried, interval
        Share of the distance between the classes that follows from the history, and its 95 % interval; None if it is
        not defined.
    reason
        Why it is not defined, or empty.
    auc_own, auc_again, auc_swapped
        AUC on the images as they are, with a history of their class, and with one of the other class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    revision: str
    split: str
    checkpoint_sha256: str
    real: int = Field(ge=1)
    fake: int = Field(ge=1)
    moved_real: int = Field(ge=0)
    moved_fake: int = Field(ge=0)
    histories: Annotated[tuple[ClassHistory, ...], FailFast()]
    carried: float | None = Field(allow_inf_nan=False)
    interval: tuple[float, float] | None
    reason: str
    auc_own: float = Field(ge=0, le=1)
    auc_again: float = Field(ge=0, le=1)
    auc_swapped: float = Field(ge=0, le=1)


_FORM: TypeAdapter[Swap] = TypeAdapter(Swap)


def read_swap(path: Path) -> Swap | None:
    """Read a ``swap.json``; None if there is none.

    Raises
    ------
    UserError
        The file is damaged.
    """
    return find_record(path, _FORM, "a swap test", "Delete it and run: distil-cache audit --swap RUN")


def carried_by_history(
    labels: npt.ArrayLike,
    own: npt.ArrayLike,
    again: npt.ArrayLike,
    swapped: npt.ArrayLike,
    moved: npt.ArrayLike,
    clusters: Sequence[str] | None = None,
) -> tuple[float | None, Interval | None]:
    """Return the share of the distance between the classes that follows from the history, with its 95 % interval.

    If a logit is the sum of a part of the image and a part of its history, this is the share of the history: 0 if it
    plays no role, 1 if the history alone makes the difference.

    Parameters
    ----------
    labels : array_like, shape (N,)
        1 for generated, 0 for real.
    own, again, swapped : array_like, shape (N,)
        Logits of the images as they are, with a history of their own class, and with one of the other class.
    moved : array_like of bool, shape (N,)
        Images that could be given a history of the other class.
    clusters : sequence of str, optional
        Cluster of each image, the unit of the bootstrap.

    Returns
    -------
    float or None
        None if no image was moved, or the detector does not demonstrably tell the classes apart.
    Interval or None
    """
    fake = np.asarray(labels) == 1
    plain, control, other = (np.asarray(values, dtype=np.float64) for values in (own, again, swapped))
    towards = np.where(fake, control - other, other - control)
    chosen = np.asarray(moved, dtype=bool)
    masks = [mask for mask in (chosen & fake, chosen & ~fake) if mask.any()]
    if not masks or not fake.any() or fake.all():
        return None, None

    def measured(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        gap = _mean(weights, plain, fake) - _mean(weights, plain, ~fake)
        return np.mean([_mean(weights, towards, mask) for mask in masks], axis=0), gap

    parts = [measured(weights) for weights in resamples(cluster_numbers(clusters, len(fake)), REPLICATES, 0)]
    moves, gaps = (np.concatenate(values) for values in zip(*parts, strict=True))
    apart = interval(gaps)
    if apart is None or apart.low <= 0:
        return None, None
    move, gap = measured(np.ones((1, len(fake))))
    return float(move[0] / gap[0]), interval(moves / gaps)


def _mean(weights: FloatArray, values: FloatArray, rows: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the mean over some rows in each resample; NaN where none of them was drawn."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights[:, rows] @ values[rows]) / weights[:, rows].sum(axis=1))
