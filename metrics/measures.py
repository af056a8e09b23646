"""Measures of a detector's scores, by scikit-learn, and the test set of each generator.

Label 1 is generated, label 0 is real. A score is the probability of "generated"; a score above the threshold calls the
image generated. A measure that needs both classes is ``None`` where one is missing, and every measure is ``None`` for
an empty set: never 0, never NaN. scikit-learn takes a second to import, so each function imports what it uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

THRESHOLD = 0.5
CALIBRATION_BINS = 10

MEASURES = (
    "accuracy",
    "average_precision",
    "auc",
    "balanced_average_precision",
    "tpr_at_fpr_1",
    "tpr_at_fpr_5",
    "equal_error_rate",
    "brier",
    "calibration_error",
    "real_accuracy",
    "fake_accuracy",
    "calibrated_accuracy",
)
"""Names of all measures. ``calibrated_accuracy`` is the accuracy at a threshold that validation chose."""


class Interval(NamedTuple):
    """95 % interval, in the unit of the measure."""

    low: float
    high: float


def measures(
    labels: npt.ArrayLike, scores: npt.ArrayLike, calibrated_threshold: float | None = None
) -> dict[str, float | None]:
    """Compute all measures of a set of images.

    Parameters
    ----------
    labels : array_like, shape (N,)
        1 for generated, 0 for real.
    scores : array_like, shape (N,)
        Probability of "generated", in 0..1.
    calibrated_threshold
        Threshold of ``calibrated_accuracy``, which is ``None`` without it.

    Returns
    -------
    dict
        A value for each name of ``MEASURES``; ``None`` where the images do not define it.
    """
    truth, values = checked(labels, scores)
    reals, fakes = truth == 0, truth == 1
    return {
        "accuracy": accuracy(truth, values),
        "average_precision": average_precision(truth, values),
        "auc": auc(truth, values),
        "balanced_average_precision": balanced_average_precision(truth, values),
        "tpr_at_fpr_1": tpr_at_fpr(truth, values, 0.01),
        "tpr_at_fpr_5": tpr_at_fpr(truth, values, 0.05),
        "equal_error_rate": equal_error_rate(truth, values),
        "brier": brier(truth, values),
        "calibration_error": calibration_error(truth, values),
        "real_accuracy": accuracy(truth[reals], values[reals]),
        "fake_accuracy": accuracy(truth[fakes], values[fakes]),
        "calibrated_accuracy": (
            None if calibrated_threshold is None else accuracy(truth, values, calibrated_threshold)
        ),
    }


def accuracy(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float = THRESHOLD) -> float | None:
    """Return the share of images on the right side of the threshold."""
    truth, values = checked(labels, scores)
    return float(np.mean((values > threshold) == (truth == 1))) if len(truth) else None


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the average precision: the area under the precision-recall steps."""
    truth, values = checked(labels, scores)
    if not both_classes(truth):
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, values))


def balanced_average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the average precision with both classes weighted to the same total."""
    truth, values = checked(labels, scores)
    if not both_classes(truth):
        return None
    from sklearn.metrics import average_precision_score

    weights = np.where(truth == 1, 1 / np.sum(truth == 1), 1 / np.sum(truth == 0))
    return float(average_precision_score(truth, values, sample_weight=weights))


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the area under the ROC curve."""
    truth, values = checked(labels, scores)
    if not both_classes(truth):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, values))


def tpr_at_fpr(labels: npt.ArrayLike, scores: npt.ArrayLike, rate: float) -> float | None:
    """Return the largest true positive rate among thresholds with a false positive rate of at most ``rate``."""
    truth, values = checked(labels, scores)
    if not both_classes(truth):
        return None
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(truth, values, drop_intermediate=False)
    return float(true_positive[false_positive <= rate].max())


def equal_error_rate(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the error rate where false positive rate and false negative rate are equal.

    The points of the ROC curve are joined by straight lines.
    """
    truth, values = checked(labels, scores)
    if not both_classes(truth):
        return None
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(truth, values, drop_intermediate=False)
    balance = false_positive + true_positive - 1  # from -1 to 1
    after = int(np.argmax(balance >= 0))
    fraction = -balance[after - 1] / (balance[after] - balance[after - 1])
    return float(false_positive[after - 1] + fraction * (false_positive[after] - false_positive[after - 1]))


def brier(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the Brier score, the mean squared difference of score and label: a constant 0.5 gets 0.25."""
    truth, values = checked(labels, scores)
    if not len(truth):
        return None
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(truth == 1, values, pos_label=True))


def calibration_error(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Return the expected calibration error (Guo et al. 2017) over ten bins of equal width.

    In each bin, this is the difference between mean score and share of generated images; the mean over the bins is
    weighted by their number of images.
    """
    truth, values = checked(labels, scores)
    if not len(truth):
        return None
    excess = np.bincount(calibration_bin(values), values - (truth == 1), CALIBRATION_BINS)
    return float(np.abs(excess).sum() / len(truth))


def calibration_bin(scores: npt.ArrayLike) -> IndexArray:
    """Return the bin of each score in 0..1, (N,). A bin includes its upper end; the first one includes 0 as well."""
    numbers = np.ceil(np.asarray(scores, dtype=np.float64) * CALIBRATION_BINS).astype(np.intp) - 1
    return np.clip(numbers, 0, CALIBRATION_BINS - 1)


def unweighted_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values, one per generator whatever its size; ``None`` without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def test_sets(
    labels: npt.ArrayLike, generators: Sequence[str] | Array, groups: Sequence[str] | Array
) -> dict[str, IndexArray]:
    """Return the rows of each generator's test set among the rows of one split.

    A generator is tested on its fakes and on the reals that carry its name (its folder pairs them with it). If there
    are none, it is tested on all reals of the source groups of its fakes.

    Parameters
    ----------
    labels : array_like, shape (N,)
        1 for generated, 0 for real.
    generators, groups : sequence of str, length N
        Generator and source group of each row.

    Returns
    -------
    dict
        Row numbers by the generator's name, in sorted order of the names.
    """
    truth, names, sources = np.asarray(labels), np.asarray(generators, dtype=str), np.asarray(groups, dtype=str)
    sets: dict[str, IndexArray] = {}
    for generator in sorted(set(names[truth == 1].tolist())):
        fakes = (truth == 1) & (names == generator)
        reals = (truth == 0) & (names == generator)
        if not reals.any():
            reals = (truth == 0) & np.isin(sources, np.unique(sources[fakes]))
        sets[generator] = np.flatnonzero(fakes | reals)
    return sets


def checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Array, FloatArray]:
    """Return labels and scores as arrays of one length.

    Raises
    ------
    ValueError
        The lengths differ, or a score is not finite.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise ValueError(f"labels and scores must be two lists of one length: {truth.shape} and {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers")
    return truth, values


def both_classes(labels: Array) -> bool:
    """Return whether the labels contain both classes."""
    return bool((labels == 1).any() and (labels == 0).any())
