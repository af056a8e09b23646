"""What the report answers: which configuration is best, whether the distillation helps, and what is missing for a claim.

The verdict rests on AP, the mean over generators. A lead counts only if its 95 % interval lies above zero. The interval is
that over test images (paired bootstrap) and, where there are several seeds, over trainings (Student's t) together.
Otherwise it is a tie. A configuration is the best one only if it leads every other in this way, so choosing it among many needs no further
correction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import UserError
from ..metrics.measures import Interval
from ..metrics.per_generator import interval_of_mean
from .differences import (
    Contrast,
    Difference,
    MeanSpread,
    configurations,
    contrast,
    difference_of_means,
    distillation,
    mean_spread,
)
from .inputs.measured import MeasuredEvaluation, Setting
from .inputs.runs import Run
from .wording import method_title

UNSEEN, SEEN, UNKNOWN = "unseen", "seen", "unknown"
"""Groups of test generators: none of the runs was trained on them, all were, or that is not recorded."""

FEW_IMAGES = 100
"""Test sets with fewer images of a class are small."""
FEW_SEEDS = 3
"""Fewer seeds give no useful spread."""
_AP, _AUC = "average_precision", "auc"


@dataclass(frozen=True)
class GeneratorAP:
    """A configuration's AP on one generator: mean and spread over seeds, interval over images, and each seed's value."""

    ap: MeanSpread
    interval: Interval | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Place:
    """One configuration among those compared on a group of generators.

    Attributes
    ----------
    name : str
        The run's name, or with several seeds the method; unique in a report.
    runs : tuple of Run
        One a seed.
    ap : MeanSpread
        Mean AP over generators: mean and spread over seeds.
    interval : Interval or None
        95 % interval of the AP over test images.
    auc_interval : Interval or None
        95 % interval of the mean AUC, which is 0.5 by chance.
    behind : Difference or None
        The best configuration's AP minus this one's; None for the best itself.
    generators : Mapping
        The AP on each generator.
    """

    name: str
    runs: tuple[Run, ...]
    ap: MeanSpread
    interval: Interval | None
    auc_interval: Interval | None
    behind: Difference | None
    generators: Mapping[str, GeneratorAP]

    @property
    def beats_chance(self) -> bool:
        """Whether the AUC's interval lies above one half."""
        return self.auc_interval is not None and self.auc_interval.low > 0.5


@dataclass(frozen=True)
class Standing:
    """The configurations on one group of generators of one setting, the highest AP first.

    Attributes
    ----------
    setting : Setting
    group : str
        ``UNSEEN``, ``SEEN`` or ``UNKNOWN``.
    generators : tuple of str
    fewest, fewest_units : int
        Fewest images, and independent units (images, or clusters of images), of a class in the test set of one of the
        generators.
    places : tuple of Place
        At least one.
    """

    setting: Setting
    group: str
    generators: tuple[str, ...]
    fewest: int
    fewest_units: int
    places: tuple[Place, ...]

    @property
    def tied(self) -> tuple[Place, ...]:
        """The places that the best one does not demonstrably lead."""
        return tuple(place for place in self.places if place.behind is not None and not is_above(place.behind))


@dataclass(frozen=True)
class Effect:
    """What a distillation weight changes in the AP on the generators of a standing."""

    kd_weight: float
    standing: Standing
    difference: Difference


@dataclass(frozen=True)
class Pair:
    """Two sides that were asked to be compared, on the setting that most images of both were scored on.

    Attributes
    ----------
    first, second : str
        Names of the sides.
    contrast : Contrast
        Every measure of both, the second minus the first.
    setting : Setting
    differences : Mapping
        ``UNSEEN``, ``SEEN`` or ``UNKNOWN`` -> the difference in AP on these generators.
    """

    first: str
    second: str
    contrast: Contrast
    setting: Setting
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Verdict:
    """The answers of a report.

    Attributes
    ----------
    standings : tuple of Standing
        At most one for each group, the unseen generators first: that of the setting with the most configurations, then
        the most images.
    further : tuple of Standing
        Those of the other settings.
    effects : tuple of Effect
        Of the distillation loss, on the generators of ``standings``.
    unaudited : tuple of str
        Evaluated datasets without an audit.
    mixed : tuple of str
        Generators that only some of the runs were trained on; no standing counts them.
    runs : tuple of Run
    pair : Pair or None
        The two sides that were asked to be compared.
    """

    standings: tuple[Standing, ...]
    further: tuple[Standing, ...]
    effects: tuple[Effect, ...]
    unaudited: tuple[str, ...]
    mixed: tuple[str, ...]
    runs: tuple[Run, ...] = field(repr=False)
    pair: Pair | None = None


