"""What a detector's scores are worth: accuracy, AP, AUC, the test set of each generator, bootstrap intervals.

Label 1 is generated, label 0 is real; a score is the probability of "generated". Accuracy calls a score above the
threshold generated. AP and AUC are scikit-learn's. A measure that needs both classes is ``None`` where one is absent:
never 0, never NaN. Intervals are percentile bootstraps (Efron and Tibshirani 1993, chapter 13) over images, or over
clusters of images that belong together (one scene, one source).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

REPLICATES = 1000
_ELEMENTS_AT_ONCE = 1_000_000  # resampled weights held in memory together: 8 MB


class Interval(NamedTuple):
    """A 95 % bootstrap interval, in the unit of the measure."""

    low: float
    high: float


@dataclass(frozen=True)
class Replicates:
    """The measures of every bootstrap resample, float64 of shape (replicates,).

    Two students scored on the same images with the same seed are resampled alike, so the difference of their replicates
    is a paired bootstrap. NaN where a resample holds one class only.
    """

    accuracy: FloatArray
    average_precision: FloatArray


@dataclass(frozen=True)
class GeneratorScores:
    """The measures on one generator's test set, each in 0..1; ``None`` where the test set does not define it."""

    generator: str
    real: int
    fake: int
    accuracy: float | None
    average_precision: float | None
    auc: float | None
    real_accuracy: float | None
    fake_accuracy: float | None
    replicates: Replicates = field(repr=False, compare=False)

    @property
    def accuracy_interval(self) -> Interval | None:
        """95 % interval of the accuracy."""
        return interval(self.replicates.accuracy)

    @property
    def average_precision_interval(self) -> Interval | None:
        """95 % interval of the AP; ``None`` where there is no AP."""
        return interval(self.replicates.average_precision)


def accuracy(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float = 0.5) -> float | None:
    """Share of images on their own side of the threshold (a score above it says generated); ``None`` of no image."""
    truth, values = _checked(labels, scores)
    return float(np.mean((values > threshold) == (truth == 1))) if len(truth) else None


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Area under the precision-recall steps, as scikit-learn computes it; ``None`` unless both classes are there."""
    truth, values = _checked(labels, scores)
    return float(average_precision_score(truth, values)) if _both_classes(truth) else None


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Area under the ROC curve; ``None`` unless both classes are there."""
    truth, values = _checked(labels, scores)
    return float(roc_auc_score(truth, values)) if _both_classes(truth) else None


