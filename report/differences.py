"""What the report compares: seeds of one configuration, runs with and without the distillation loss, methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from ..metrics.bootstrap import bootstrap_mean
from ..metrics.measures import MEASURES, Array, Interval, unweighted_mean
from ..metrics.per_generator import GeneratorScores, by_family, mean_over_generators, paired_interval
from .inputs.measured import MeasuredEvaluation, all_families, all_generators, cluster_names
from .inputs.runs import MeanDire, Run
from .wording import generator_title

_Scores = Mapping[str, GeneratorScores]
REALS_WITHOUT_GENERATOR = frozenset({"", "real"})


class MeanSpread(NamedTuple):
    """Mean and sample standard deviation over runs; the spread is None for fewer than two values."""

    mean: float | None
    spread: float | None


@dataclass(frozen=True)
class SeedSummary:
    """Runs that differ only in the seed: each measure by generator, in the mean over generators, and by family."""

    runs: tuple[Run, ...]
    generators: Mapping[str, Mapping[str, MeanSpread]]
    mean: Mapping[str, MeanSpread]
    families: Mapping[str, Mapping[str, MeanSpread]]


@dataclass(frozen=True)
class Difference:
    """A measure of two sides, each the mean over its runs, and the second minus the first.

    Attributes
    ----------
    interval : Interval or None
        Paired bootstrap over the test images; None if the sides scored different images.
    spread : float or None
        Sample standard deviation of the difference over common seeds.
    seeds : int
        Number of common seeds.
    left_out : int
        Runs that have no partner with their seed and are not compared; 0 if no seed is common and all are.
    unpaired : tuple of MeanSpread and int, for each side
        Mean and spread over the seeds of each side, and their number, where no seed is common; else empty.
    """

    first: float | None
    second: float | None
    difference: float | None
    interval: Interval | None
    spread: float | None
    seeds: int = 0
    left_out: int = 0
    unpaired: tuple[tuple[MeanSpread, int], ...] = ()

    @property
    def seed_interval(self) -> Interval | None:
        """95 % interval of the mean difference over trainings; None below two seeds.

        Student's t over common seeds; Welch's where none is common and each side has several.
        """
        if self.difference is None:
            return None
        if self.spread is not None:
            error, freedom = self.spread / math.sqrt(self.seeds), self.seeds - 1.0
        else:
            parts = [(one.spread**2 / number, number) for one, number in self.unpaired if one.spread is not None]
            total = sum(part for part, _ in parts)
            if len(parts) < 2:
                return None
            error = math.sqrt(total)
            freedom = total**2 / sum(part**2 / (number - 1) for part, number in parts) if total > 0 else 1.0
        reach = float(stdtrit(freedom, 0.975)) * error
        return Interval(self.difference - reach, self.difference + reach)

    @property
    def total_interval(self) -> Interval | None:
        """95 % interval over other images and other trainings: both reaches, added in squares; that over images alone
        below two seeds.
        """
        if self.difference is None or self.interval is None or self.seed_interval is None:
            return self.interval
        below, above = (
            math.hypot(self.interval[end] - self.difference, self.seed_interval[end] - self.difference)
            for end in (0, 1)
        )
        return Interval(self.difference - below, self.difference + above)


@dataclass(frozen=True)
class Contrast:
    """Two configurations: the difference of each measure by generator, in the mean over generators, and by family."""

    first: tuple[Run, ...]
    second: tuple[Run, ...]
    generators: Mapping[str, Mapping[str, Difference]]
    mean: Mapping[str, Difference]
    families: Mapping[str, Mapping[str, Difference]]


@dataclass(frozen=True)
class Distillation:
    """The effect of the distillation loss: runs that differ only in ``kd_weight`` and the seed.

    Attributes
    ----------
    kd_weight : float
        Weight of the runs with the loss.
    contrast : Contrast
        The runs without the loss first, then those with it.
    """

    kd_weight: float
    contrast: Contrast


@dataclass(frozen=True)
class DireClass:
    """Mean DIRE of the images of one class: ``values`` (N,) in 0..1, their mean and its 95 % interval."""

    label: int
    generator: str
    values: Array
    mean: float
    interval: Interval | None

    @property
    def title(self) -> str:
        """The class as shown."""
        if self.label == 1:
            return generator_title(self.generator)
        return "real" if self.generator in REALS_WITHOUT_GENERATOR else f"real ({self.generator})"


def over_seeds(results: Sequence[MeasuredEvaluation]) -> list[SeedSummary]:
    """Summarise each configuration with at least two seeds among the results of one setting."""
    found = []
    for group in configurations(results):
        if len(group) < 2:
            continue
        scores = [result.scores for result in group]
        generators = {
            name: {m: mean_spread(s[name].values[m] for s in scores if name in s) for m in MEASURES}
            for name in all_generators(group)
        }
        families = {
            name: _spreads([own for s in scores if (own := by_family(s).get(name))]) for name in all_families(group)
        }
        found.append(SeedSummary(_runs(group), generators, _spreads(scores), families))
    return found


def distillation(results: Sequence[MeasuredEvaluation]) -> list[Distillation]:
    """Compare every pair of configurations that differ only in ``kd_weight``, one of them with weight 0."""
    groups: dict[str, dict[float, list[MeasuredEvaluation]]] = {}
    for result in results:
        if result.run.kd_weight is not None:
            by_weight = groups.setdefault(result.run.configuration(besides_distillation=True), {})
            by_weight.setdefault(result.run.kd_weight, []).append(result)
    found = []
    for by_weight in groups.values():
        without = _one_per_seed(by_weight.get(0.0, []))
        for weight in sorted(by_weight):
            if without and weight != 0.0:
                found.append(Distillation(weight, contrast(without, _one_per_seed(by_weight[weight]))))
    return found


def between_methods(results: Sequence[MeasuredEvaluation]) -> list[Contrast]:
    """Compare every pair of configurations with different methods, in the order of the runs."""
    pairs = combinations(configurations(results), 2)
    return [contrast(first, second) for first, second in pairs if _method(first[0].run) != _method(second[0].run)]


def contrast(first: Sequence[MeasuredEvaluation], second: Sequence[MeasuredEvaluation]) -> Contrast:
    """Compare two sides of one setting in every measure; intervals need that all scored the same images.

    If the sides have some seeds in common, only those are compared.
    """
    given = len(first) + len(second)
    first, second = _common_seeds(first, second)
    differences = partial(
        _differences, first, second, paired=_paired(first, second), left_out=given - len(first) - len(second)
    )
    names = [name for name in all_generators(first) if name in all_generators(second)]
    kinds = [name for name in all_families(first) if name in all_families(second)]
    return Contrast(
        _runs(first),
        _runs(second),
        {name: differences(partial(_only, name=name)) for name in names},
        differences(_complete),
        {name: differences(partial(_of_family, name=name)) for name in kinds},
    )


def difference_of_means(
    first: Sequence[MeasuredEvaluation], second: Sequence[MeasuredEvaluation], generators: Collection[str], m: str
) -> Difference:
    """Return the difference in the mean of one measure over some generators, over common seeds as in `contrast`."""
    given = len(first) + len(second)
    first, second = _common_seeds(first, second)
    left_out = given - len(first) - len(second)
    return _difference(first, second, partial(_among, names=generators), _paired(first, second), left_out, m)


def dire_classes(dire: MeanDire, clusters: Mapping[str, str] | None) -> list[DireClass]:
    """Summarise the mean DIRE of real images and of each generator's, real first.

    Parameters
    ----------
    dire : MeanDire
    clusters : Mapping or None
        Key of an image -> its cluster, as in ``write_report``.
    """
    found = []
    for label, generator in sorted(set(zip(dire.labels.tolist(), dire.generators.tolist(), strict=True))):
        rows = (dire.labels == label) & (dire.generators == generator)
        values = dire.values[rows]
        spread = bootstrap_mean(values, cluster_names(dire.keys[rows], clusters))
        found.append(DireClass(label, generator, values, float(values.mean()), spread))
    return found


def mean_spread(values: Iterable[float | None]) -> MeanSpread:
    """Return mean and spread of the values that are not None."""
    defined = [value for value in values if value is not None]
    return MeanSpread(unweighted_mean(defined), float(np.std(defined, ddof=1)) if len(defined) > 1 else None)


def configurations(results: Sequence[MeasuredEvaluation]) -> list[list[MeasuredEvaluation]]:
    """Return the results of each configuration, one per seed."""
    groups: dict[str, list[MeasuredEvaluation]] = {}
    for result in results:
        groups.setdefault(result.run.configuration(), []).append(result)
    return [_one_per_seed(group) for group in groups.values()]


def _spreads(scores: Sequence[_Scores]) -> dict[str, MeanSpread]:
    return {m: mean_spread(mean_over_generators(one, m) for one in scores) for m in MEASURES}


def _one_per_seed(results: Iterable[MeasuredEvaluation]) -> list[MeasuredEvaluation]:
    """Return the first result of each seed: a repeated training is not another draw."""
    first: dict[object, MeasuredEvaluation] = {}
    for result in results:
        first.setdefault(result.run.get("seed"), result)
    return list(first.values())


def _runs(results: Sequence[MeasuredEvaluation]) -> tuple[Run, ...]:
    return tuple(result.run for result in results)


def _method(run: Run) -> tuple[object, object]:
    return run.get("method"), run.get("preset")


def _common_seeds(
    first: Sequence[MeasuredEvaluation], second: Sequence[MeasuredEvaluation]
) -> tuple[Sequence[MeasuredEvaluation], Sequence[MeasuredEvaluation]]:
    """Return both sides without the seeds that only one of them has, or unchanged if they have none in common."""
    seeds = [{result.run.get("seed") for result in side} for side in (first, second)]
    common = seeds[0] & seeds[1]
    if not common:
        return first, second
    kept = [[result for result in side if result.run.get("seed") in common] for side in (first, second)]
    return kept[0], kept[1]


def _paired(first: Sequence[MeasuredEvaluation], second: Sequence[MeasuredEvaluation]) -> bool:
    return all(result.evaluation.same_images(first[0].evaluation) for result in (*first, *second))


def _only(scores: _Scores, name: str) -> _Scores:
    return {name: scores[name]} if name in scores else {}


def _among(scores: _Scores, names: Collection[str]) -> _Scores:
    return {name: one for name, one in scores.items() if name in names}


def _of_family(scores: _Scores, name: str) -> _Scores:
    return by_family(scores).get(name, {})


def _complete(scores: _Scores) -> _Scores:
    return {name: one for name, one in scores.items() if one.complete}


def _differences(
    first: Sequence[MeasuredEvaluation],
    second: Sequence[MeasuredEvaluation],
    chosen: Callable[[_Scores], _Scores],
    paired: bool,
    left_out: int,
) -> dict[str, Difference]:
    """Return the difference in every measure, each the unweighted mean over the generators that ``chosen`` selects."""
    return {m: _difference(first, second, chosen, paired, left_out, m) for m in MEASURES}


def _difference(
    first: Sequence[MeasuredEvaluation],
    second: Sequence[MeasuredEvaluation],
    chosen: Callable[[_Scores], _Scores],
    paired: bool,
    left_out: int,
    m: str,
) -> Difference:
    sides = [{result.run.get("seed"): chosen(result.scores) for result in side} for side in (first, second)]
    before, after = ({seed: _mean(scores, m) for seed, scores in side.items()} for side in sides)
    means = [unweighted_mean(values.values()) for values in (before, after)]
    change = None if means[0] is None or means[1] is None else means[1] - means[0]
    parts = [[one for scores in side.values() for one in scores.values()] for side in sides]
    bounds = paired_interval(parts[0], parts[1], m) if paired and change is not None else None
    pairs = [(before[seed], after[seed]) for seed in before if seed in after]
    changes = [b - a for a, b in pairs if a is not None and b is not None]
    unpaired = () if pairs else tuple((mean_spread(one.values()), len(one)) for one in (before, after))
    return Difference(means[0], means[1], change, bounds, mean_spread(changes).spread, len(changes), left_out, unpaired)


def _mean(scores: _Scores, m: str) -> float | None:
    return unweighted_mean(one.values[m] for one in scores.values())