def verdict(
    runs: Sequence[Run],
    measured: Mapping[Setting, Sequence[MeasuredEvaluation]],
    audited: Collection[tuple[str, str]],
    pair: Pair | None = None,
) -> Verdict:
    """Draw the report's conclusions.

    Parameters
    ----------
    runs : sequence of Run
        All runs of the report.
    measured : Mapping
        Setting -> its results.
    audited : collection of (str, str)
        Dataset and revision of what has an audit.
    pair : Pair, optional
        Two sides that were asked to be compared.
    """
    names = configuration_names(runs)
    found = [standing for setting, results in measured.items() for standing in standings(setting, results, names)]
    chosen = [
        max(group, key=lambda one: (len(one.places), _images(measured[one.setting])))
        for name in (UNSEEN, SEEN, UNKNOWN)
        if (group := [one for one in found if one.group == name])
    ]
    evaluated = dict.fromkeys(setting[:2] for setting in measured)
    mixed = {name for results in measured.values() for name, group in groups(results).items() if not group}
    return Verdict(
        standings=tuple(chosen),
        further=tuple(one for one in found if not any(one is other for other in chosen)),
        effects=tuple(effect for one in chosen for effect in effects(one, measured[one.setting])),
        unaudited=tuple(dict.fromkeys(name for name, revision in evaluated if (name, revision) not in audited)),
        mixed=tuple(sorted(mixed)),
        runs=tuple(runs),
        pair=pair,
    )


def configuration_names(runs: Sequence[Run]) -> dict[str, str]:
    """Name each configuration: by its run, or by its method if it has several seeds."""
    by_configuration: dict[str, list[Run]] = {}
    for run in runs:
        by_configuration.setdefault(run.configuration(), []).append(run)
    several = [method_title(group[0]) for group in by_configuration.values() if len(group) > 1]
    found = {}
    for configuration, group in by_configuration.items():
        title = method_title(group[0])
        title = f"{title} (as {group[0].name})" if several.count(title) > 1 else title
        found[configuration] = group[0].name if len(group) == 1 else title
    return found


def groups(results: Sequence[MeasuredEvaluation]) -> dict[str, str]:
    """Return the group of each generator that all results of a setting were tested on; empty if the runs differ in it.

    A run that does not say what it was trained on has no part in it, unless none says so.
    """
    known = [result for result in results if result.evaluation.seen or result.run.seen]
    common = set.intersection(*({name for name, s in result.scores.items() if s.complete} for result in results))
    found = {}
    for name in sorted(common):
        seen = {name in (result.evaluation.seen or result.run.seen) for result in known}
        found[name] = UNKNOWN if not seen else "" if len(seen) > 1 else SEEN if True in seen else UNSEEN
    return found


def _by_group(results: Sequence[MeasuredEvaluation]) -> dict[str, list[str]]:
    """Return the generators of each group of `groups`."""
    found: dict[str, list[str]] = {}
    for name, group in groups(results).items():
        found.setdefault(group, []).append(name)
    return found


def standings(setting: Setting, results: Sequence[MeasuredEvaluation], names: Mapping[str, str]) -> list[Standing]:
    """Rank the configurations of a setting on its unseen and on its seen generators.

    Parameters
    ----------
    setting : Setting
    results : sequence of MeasuredEvaluation
    names : Mapping
        Names of the configurations, as of `configuration_names`.
    """
    by_group = _by_group(results)
    found = []
    for group in (UNSEEN, SEEN, UNKNOWN):
        tested = by_group.get(group, [])
        ranked = sorted(configurations(results), key=lambda side: -(_mean(side, tested).mean or 0.0)) if tested else []
        if ranked:
            sets = [one.scores[name] for one in results for name in tested]
            fewest = min(min(scores.real, scores.fake) for scores in sets)
            units = min(min(scores.real_units, scores.fake_units) for scores in sets)
            places = tuple(_place(names[side[0].run.configuration()], side, ranked[0], tested) for side in ranked)
            found.append(Standing(setting, group, tuple(tested), fewest, units, places))
    return found