def unweighted_mean(values: Iterable[float | None]) -> float | None:
    """Mean over generators, each counted once whatever its size; undefined values are left out, ``None`` if all are."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def test_sets(
    labels: npt.ArrayLike, generators: Sequence[str] | Array, groups: Sequence[str] | Array
) -> dict[str, IndexArray]:
    """Rows of each generator's test set among the rows of one split, by the generator's name, in sorted order.

    A generator is tested on its fakes and on the reals that carry its name (its folder pairs them with it). Where there
    are none, on all reals of the source groups that its fakes come from.
    """
    truth, names, sources = np.asarray(labels), np.asarray(generators, dtype=str), np.asarray(groups, dtype=str)
    found: dict[str, IndexArray] = {}
    for generator in sorted(set(names[truth == 1].tolist())):
        fakes = (truth == 1) & (names == generator)
        reals = (truth == 0) & (names == generator)
        if not reals.any():
            reals = (truth == 0) & np.isin(sources, np.unique(sources[fakes]))
        found[generator] = np.flatnonzero(fakes | reals)
    return found


def per_generator(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    generators: Sequence[str] | Array,
    groups: Sequence[str] | Array,
    *,
    clusters: Sequence[str] | Array | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, GeneratorScores]:
    """The measures of every generator's own test set (see ``test_sets``), with 95 % intervals.

    All arguments are of one length, a row an image; ``clusters`` names what is resampled together (default: each row).
    """
    truth, values = _checked(labels, scores)
    found: dict[str, GeneratorScores] = {}
    for generator, rows in test_sets(truth, generators, groups).items():
        part, part_scores = truth[rows], values[rows]
        drawn = bootstrap(
            part,
            part_scores,
            None if clusters is None else np.asarray(clusters)[rows],
            replicates=replicates,
            seed=seed,
        )
        found[generator] = GeneratorScores(
            generator=generator,
            real=int(np.sum(part == 0)),
            fake=int(np.sum(part == 1)),
            accuracy=accuracy(part, part_scores),
            average_precision=average_precision(part, part_scores),
            auc=auc(part, part_scores),
            real_accuracy=accuracy(part[part == 0], part_scores[part == 0]),
            fake_accuracy=accuracy(part[part == 1], part_scores[part == 1]),
            replicates=drawn,
        )
    return found


def mean_over_generators(results: Mapping[str, GeneratorScores], measure: str) -> float | None:
    """Unweighted mean of a measure (a field's name) over the generators whose test set has reals and fakes."""
    return unweighted_mean(getattr(r, measure) for r in results.values() if r.real and r.fake)


def bootstrap(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    clusters: Sequence[str] | Array | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    threshold: float = 0.5,
) -> Replicates:
    """Accuracy and AP of ``replicates`` resamples with replacement of the images, or of whole clusters of images.

    Ties in the score are one step of the precision-recall curve, as in scikit-learn.
    """
    truth, values = _checked(labels, scores)
    if not len(truth):
        return Replicates(np.full(replicates, np.nan), np.full(replicates, np.nan))
    order = np.argsort(-values, kind="stable")
    positive, falling = truth[order] == 1, values[order]
    correct = (falling > threshold) == positive
    step_ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    found_accuracy, found_ap = [], []
    for drawn in _draws(_cluster_numbers(clusters, len(truth))[order], replicates, seed):
        size = drawn.sum(axis=1)
        found_accuracy.append((drawn * correct).sum(axis=1) / size)
        true_positive = np.cumsum(drawn * positive, axis=1)[:, step_ends]
        called = np.cumsum(drawn, axis=1)[:, step_ends]
        gained = np.diff(true_positive, axis=1, prepend=0)
        precision = true_positive / np.maximum(called, 1)
        positives = true_positive[:, -1]
        both = (positives > 0) & (positives < size)
        area = (gained * precision).sum(axis=1) / np.maximum(positives, 1)
        found_ap.append(np.where(both, area, np.nan))
    return Replicates(np.concatenate(found_accuracy), np.concatenate(found_ap))


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
        (drawn * numbers).sum(axis=1) / drawn.sum(axis=1)
        for drawn in _draws(_cluster_numbers(clusters, len(numbers)), replicates, seed)
    ]
    return interval(np.concatenate(found))


def interval(replicates: FloatArray) -> Interval | None:
    """The middle 95 % of the replicates, NaN left out; ``None`` if nothing is left."""
    kept = replicates[~np.isnan(replicates)]
    if not len(kept):
        return None
    low, high = np.percentile(kept, (2.5, 97.5))
    return Interval(float(low), float(high))


def _draws(cluster_of_row: IndexArray, replicates: int, seed: int) -> Iterable[npt.NDArray[np.int64]]:
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
        yield times[:, cluster_of_row]


def _cluster_numbers(clusters: Sequence[str] | Array | None, rows: int) -> IndexArray:
    if clusters is None:
        return np.arange(rows)
    names = np.asarray(clusters)
    if names.shape != (rows,):
        raise ValueError(f"one cluster a row is needed: {names.shape} for {rows} rows")
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Array, FloatArray]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise ValueError(f"labels and scores must be two lists of one length: {truth.shape} and {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers")
    return truth, values


def _both_classes(labels: Array) -> bool:
    return bool((labels == 1).any() and (labels == 0).any())
