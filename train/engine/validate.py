"""Validation of a student, and the validation scores to keep."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F

from ...choices import TestTransform
from ...metrics.measures import accuracy, average_precision
from ..data.dataset import FeatureDataset
from ..data.readers import ImageTransform
from ..data.rows import OWN_VAL
from ..data.select import with_texts
from ..evaluation.score import Logits, predict, probability
from ..runs.checkpoint import ValidationScores
from ..runs.forms import EpochMetrics
from .session import Session

TRANSFORM: TestTransform = "crop"
KEPT = ("key", "label", "generator", "family", "group")


def validate(session: Session, epoch: int) -> tuple[EpochMetrics, Logits | None]:
    """Measure BCE, AP and accuracy of the validation rows under the papers' test transform.

    A method whose code blurs and compresses validation images does so here, with the random numbers of the epoch.
    Several processes share the rows; all return the same values.

    Parameters
    ----------
    session
        The training.
    epoch
        The finished epoch, from 1.

    Returns
    -------
    tuple
        The values, None without validation rows, and the logits of the rows, (rows,) float32, or None.
    """
    if session.val is None:
        return {"val_bce": None, "val_ap": None, "val_acc": None}, None
    change = functools.partial(session.degrade_val, epoch=epoch) if session.degrade_val else None
    logits = score_rows(session, session.val, change)
    labels = session.val.label
    bce = binary_cross_entropy(logits, labels)
    if not math.isfinite(bce):
        return {"val_bce": bce, "val_ap": None, "val_acc": None}, None
    scores = probability(logits)
    line: EpochMetrics = {
        "val_bce": bce,
        "val_ap": average_precision(labels, scores),
        "val_acc": accuracy(labels, scores),
    }
    return line, logits


def clean_logits(session: Session, validated: Logits | None) -> Logits | None:
    """Return the logits of the validation images as they are, which tests and predictions are compared with.

    Those of `validate` are returned unless it degraded the images. Every process must call this.
    """
    return validated if session.val is None or session.degrade_val is None else score_rows(session, session.val)


def binary_cross_entropy(logits: Logits, labels: npt.NDArray[np.int64]) -> float:
    """Return the mean cross-entropy of logits and labels, (rows,) each."""
    return F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels).float()).item()


def score_rows(session: Session, rows: FeatureDataset, change: ImageTransform | None = None) -> Logits:
    """Return the logit of every row, (rows,) float32. Several processes share the rows; each must call this."""
    return predict(
        session.student,
        rows,
        session.method,
        size=session.size,
        transform=TRANSFORM,
        batch_size=session.config.batch_size,
        device=session.ranks.device,
        loading=session.loading,
        joined=session.ranks.joined,
        change=change,
    )


def validation_scores(session: Session, logits: Logits | None) -> ValidationScores | None:
    """Return the validation scores of the new best student, to be saved with it; None without validation rows."""
    if session.val is None or logits is None:
        return None
    table = with_texts(session.val.table.select(KEPT)).append_column("score", pa.array(probability(logits)))
    return ValidationScores(table, session.record.validation.replace(OWN_VAL, "val"), TRANSFORM)
