"""Bootstrap intervals of all measures (Efron and Tibshirani 1993, chapter 13: percentiles of resamples).

Images are resampled with replacement, or clusters of images that belong together (one scene, one source). A resample is
a row of weights, how often each image was drawn, and all measures are computed from a matrix of such rows at once: those
that are sums over images by one product of matrices, those that follow from the order of the scores by running sums over
the sorted images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .measures import (
    CALIBRATION_BINS,
    MEASURES,
    THRESHOLD,
    Array,
    FloatArray,
    IndexArray,
    Interval,
    calibration_bin,
    checked,
)

REPLICATES = 1000
_ELEMENTS_AT_ONCE = 250_000  # resampled weights held in memory together: 2 MB, and some ten arrays of that size

Replicates = Mapping[str, FloatArray]
"""Each measure in every resample, (replicates,); NaN where a resample does not define it."""


def bootstrap(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    sets: Mapping[str, IndexArray],
    clusters: Sequence[str] | Array | None = None,
    *,
    calibrated_threshold: float | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Replicates]:
    """The measures of each of ``sets`` (rows by name) in every resample of all rows.

    What is drawn depends on the names of the clusters (default: the places of the rows) and on the seed alone. So sets of
    one call share their resamples, and so do two students that scored the same images: means over sets, and differences
    between students, of the same resample are a paired bootstrap.
    """
    truth, values = checked(labels, scores)
    prepared = {
        name: _SortedScores(rows, truth[rows], values[rows], calibrated_threshold) for name, rows in sets.items()
    }
    found: dict[str, list[dict[str, FloatArray]]] = {name: [] for name in sets}
    for drawn in resamples(cluster_numbers(clusters, len(truth)), replicates, seed) if prepared else ():
        for name, one in prepared.items():
            found[name].append(one.measures(drawn))
    return {
        name: {measure: np.concatenate([part[measure] for part in parts]) for measure in MEASURES}
        for name, parts in found.items()
    }


def bootstrap_mean(
    values: npt.ArrayLike,
    clusters: Sequence[str] | Array | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval | None:
    """95 % interval of the mean of ``values``, resampled by row or by cluster; ``None`` of no value."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return None
    found = [
        (drawn @ numbers) / drawn.sum(axis=1)
        for drawn in resamples(cluster_numbers(clusters, len(numbers)), replicates, seed)
    ]
    return interval(np.concatenate(found))


def interval(replicates: FloatArray, level: float = 0.95) -> Interval | None:
    """The middle share ``level`` of the replicates, NaN left out; ``None`` if nothing is left."""
    kept = replicates[~np.isnan(replicates)]
    if not len(kept):
        return None
    low, high = np.percentile(kept, (50 * (1 - level), 50 * (1 + level)))
    return Interval(float(low), float(high))


def resamples(cluster_of_row: IndexArray, replicates: int, seed: int) -> Iterable[FloatArray]:
    """How often each row is drawn in each resample, (some replicates, rows), as many at once as memory allows.

    What is drawn depends on the clusters' numbers, not on the order of the rows: that makes resamples pairable.
    """
    rng = np.random.default_rng(seed)
    count = int(cluster_of_row.max()) + 1
    step = max(1, _ELEMENTS_AT_ONCE // len(cluster_of_row))
    for start in range(0, replicates, step):
        now = min(step, replicates - start)
        picked = rng.integers(0, count, size=(now, count)) + np.arange(now)[:, None] * count
        times = np.bincount(picked.ravel(), minlength=now * count).reshape(now, count)
        yield times.astype(np.float64)[:, cluster_of_row]


def cluster_numbers(clusters: Sequence[str] | Array | None, rows: int) -> IndexArray:
    """Each row's cluster as a number, by the sorted names; the row's own place without clusters."""
    if clusters is None:
        return np.arange(rows)
    names = np.asarray(clusters)
    if names.shape != (rows,):
        raise ValueError(f"one cluster a row is needed: {names.shape} for {rows} rows")
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


class _SortedScores:
    """What does not depend on how often images are drawn: their order, and each image's part in every sum."""

    def __init__(self, rows: IndexArray, labels: Array, scores: FloatArray, calibrated_threshold: float | None) -> None:
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        self.rows = rows[order]
        self.fake = (labels[order] == 1).astype(np.float64)
        self.steps = np.append(0, np.flatnonzero(np.diff(falling)) + 1)  # where another score begins
        self.parts = _parts(labels[order] == 1, falling, calibrated_threshold)
        self.calibrated = calibrated_threshold is not None

    def measures(self, drawn: FloatArray) -> dict[str, FloatArray]:
        """All measures, (replicates,) each; drawn : how often each row is drawn, (replicates, all rows)."""
        weights = drawn[:, self.rows]
        sums = (weights @ self.parts).T
        total, fakes, right, right_fakes, right_calibrated, squared = sums[:-CALIBRATION_BINS]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "accuracy": right / total,
                "brier": squared / total,
                "calibration_error": np.abs(sums[-CALIBRATION_BINS:]).sum(axis=0) / total,
                "real_accuracy": (right - right_fakes) / (total - fakes),
                "fake_accuracy": right_fakes / fakes,
                "calibrated_accuracy": right_calibrated / total if self.calibrated else np.full(len(total), np.nan),
            }
            ranked = self._ranked(weights, fakes, total - fakes)
        both = (fakes > 0) & (fakes < total)
        return found | {name: np.where(both, values, np.nan) for name, values in ranked.items()}

    def _ranked(self, weights: FloatArray, fakes: FloatArray, reals: FloatArray) -> dict[str, FloatArray]:
        """The measures that follow from the order of the scores. Equal scores are one step, as in scikit-learn."""
        gained = weights * self.fake
        lost = weights - gained
        if len(self.steps) < len(self.fake):
            gained, lost = (np.add.reduceat(one, self.steps, axis=1) for one in (gained, lost))
        curve = _Curve(np.cumsum(gained, axis=1), np.cumsum(lost, axis=1), fakes, reals)
        return {
            "average_precision": curve.area_of_precision(gained, np.ones(len(weights))),
            "balanced_average_precision": curve.area_of_precision(gained, fakes / reals),
            "auc": (_dot(lost, curve.found) - _dot(lost, gained) / 2) / (fakes * reals),
            "tpr_at_fpr_1": curve.found_at(0.01),
            "tpr_at_fpr_5": curve.found_at(0.05),
            "equal_error_rate": curve.equal_errors(),
        }


