"""Bootstrap of all measures (Efron and Tibshirani 1993).

Images are resampled with replacement, or whole clusters of images that belong together (one scene, one source). A
resample is a row of weights: how often each image was drawn. The classes keep the ratio of the test set, which was chosen
and not drawn: the images of each class are weighted to their number there. All measures are computed from a matrix of such rows at
once. Measures that are sums over images take one matrix product; those that depend on the order of the scores take
cumulative sums over the sorted images.
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
_ELEMENTS_AT_ONCE = 250_000  # resampled weights in memory at a time: 2 MB, and about ten arrays of that size

Replicates = Mapping[str, FloatArray]
"""Value of each measure in every resample, (replicates,) float64; NaN where a resample does not define it."""


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
    """Compute the measures of several sets of rows in every resample of all rows.

    What is drawn depends only on the seed and on the names of the clusters. So the sets of one call share their
    resamples, and so do two students that scored the same images: a mean over sets, or a difference between students,
    of the same resample is a paired bootstrap.

    Parameters
    ----------
    labels, scores : array_like, shape (N,)
        As for `measures.measures`.
    sets
        Row numbers of each set, by name.
    clusters
        Name of each row's cluster, length N; by default each row is its own.
    calibrated_threshold
        Threshold of ``calibrated_accuracy``, which is NaN without it.
    replicates
        Number of resamples.
    seed
        Seed of the draw.

    Returns
    -------
    dict
        For each set, each measure in every resample, (replicates,).
    """
    truth, values = checked(labels, scores)
    prepared = {
        name: _SortedScores(rows, truth[rows], values[rows], calibrated_threshold) for name, rows in sets.items()
    }
    batches: dict[str, list[dict[str, FloatArray]]] = {name: [] for name in sets}
    for drawn in resamples(cluster_numbers(clusters, len(truth)), replicates, seed) if prepared else ():
        for name, scored in prepared.items():
            batches[name].append(scored.measures(drawn))
    return {
        name: {measure: np.concatenate([batch[measure] for batch in parts]) for measure in MEASURES}
        for name, parts in batches.items()
    }


def bootstrap_mean(
    values: npt.ArrayLike,
    clusters: Sequence[str] | Array | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval | None:
    """Return the 95 % interval of the mean of ``values``, resampled by row or by cluster; ``None`` without values."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return None
    means = [
        (drawn @ numbers) / drawn.sum(axis=1)
        for drawn in resamples(cluster_numbers(clusters, len(numbers)), replicates, seed)
    ]
    return interval(np.concatenate(means))


def interval(replicates: FloatArray, level: float = 0.95) -> Interval | None:
    """Return the central ``level`` share of the replicates, ignoring NaN; ``None`` if none is left."""
    kept = replicates[~np.isnan(replicates)]
    if not len(kept):
        return None
    tail = round(50 * (1 - level), 9)  # 2.5, and not 2.5000000000000022
    low, high = np.percentile(kept, (tail, 100 - tail))
    return Interval(float(low), float(high))


def resamples(cluster_of_row: IndexArray, replicates: int, seed: int) -> Iterable[FloatArray]:
    """Yield how often each row is drawn, as many resamples at a time as memory allows.

    What is drawn depends on the numbers of the clusters, not on the order of the rows, so resamples can be paired.

    Parameters
    ----------
    cluster_of_row : ndarray, shape (N,)
        Number of each row's cluster, from 0.
    replicates
        Number of resamples.
    seed
        Seed of the draw.

    Yields
    ------
    ndarray, shape (some replicates, N)
        Counts as float64.
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
    """Number the clusters of rows by the sorted names, (rows,); without clusters, each row has its own number.

    Raises
    ------
    ValueError
        There is not one cluster name for each row.
    """
    if clusters is None:
        return np.arange(rows)
    names = np.asarray(clusters)
    if names.shape != (rows,):
        raise ValueError(f"clusters must have one name per row: shape {names.shape} for {rows} rows")
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


class _SortedScores:
    """Everything that does not depend on the resample: the order of the images and each image's term in every sum."""

    def __init__(self, rows: IndexArray, labels: Array, scores: FloatArray, calibrated_threshold: float | None) -> None:
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        self.rows = rows[order]
        self.fake = (labels[order] == 1).astype(np.float64)
        self.steps = np.append(0, np.flatnonzero(np.diff(falling)) + 1)  # where a new score begins
        terms = _terms(labels[order] == 1, falling, calibrated_threshold)
        self.terms = np.hstack([terms * (1 - self.fake[:, None]), terms * self.fake[:, None]])  # of reals, of fakes
        self.calibrated = calibrated_threshold is not None

    def measures(self, drawn: FloatArray) -> dict[str, FloatArray]:
        """Return all measures, (replicates,) each, for counts ``drawn`` of shape (replicates, all rows)."""
        weights = drawn[:, self.rows]
        reals, fakes = weights @ (1 - self.fake), weights @ self.fake
        with np.errstate(divide="ignore", invalid="ignore"):
            # the ratio of the classes is that of the test set, which was chosen: resamples keep it
            of_fakes, of_reals = _factor(self.fake.sum(), fakes), _factor((1 - self.fake).sum(), reals)
            sums_of_reals, sums_of_fakes = np.split((weights @ self.terms).T, 2)
            sums = of_reals * sums_of_reals + of_fakes * sums_of_fakes
            total, right, right_calibrated, squared = sums[:-CALIBRATION_BINS]
            values = {
                "accuracy": right / total,
                "brier": squared / total,
                "calibration_error": np.abs(sums[-CALIBRATION_BINS:]).sum(axis=0) / total,
                "real_accuracy": sums_of_reals[1] / sums_of_reals[0],
                "fake_accuracy": sums_of_fakes[1] / sums_of_fakes[0],
                "calibrated_accuracy": right_calibrated / total if self.calibrated else np.full(len(total), np.nan),
            }
            ranking = self._ranking_measures(weights, fakes, reals, of_reals / of_fakes)
        both = (fakes > 0) & (reals > 0)
        return values | {name: np.where(both, value, np.nan) for name, value in ranking.items()}

    def _ranking_measures(
        self, weights: FloatArray, fakes: FloatArray, reals: FloatArray, ratio: FloatArray
    ) -> dict[str, FloatArray]:
        """Return the measures that depend on the order of the scores. Tied scores are one step, as in scikit-learn.

        ``ratio`` (replicates,) weights the reals of each resample, so that the classes keep the ratio of the test set.
        """
        fake_weights = weights * self.fake
        real_weights = weights - fake_weights
        if len(self.steps) < len(self.fake):
            fake_weights, real_weights = (
                np.add.reduceat(counts, self.steps, axis=1) for counts in (fake_weights, real_weights)
            )
        curve = _Curve(np.cumsum(fake_weights, axis=1), np.cumsum(real_weights, axis=1), fakes, reals)
        return {
            "average_precision": curve.average_precision(fake_weights, ratio),
            "balanced_average_precision": curve.average_precision(fake_weights, fakes / reals),
            "auc": (_dot(real_weights, curve.tp) - _dot(real_weights, fake_weights) / 2) / (fakes * reals),
            "tpr_at_fpr_1": curve.tpr_at(0.01),
            "tpr_at_fpr_5": curve.tpr_at(0.05),
            "equal_error_rate": curve.equal_error_rate(),
        }


