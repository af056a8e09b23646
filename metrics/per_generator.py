"""All measures on each generator's own test set, and their unweighted means over generators and over families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .bootstrap import REPLICATES, Replicates, bootstrap, interval
from .measures import Array, FloatArray, Interval, checked, measures, test_sets, unweighted_mean

UNKNOWN_FAMILY = "unknown"


@dataclass(frozen=True)
class GeneratorScores:
    """The measures on one generator's test set.

    real, fake : images. values : by the names of ``measures.MEASURES``; ``None`` where the test set does not define one.
    replicates : the same in every resample.
    """

    generator: str
    family: str
    real: int
    fake: int
    values: Mapping[str, float | None]
    replicates: Replicates = field(repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether there are reals and generated images, so that it counts in means."""
        return self.real > 0 and self.fake > 0

    def interval(self, measure: str) -> Interval | None:
        """95 % interval of a measure; ``None`` where it is not defined."""
        return None if self.values[measure] is None else interval(self.replicates[measure])

    @property
    def accuracy(self) -> float | None:
        """Share of images on their side of 0.5."""
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
        """95 % interval of the AP; ``None`` where there is no AP."""
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
    """The measures of every generator's own test set (see ``test_sets``), with their resamples.

    All arguments are of one length, a row an image; ``clusters`` names what is resampled together (default: each row).
    All rows are resampled together, so that reals which several generators share are drawn alike for all of them.
    """
    truth, values = checked(labels, scores)
    names = np.full(len(truth), "") if families is None else np.asarray(families, dtype=str)
    sets = test_sets(truth, generators, groups)
    drawn = bootstrap(
        truth, values, sets, clusters, calibrated_threshold=calibrated_threshold, replicates=replicates, seed=seed
    )
    return {
        generator: GeneratorScores(
            generator=generator,
            family=_family(names[rows][truth[rows] == 1]),
            real=int(np.sum(truth[rows] == 0)),
            fake=int(np.sum(truth[rows] == 1)),
            values=measures(truth[rows], values[rows], calibrated_threshold),
            replicates=drawn[generator],
        )
        for generator, rows in sets.items()
    }


def mean_over_generators(results: Mapping[str, GeneratorScores], measure: str) -> float | None:
    """Unweighted mean of a measure over the generators whose test set has reals and fakes."""
    return unweighted_mean(r.values[measure] for r in results.values() if r.complete)


def mean_replicates(results: Mapping[str, GeneratorScores], measure: str) -> FloatArray | None:
    """The same mean in every resample, NaN where one of them is; ``None`` where the mean is not defined."""
    drawn = [r.replicates[measure] for r in results.values() if r.complete and r.values[measure] is not None]
    return np.mean(drawn, axis=0) if drawn else None


def mean_interval(results: Mapping[str, GeneratorScores], measure: str) -> Interval | None:
    """95 % interval of the mean over generators."""
    drawn = mean_replicates(results, measure)
    return None if drawn is None else interval(drawn)


def by_family(results: Mapping[str, GeneratorScores]) -> dict[str, dict[str, GeneratorScores]]:
    """The generators that count in means, by family, in sorted order; those of no known family come last."""
    found: dict[str, dict[str, GeneratorScores]] = {}
    for name in sorted({r.family for r in results.values() if r.complete}, key=lambda n: (n == UNKNOWN_FAMILY, n)):
        found[name] = {g: r for g, r in results.items() if r.complete and r.family == name}
    return found


def _family(names: Iterable[str]) -> str:
    """The family of most of a generator's images; ``unknown`` where they tell none."""
    known, times = np.unique(np.asarray(list(names), dtype=str), return_counts=True)
    return str(known[np.argmax(times)]) or UNKNOWN_FAMILY