def effects(standing: Standing, results: Sequence[MeasuredEvaluation]) -> list[Effect]:
    """Measure what the distillation loss changes on the generators of a standing."""
    found = []
    for one in distillation(results):
        sides = [
            [result for result in results if any(result.run is run for run in runs)]
            for runs in (one.contrast.first, one.contrast.second)
        ]
        difference = difference_of_means(sides[0], sides[1], standing.generators, _AP)
        found.append(Effect(one.kd_weight, standing, difference))
    return found


def compare_sides(
    measured: Mapping[Setting, Sequence[MeasuredEvaluation]], first: Sequence[Run], second: Sequence[Run]
) -> Pair:
    """Compare two sides, each the runs of one configuration.

    Raises
    ------
    UserError
        If the runs of a side differ in more than the seed, or the sides share no run or no setting.
    """
    sides = (tuple(first), tuple(second))
    for side in sides:
        if len({run.configuration() for run in side}) > 1:
            raise UserError(
                f"--compare: {', '.join(run.name for run in side)} differ in more than the seed. Name one of them"
            )
    names = [{run.name for run in side} for side in sides]
    if names[0] & names[1]:
        raise UserError("--compare: both sides hold the same run. Name two different ones")
    shared = {}
    for setting, results in measured.items():
        found = [[one for one in results if one.run.name in side] for side in names]
        if all(found):
            shared[setting] = found
    if not shared:
        raise UserError(
            f"--compare: {first[0].name} and {second[0].name} were not evaluated on the same dataset, split and transform. "
            "Evaluate both alike with: distil-cache evaluate"
        )
    setting = max(shared, key=lambda one: min(_images(side) for side in shared[one]))
    one, other = shared[setting]
    by_group = _by_group([*one, *other])
    titles = [side[0].name if len(side) == 1 else f"{method_title(side[0])} ({len(side)} seeds)" for side in sides]
    return Pair(
        first=titles[0],
        second=titles[1],
        contrast=contrast(one, other),
        setting=setting,
        differences={
            group: difference_of_means(one, other, by_group[group], _AP)
            for group in (UNSEEN, SEEN, UNKNOWN)
            if group in by_group
        },
    )


def is_above(one: Difference) -> bool:
    """Return whether a difference is above zero by its interval over images and, where several seeds are there, seeds."""
    return _excludes(one, lambda within: within.low > 0)


def is_below(one: Difference) -> bool:
    """Return whether a difference is below zero in the same way."""
    return _excludes(one, lambda within: within.high < 0)


def _excludes(one: Difference, beyond: Callable[[Interval], bool]) -> bool:
    return one.total_interval is not None and beyond(one.total_interval)


def _place(
    name: str, side: Sequence[MeasuredEvaluation], best: Sequence[MeasuredEvaluation], tested: Sequence[str]
) -> Place:
    return Place(
        name=name,
        runs=tuple(result.run for result in side),
        ap=_mean(side, tested),
        interval=_interval(side, tested, _AP),
        auc_interval=_interval(side, tested, _AUC),
        behind=None if side is best else difference_of_means(side, best, tested, _AP),
        generators={generator: _on_generator(side, generator) for generator in tested},
    )


def _on_generator(side: Sequence[MeasuredEvaluation], name: str) -> GeneratorAP:
    values = tuple(ap for result in side if (ap := result.scores[name].average_precision) is not None)
    return GeneratorAP(mean_spread(values), _interval(side, [name], _AP), values)


def _mean(side: Sequence[MeasuredEvaluation], names: Sequence[str]) -> MeanSpread:
    def of(result: MeasuredEvaluation) -> float | None:
        return mean_spread(result.scores[name].values[_AP] for name in names).mean

    return mean_spread(map(of, side))


def _interval(side: Sequence[MeasuredEvaluation], names: Sequence[str], m: str) -> Interval | None:
    chosen = [{name: result.scores[name] for name in names} for result in side]
    same = all(result.evaluation.same_images(side[0].evaluation) for result in side)
    return interval_of_mean([scores for one in chosen for scores in one.values()], m) if same else None


def _images(results: Sequence[MeasuredEvaluation]) -> int:
    return max(len(result.evaluation.keys) for result in results)
