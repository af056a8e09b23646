"""All measures on each generator's own test set, and their unweighted means over generators and over families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .bootstrap import REPLICATES, Replicates, bootstrap, cluster_numbers, interval
from .ends import NO_INTERVAL, interval_near_the_ends
from .measures import Array, FloatArray, IndexArray, Interval, checked, measures, test_sets, unweighted_mean

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

    @property
    def complete(self) -> bool:
        """Whether the test set has both classes, so that it counts in means."""
        return self.real > 0 and self.fake > 0

    def interval(self, measure: str) -> Interval | None:
        """Return the 95 % interval of a measure; ``None`` where it is not defined, or none is known to hold."""
        value = self.values[measure]
        if value is None:
            return None
        drawn = interval(self.replicates[measure])
        size = (self.real + self.fake) / max(1, self.units)
        return interval_near_the_ends(measure, value, drawn, self.real_units, self.fake_units, self.units, size)

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
    drawn = mean_replicates(results, measure)
    own = [r for r in results.values() if r.complete and r.values[measure] is not None]
    return None if drawn is None else interval_of_mean(drawn, own, measure)


def interval_of_mean(drawn: FloatArray, parts: Sequence[GeneratorScores], measure: str) -> Interval | None:
    """Return the 95 % interval of a mean; where no resample differs, the mean of the intervals of its parts.

    Parameters
    ----------
    drawn : ndarray, (replicates,)
        The mean in every resample.
    parts : sequence of GeneratorScores
        What it is the mean of.
    measure : str
    """
    found = interval(drawn)
    if measure in NO_INTERVAL or found is None or found.high > found.low:
        return None if measure in NO_INTERVAL else found
    ends = [own for part in parts if (own := part.interval(measure)) is not None]
    return Interval(*(float(end) for end in np.mean(ends, axis=0))) if ends else None


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
