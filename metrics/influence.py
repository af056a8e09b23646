"""How few images carry the standard error of a measure: its degrees of freedom, from the influence of each image.

The influence of an image is the derivative of the measure by the image's weight (Hampel 1974); for the AUC it is DeLong's
structural component (DeLong, DeLong and Clarke-Pearson 1988). The sum of their squares over clusters is the variance that
resamples have. It is itself an estimate, as good as that of a sample with the same kurtosis: of a detector with
few errors, a few images make nearly all of it.
"""

from __future__ import annotations

import numpy as np

from .measures import Array, FloatArray, IndexArray


def degrees_of_freedom(labels: Array, scores: FloatArray, clusters: IndexArray) -> dict[str, float]:
    """Return the degrees of freedom of the standard errors of AP, balanced AP, AUC and Brier score.

    Parameters
    ----------
    labels : ndarray, shape (N,)
        1 for generated, 0 for real; both must occur.
    scores : ndarray, shape (N,)
        Probability of "generated".
    clusters : ndarray of int, shape (N,)
        Number of each image's cluster, from 0.

    Returns
    -------
    dict
        From 1 to the number of clusters minus 2, by the measure's name.
    """
    number = np.unique(clusters, return_inverse=True)[1]
    return {name: _freedom(values, number) for name, values in influences(labels, scores).items()}


def influences(labels: Array, scores: FloatArray) -> dict[str, FloatArray]:
    """Return the influence of each image on AP, balanced AP, AUC and Brier score, (N,) by the measure's name.

    Each class sums to 0, since the ratio of the classes is fixed. Arguments are as for `degrees_of_freedom`.
    """
    fake = np.asarray(labels) == 1
    _, block = np.unique(-scores, return_inverse=True)  # equal scores are one step of the curve
    fakes, reals = (np.bincount(block, weights=one).astype(np.float64) for one in (fake, ~fake))
    balanced = reals * (fakes.sum() / reals.sum())
    found = {
        "average_precision": _of_average_precision(fakes, reals, block, fake),
        "balanced_average_precision": _of_average_precision(fakes, balanced, block, fake),
        "auc": _of_auc(fakes, reals, block, fake),
        "brier": (scores - fake) ** 2 / len(scores),
    }
    return {name: values - np.where(fake, values[fake].mean(), values[~fake].mean()) for name, values in found.items()}


def _of_average_precision(fakes: FloatArray, reals: FloatArray, block: IndexArray, fake: Array) -> FloatArray:
    """Return the influence of each image on the AP, but for the mean of its class.

    Parameters
    ----------
    fakes, reals : ndarray, shape (steps,)
        Images, or their weight, at each step of the falling threshold.
    block : ndarray of int, shape (N,)
        Step of each image.
    fake : ndarray of bool, shape (N,)
    """
    tp, fp = np.cumsum(fakes), np.cumsum(reals)
    called = tp + fp
    by_fakes, by_reals = fakes * fp / called**2, fakes * tp / called**2
    later_fakes, later_reals = (np.cumsum(one[::-1])[::-1] for one in (by_fakes, by_reals))
    factor = reals.sum() / max(1, np.sum(~fake))  # a real's weight
    return np.asarray(np.where(fake, (tp / called + later_fakes)[block], -factor * later_reals[block]) / fakes.sum())


def _of_auc(fakes: FloatArray, reals: FloatArray, block: IndexArray, fake: Array) -> FloatArray:
    """Return the influence of each image on the AUC, but for the mean of its class; arguments as above."""
    below = (reals.sum() - np.cumsum(reals) + reals / 2) / reals.sum()
    above = (np.cumsum(fakes) - fakes / 2) / fakes.sum()
    return np.asarray(np.where(fake, below[block] / fakes.sum(), above[block] / reals.sum()))


def _freedom(values: FloatArray, clusters: IndexArray) -> float:
    """Return the degrees of freedom of the variance of the clusters' sums, as Satterthwaite's for their kurtosis."""
    squares = np.bincount(clusters, weights=values) ** 2
    count, total = len(squares), float(squares.sum())
    kurtosis = count * float(np.sum(squares**2)) / total**2 if total > 0 else 3.0
    return float(np.clip(2 * count / max(kurtosis - 1, 1e-9), 1, max(1, count - 2)))