class _Curve:
    """The ROC curves of some resamples: generated images found and reals called generated after each step of the scores.

    found, wrong : (replicates, steps), rising to fakes and reals, (replicates,).
    """

    def __init__(self, found: FloatArray, wrong: FloatArray, fakes: FloatArray, reals: FloatArray) -> None:
        self.found, self.wrong, self.fakes, self.reals = found, wrong, fakes, reals
        self.replicates = np.arange(len(found))

    def area_of_precision(self, gained: FloatArray, weight_of_reals: FloatArray) -> FloatArray:
        """AP if each real counted with the weight of its resample."""
        called = self.wrong * weight_of_reals[:, None]
        called += self.found
        np.maximum(called, np.finfo(np.float64).tiny, out=called)  # nothing is found either where nothing is called
        return _dot(gained, np.divide(self.found, called, out=called)) / self.fakes

    def found_at(self, rate: float) -> FloatArray:
        """The share that the lowest threshold finds which calls at most ``rate`` of the reals generated."""
        allowed = np.floor(rate * self.reals + 1e-9)
        steps = self._first(lambda step: self.wrong[self.replicates, step] > allowed)
        found = self.found[self.replicates, np.maximum(steps, 1) - 1]
        return np.where(steps > 0, found, 0.0) / self.fakes

    def equal_errors(self) -> FloatArray:
        """Where the lines between the points, the first being (0, 0), meet the falling diagonal."""
        last = self.found.shape[1] - 1
        after = np.minimum(self._first(lambda step: np.sum(self._point(step), axis=0) >= 1), last)
        wrong, found = self._point(after)
        wrong_before, found_before = np.where(after > 0, self._point(np.maximum(after - 1, 0)), 0.0)
        way = (1 - wrong_before - found_before) / (wrong + found - wrong_before - found_before)
        return np.asarray(wrong_before + way * (wrong - wrong_before))

    def _point(self, step: IndexArray) -> tuple[FloatArray, FloatArray]:
        """The curves' false and true positive rate after a step of each."""
        return self.wrong[self.replicates, step] / self.reals, self.found[self.replicates, step] / self.fakes

    def _first(self, holds: Callable[[IndexArray], npt.NDArray[np.bool_]]) -> IndexArray:
        """The first step of each curve from which on a condition holds; the number of steps if it never does.

        Bisection: the condition must hold for all steps after one that it holds for.
        """
        low, high = np.zeros(len(self.found), np.intp), np.full(len(self.found), self.found.shape[1], np.intp)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            below = holds(np.minimum(middle, self.found.shape[1] - 1))
            high = np.where(open_ & below, middle, high)
            low = np.where(open_ & ~below, middle + 1, low)
        return low


def _parts(fake: npt.NDArray[np.bool_], scores: FloatArray, calibrated_threshold: float | None) -> FloatArray:
    """Each image's part in the sums, (images, 6 + bins).

    The columns: 1, fake, right, right fake, right at the calibrated threshold, squared error; then the excess of its score
    over its label, in the column of its bin.
    """
    right = (scores > THRESHOLD) == fake
    calibrated = (scores > (THRESHOLD if calibrated_threshold is None else calibrated_threshold)) == fake
    excess = np.zeros((len(scores), CALIBRATION_BINS))
    excess[np.arange(len(scores)), calibration_bin(scores)] = scores - fake
    return np.column_stack([np.ones(len(scores)), fake, right, right & fake, calibrated, (scores - fake) ** 2, excess])


def _dot(one: FloatArray, other: FloatArray) -> FloatArray:
    """The sum of products along each row."""
    return np.asarray(np.einsum("ij,ij->i", one, other))
