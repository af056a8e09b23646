"""All measures on each generator's own test set, and their unweighted means over generators and over families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .bootstrap import REPLICATES, Replicates, bootstrap, cluster_numbers
from .influence import degrees_of_freedom
from .intervals import Basis, interval_of, interval_of_difference, least
from .measures import (
    Array,
    FloatArray,
    IndexArray,
    Interval,
    both_classes,
    checked,
    measures,
    test_sets,
    unweighted_mean,
)

UNKNOWN_FAMILY = "unknown"


@dataclass(frozen=True)
class GeneratorScores:
    """The measures on one generator's test set.

    Attributes
    ----------
    generator, family
        Names; ``family`` is ``unknown`` if the dataset does not say.
    real, fake
        Number of images of each class.
    values
        Value of each of ``measures.MEASURES``; ``None`` where the test set does not define it.
    replicates
        The same measures in every resample.
    real_units, fake_units, units
        Independent units (images, or clusters of images) of each class and of both.
    freedom
        Degrees of freedom of the standard errors of some measures (`influence.degrees_of_freedom`).
    """

    generator: str
    family: str
    real: int
    fake: int
    values: Mapping[str, float | None]
    replicates: Replicates = field(repr=False, compare=False)
    real_units: int
    fake_units: int
    units: int
    freedom: Mapping[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the test set has both classes, so that it counts in means."""
        return self.real > 0 and self.fake > 0

    def interval(self, measure: str) -> Interval | None:
        """Return the 95 % interval of a measure; ``None`` where it is not defined, or none is known to hold."""
        value = self.values[measure]
        return None if value is None else interval_of(measure, value, self.replicates[measure], self.basis(measure))

    def basis(self, measure: str) -> Basis:
        """Return what a measure rests on."""
        own = {"real_accuracy": self.real_units, "fake_accuracy": self.fake_units}
        own |= dict.fromkeys(("tpr_at_fpr_1", "tpr_at_fpr_5"), self.fake_units)
        units = own.get(measure, self.units)
        return Basis(units, self.real, self.freedom.get(measure, max(1.0, units - 2.0)))

    @property
    def accuracy(self) -> float | None:
        """Accuracy at a threshold of 0.5."""
        return self.values["accuracy"]

    @property
    def average_precision(self) -> float | None:
        """Area under the precision-recall steps."""
        return self.values["average_precision"]

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve."""
        return self.values["auc"]

    @property
    def accuracy_interval(self) -> Interval | None:
        """95 % interval of the accuracy."""
        return self.interval("accuracy")

    @property
    def average_precision_interval(self) -> Interval | None:
        """95 % interval of the average precision."""
        return self.interval("average_precision")


def per_generator(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    generators: Sequence[str] | Array,
    groups: Sequence[str] | Array,
    *,
    families: Sequence[str] | Array | None = None,
    clusters: Sequence[str] | Array | None = None,
    calibrated_threshold: float | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, GeneratorScores]:
    """Compute the measures on every generator's own test set (see `test_sets`), with their resamples.

    All rows are resampled together, so reals that several generators share are drawn alike for all of them.

    Parameters
    ----------
    labels, scores : array_like, shape (N,)
        As for `measures.measures`.
    generators, groups, families : sequence of str, length N
        Generator, source group and family of each image.
    clusters : sequence of str, length N
        Images with the same name are resampled together; by default each image by itself.
    calibrated_threshold
        Threshold of ``calibrated_accuracy``.
    replicates, seed
        Number of resamples and the seed of their draw.

    Returns
    -------
    dict
        The scores by the generator's name, in sorted order.
    """
    sets = test_sets(labels, generators, groups)
    return score_sets(
        labels,
        scores,
        sets,
        families=families,
        clusters=clusters,
        calibrated_threshold=calibrated_threshold,
        replicates=replicates,
        seed=seed,
    )


def score_sets(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    sets: Mapping[str, IndexArray],
    *,
    families: Sequence[str] | Array | None = None,
    clusters: Sequence[str] | Array | None = None,
    calibrated_threshold: float | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, GeneratorScores]:
    """Compute the measures on given sets of rows, with their resamples; else as `per_generator`.

    Parameters
    ----------
    labels, scores, families, clusters, calibrated_threshold, replicates, seed
        As for `per_generator`.
    sets
        Row numbers of each set, by name.

    Returns
    -------
    dict
        The scores by the set's name.
    """
    truth, values = checked(labels, scores)
    names = np.full(len(truth), "") if families is None else np.asarray(families, dtype=str)
    drawn = bootstrap(
        truth, values, sets, clusters, calibrated_threshold=calibrated_threshold, replicates=replicates, seed=seed
    )
    numbers = cluster_numbers(clusters, len(truth))
    return {
        generator: GeneratorScores(
            generator=generator,
            family=_family(names[rows][truth[rows] == 1]),
            real=int(np.sum(truth[rows] == 0)),
            fake=int(np.sum(truth[rows] == 1)),
            values=measures(truth[rows], values[rows], calibrated_threshold),
            replicates=drawn[generator],
            real_units=len(np.unique(numbers[rows][truth[rows] == 0])),
            fake_units=len(np.unique(numbers[rows][truth[rows] == 1])),
            units=len(np.unique(numbers[rows])),
            freedom=degrees_of_freedom(truth[rows], values[rows], numbers[rows]) if both_classes(truth[rows]) else {},
        )
        for generator, rows in sets.items()
    }


def mean_over_generators(results: Mapping[str, GeneratorScores], measure: str) -> float | None:
    """Return the unweighted mean of a measure over the generators whose test set has both classes."""
    return unweighted_mean(r.values[measure] for r in results.values() if r.complete)


def mean_replicates(results: Mapping[str, GeneratorScores], measure: str) -> FloatArray | None:
    """Return that mean in every resample, (replicates,), NaN where a term is NaN; ``None`` if it is not defined."""
    drawn = [r.replicates[measure] for r in results.values() if r.complete and r.values[measure] is not None]
    return np.mean(drawn, axis=0) if drawn else None


def mean_interval(results: Mapping[str, GeneratorScores], measure: str) -> Interval | None:
    """Return the 95 % interval of the mean over generators, as `interval_of_mean`."""
    return interval_of_mean([r for r in results.values() if r.complete], measure)


def interval_of_mean(parts: Iterable[GeneratorScores], measure: str) -> Interval | None:
    """Return the 95 % interval of the mean of a measure over test sets that were resampled together."""
    found = _mean_and_resamples(parts, measure)
    return None if found is None else interval_of(measure, *found)


def paired_interval(
    first: Iterable[GeneratorScores], second: Iterable[GeneratorScores], measure: str
) -> Interval | None:
    """Return the 95 % interval of a difference of means, the second minus the first, over the same test images.

    Both sides must have been resampled alike.
    """
    before, after = _mean_and_resamples(first, measure), _mean_and_resamples(second, measure)
    if before is None or after is None:
        return None
    return interval_of_difference(measure, before[:2], after[:2], least((before[2], after[2])))


def _mean_and_resamples(parts: Iterable[GeneratorScores], measure: str) -> tuple[float, FloatArray, Basis] | None:
    """Return the mean over the test sets that define a measure, its resamples, and what it rests on."""
    defined = [part for part in parts if part.values[measure] is not None]
    value = unweighted_mean(part.values[measure] for part in defined)
    if value is None:
        return None
    drawn = np.mean([part.replicates[measure] for part in defined], axis=0)
    return value, drawn, least(part.basis(measure) for part in defined)


def by_family(results: Mapping[str, GeneratorScores]) -> dict[str, dict[str, GeneratorScores]]:
    """Group the generators that count in means by family, in sorted order, with the unknown family last."""
    families = {r.family for r in results.values() if r.complete}
    return {
        family: {generator: r for generator, r in results.items() if r.complete and r.family == family}
        for family in sorted(families, key=lambda name: (name == UNKNOWN_FAMILY, name))
    }


def _family(names: Iterable[str]) -> str:
    """Return the family of most of a generator's images; ``unknown`` if they name none."""
    known, times = np.unique(np.asarray(list(names), dtype=str), return_counts=True)
    return str(known[np.argmax(times)]) if len(known) and known[np.argmax(times)] else UNKNOWN_FAMILY