class _Curve:
    """The ROC curves of some resamples: cumulative true and false positives after each step of the falling threshold.

    Parameters
    ----------
    tp, fp : ndarray, shape (replicates, steps)
        True and false positives, rising to ``fakes`` and ``reals``.
    fakes, reals : ndarray, shape (replicates,)
        Images of each class.
    """

    def __init__(self, tp: FloatArray, fp: FloatArray, fakes: FloatArray, reals: FloatArray) -> None:
        self.tp, self.fp, self.fakes, self.reals = tp, fp, fakes, reals
        self.replicates = np.arange(len(tp))

    def average_precision(self, fake_weights: FloatArray, real_factor: FloatArray) -> FloatArray:
        """Return the average precision with the reals of each resample weighted by a factor, (replicates,)."""
        called = self.fp * real_factor[:, None]
        called += self.tp
        # where nothing is called generated, there are no true positives either, and 0 / tiny is 0
        np.maximum(called, np.finfo(np.float64).tiny, out=called)
        return _dot(fake_weights, np.divide(self.tp, called, out=called)) / self.fakes

    def tpr_at(self, rate: float) -> FloatArray:
        """Return the true positive rate at the lowest threshold whose false positive rate is at most ``rate``."""
        allowed = np.floor(rate * self.reals + 1e-9)
        steps = self._first(lambda step: self.fp[self.replicates, step] > allowed)
        tp = self.tp[self.replicates, np.maximum(steps, 1) - 1]
        return np.where(steps > 0, tp, 0.0) / self.fakes

    def equal_error_rate(self) -> FloatArray:
        """Return the equal error rate: where the curve, its points joined by lines, meets the falling diagonal."""
        last = self.tp.shape[1] - 1
        after = np.minimum(self._first(lambda step: np.sum(self._point(step), axis=0) >= 1), last)
        fp, tp = self._point(after)
        fp_before, tp_before = np.where(after > 0, self._point(np.maximum(after - 1, 0)), 0.0)
        fraction = (1 - fp_before - tp_before) / (fp + tp - fp_before - tp_before)
        return np.asarray(fp_before + fraction * (fp - fp_before))

    def _point(self, step: IndexArray) -> tuple[FloatArray, FloatArray]:
        """Return false and true positive rate of each curve after its step, (replicates,) each."""
        return self.fp[self.replicates, step] / self.reals, self.tp[self.replicates, step] / self.fakes

    def _first(self, holds: Callable[[IndexArray], npt.NDArray[np.bool_]]) -> IndexArray:
        """Return the first step of each curve from which on a condition holds; the number of steps if it never does.

        This is a bisection: once the condition holds, it must hold for all later steps.
        """
        low, high = np.zeros(len(self.tp), np.intp), np.full(len(self.tp), self.tp.shape[1], np.intp)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            below = holds(np.minimum(middle, self.tp.shape[1] - 1))
            high = np.where(open_ & below, middle, high)
            low = np.where(open_ & ~below, middle + 1, low)
        return low


def _terms(fake: npt.NDArray[np.bool_], scores: FloatArray, calibrated_threshold: float | None) -> FloatArray:
    """Return each image's terms in the sums, (images, 4 + bins).

    The columns are: 1, right, right at the calibrated threshold, squared error; then score minus label, in
    the column of the score's bin.
    """
    right = (scores > THRESHOLD) == fake
    calibrated = (scores > (THRESHOLD if calibrated_threshold is None else calibrated_threshold)) == fake
    excess = np.zeros((len(scores), CALIBRATION_BINS))
    excess[np.arange(len(scores)), calibration_bin(scores)] = scores - fake
    return np.column_stack([np.ones(len(scores)), right, calibrated, (scores - fake) ** 2, excess])


def _factor(images: float, drawn: FloatArray) -> FloatArray:
    """Return what weights the drawn images of a class to as many as the test set has; NaN where none was drawn."""
    if images == 0:
        return np.ones_like(drawn)
    return np.where(drawn > 0, images / drawn, np.nan)


def _dot(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the dot product of each pair of rows."""
    return np.asarray(np.einsum("ij,ij->i", left, right))
