"""The report's comparisons: every run on every generator, over seeds, with and without the distillation loss.

Each comparison is computed into a plain structure first (that is what report.json holds) and laid out as a ``Table``
afterwards. Accuracy and AP are in 0..1 in the structures and in percent in the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..metrics import (
    Array,
    GeneratorScores,
    Interval,
    bootstrap_mean,
    interval,
    mean_over_generators,
    per_generator,
    unweighted_mean,
)
from .runs import Evaluation, MeanDire, Run

MEASURES = ("accuracy", "average_precision")
REALS_WITHOUT_GENERATOR = frozenset({"", "real"})


@dataclass(frozen=True)
class Table:
    """A table as text. A cell's lines after the first are shown small; the first column heads its row.

    Columns from ``numeric_from`` on hold numbers and are aligned to the right.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric_from: int = 1


@dataclass(frozen=True)
class Result:
    """One evaluation of one run, measured: a ``GeneratorScores`` for each generator."""

    run: Run
    evaluation: Evaluation
    scores: Mapping[str, GeneratorScores]


class MeanSpread(NamedTuple):
    """Mean and sample standard deviation of a few runs' values; the spread needs at least two."""

    mean: float | None
    spread: float | None


@dataclass(frozen=True)
class SeedSummary:
    """Runs that share everything but the seed: values by generator and measure, and of the mean over generators."""

    runs: tuple[Run, ...]
    generators: Mapping[str, Mapping[str, MeanSpread]]
    mean: Mapping[str, MeanSpread]


@dataclass(frozen=True)
class Difference:
    """A measure without and with the distillation loss (means over the runs of each side), and with minus without.

    ``interval`` is a paired bootstrap over the test images; ``spread`` the standard deviation over common seeds.
    """

    without: float | None
    with_loss: float | None
    difference: float | None
    interval: Interval | None
    spread: float | None


@dataclass(frozen=True)
class Distillation:
    """The effect of the distillation loss: runs that differ in nothing but ``kd_weight`` and the seed."""

    kd_weight: float
    without: tuple[Run, ...]
    with_loss: tuple[Run, ...]
    generators: Mapping[str, Mapping[str, Difference]]
    mean: Mapping[str, Difference]


@dataclass(frozen=True)
class DireClass:
    """Mean DIRE (0..1) of the images of one class: their values, the mean and its 95 % interval."""

    label: int
    generator: str
    values: Array
    mean: float
    interval: Interval | None

    @property
    def title(self) -> str:
        """The class in words."""
        if self.label == 1:
            return generator_title(self.generator)
        return "real" if self.generator in REALS_WITHOUT_GENERATOR else f"real ({self.generator})"


def measure(runs: Iterable[Run], clusters: Mapping[str, str] | None) -> dict[tuple[str, ...], list[Result]]:
    """All evaluations of all runs, measured, by their setting; ``clusters`` names what each key is resampled with."""
    found: dict[tuple[str, ...], list[Result]] = {}
    for run in runs:
        for one in run.evaluations:
            scores = per_generator(
                one.labels, one.scores, one.generators, one.groups, clusters=cluster_names(one.keys, clusters)
            )
            found.setdefault(one.setting, []).append(Result(run, one, scores))
    return found


def cluster_names(keys: Array, clusters: Mapping[str, str] | None) -> Array:
    """What each image is resampled with: its cluster where it has one, else itself (a repeated image is one)."""
    return keys if clusters is None else np.asarray([clusters.get(key, key) for key in keys.tolist()], dtype=str)


def all_generators(results: Iterable[Result]) -> list[str]:
    """Names of all test generators, sorted."""
    return sorted({generator for result in results for generator in result.scores})


def over_seeds(results: Sequence[Result]) -> list[SeedSummary]:
    """A summary for each configuration that has at least two seeds among the results of one setting."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.run.configuration(), []).append(result)
    found = []
    for group in map(_one_a_seed, groups.values()):
        if len(group) < 2:
            continue
        generators = {
            name: {m: _mean_spread(getattr(r.scores[name], m) for r in group if name in r.scores) for m in MEASURES}
            for name in all_generators(group)
        }
        mean = {m: _mean_spread(mean_over_generators(r.scores, m) for r in group) for m in MEASURES}
        found.append(SeedSummary(tuple(result.run for result in group), generators, mean))
    return found


def distillation(results: Sequence[Result]) -> list[Distillation]:
    """Every pair of configurations that differ only in ``kd_weight``, one of them without the loss (weight 0)."""
    groups: dict[str, dict[float, list[Result]]] = {}
    for result in results:
        if result.run.kd_weight is not None:
            by_weight = groups.setdefault(result.run.configuration(besides_distillation=True), {})
            by_weight.setdefault(result.run.kd_weight, []).append(result)
    found = []
    for by_weight in groups.values():
        without = _one_a_seed(by_weight.get(0.0, []))
        for weight in sorted(by_weight):
            if not without or weight == 0.0:
                continue
            with_loss = _one_a_seed(by_weight[weight])
            names = [name for name in all_generators(without) if name in all_generators(with_loss)]
            generators = {name: {m: _difference(without, with_loss, name, m) for m in MEASURES} for name in names}
            mean = {m: _mean_difference(without, with_loss, m) for m in MEASURES}
            found.append(Distillation(weight, _runs(without), _runs(with_loss), generators, mean))
    return found


def dire_classes(dire: MeanDire, clusters: Mapping[str, str] | None) -> list[DireClass]:
    """Mean DIRE of the reals and of each generator's fakes, reals first."""
    found = []
    for label, generator in sorted(set(zip(dire.labels.tolist(), dire.generators.tolist(), strict=True))):
        rows = (dire.labels == label) & (dire.generators == generator)
        values = dire.values[rows]
        spread = bootstrap_mean(values, cluster_names(dire.keys[rows], clusters))
        found.append(DireClass(label, generator, values, float(values.mean()), spread))
    return found


def results_table(title: str, results: Sequence[Result]) -> Table:
    """Rows are runs, columns are test generators: accuracy / AP, their intervals, and the unweighted mean."""
    generators = all_generators(results)
    seen = {name: [name in r.evaluation.seen for r in results] for name in generators}
    counts = {
        name: {(r.scores[name].real, r.scores[name].fake) for r in results if name in r.scores} for name in generators
    }
    columns = ["run"]
    for name in generators:
        size = _counts(*next(iter(counts[name]))) if len(counts[name]) == 1 else "counts in the cells"
        columns.append(f"{generator_title(name)}{'*' if all(seen[name]) else ''}\n{size}")
    rows = []
    for result in results:
        row = [
            f"{result.run.name}\n{method_title(result.run)}, seed {result.run.get('seed')}\n{_trained_on(result.run)}"
        ]
        for name in generators:
            scores = result.scores.get(name)
            mark = "*" if name in result.evaluation.seen and not all(seen[name]) else ""
            row.append(_score_cell(scores, mark, with_counts=len(counts[name]) > 1) if scores else "–")
        row.append(" / ".join(percent(mean_over_generators(result.scores, m)) for m in MEASURES))
        rows.append(row)
    note = "Accuracy at 0.5 / AP, in percent, and below it their 95 % intervals in this order. In the head: real + generated test images."
    if any(any(flags) for flags in seen.values()):
        note += " * generator seen in training."
    return Table(f"Accuracy and AP by test generator: {title}.", [*columns, "mean"], rows, note)


def seeds_table(title: str, summaries: Sequence[SeedSummary]) -> Table:
    """Rows are configurations with several seeds: mean ± sample standard deviation of accuracy / AP."""
    generators = sorted({name for summary in summaries for name in summary.generators})
    rows = []
    for summary in summaries:
        first, seeds = summary.runs[0], ", ".join(str(run.get("seed")) for run in summary.runs)
        names = ", ".join(run.name for run in summary.runs)
        row = [f"{method_title(first)}\nseeds {seeds}, {_trained_on(first)}\n{names}"]
        for name in generators:
            row.append(_spread_cell(summary.generators[name]) if name in summary.generators else "–")
        rows.append([*row, _spread_cell(summary.mean)])
    columns = ["configuration", *map(generator_title, generators), "mean"]
    note = "Accuracy at 0.5 / AP, in percent: mean ± sample standard deviation over seeds."
    return Table(f"The same over seeds: {title}.", columns, rows, note)


def distillation_table(title: str, one: Distillation) -> Table:
    """Rows are test generators: accuracy and AP without and with the loss, and the difference in points."""
    rows = [[generator_title(name), *_difference_cells(found)] for name, found in one.generators.items()]
    rows.append(["mean", *_difference_cells(one.mean)])
    sides = [
        f"{label} ({', '.join(run.name for run in runs)})"
        for label, runs in (("without", one.without), (f"with weight {one.kd_weight:g}", one.with_loss))
    ]
    columns = ["generator", *(f"{m}\n{side}" for m in ("accuracy", "AP") for side in ("without", "with", "difference"))]
    note = (
        f"{sides[0]}; {sides[1]}; the same configuration otherwise. Percent, differences in percentage points with "
        "their 95 % interval from a paired bootstrap over test images (it does not cover the choice of seed)"
    )
    if any(found.spread is not None for found in one.mean.values()):
        note += "; ± is the standard deviation of the difference over common seeds"
    return Table(f"With and without the distillation loss: {title}.", columns, rows, note + ".")


def dire_table(title: str, classes: Sequence[DireClass]) -> Table:
    """Rows are classes: images, mean DIRE and its interval."""
    rows = [[one.title, str(len(one.values)), f"{one.mean:.4f}", _bounds(one.interval, 1.0, 4)] for one in classes]
    note = "Mean over pixels and channels of the reconstruction error, as a share of the grey range (0 to 1)."
    return Table(f"Mean DIRE by class: {title}.", ["class", "images", "mean DIRE", "95 % interval"], rows, note)


def method_title(run: Run) -> str:
    """Method, with its preset unless that is the paper's, and distillation weight of a run."""
    preset = run.get("preset")
    method = f"{run.get('method')}{f' ({preset})' if preset not in (None, 'paper') else ''}"
    return method if run.kd_weight is None else f"{method}, distillation weight {run.kd_weight:g}"


def generator_title(name: str) -> str:
    """A generator's name as shown."""
    return name or "(no name)"


def percent(value: float | None) -> str:
    """0.9345 as ``93.5`` (no sign), ``–`` for a value that is not defined."""
    return "–" if value is None else f"{100 * value:.1f}"


def _trained_on(run: Run) -> str:
    return "trained elsewhere" if run.get("imported") else f"trained on {run.datasets}"


def _counts(real: int, fake: int) -> str:
    return f"{real} + {fake}"


def _bounds(bounds: Interval | None, scale: float = 100.0, digits: int = 1) -> str:
    return "–" if bounds is None else f"{bounds.low * scale:.{digits}f} to {bounds.high * scale:.{digits}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _score_cell(scores: GeneratorScores, mark: str, *, with_counts: bool) -> str:
    lines = [f"{percent(scores.accuracy)} / {percent(scores.average_precision)}{mark}"]
    lines += [_bounds(bounds) for bounds in (scores.accuracy_interval, scores.average_precision_interval) if bounds]
    if with_counts:
        lines.append(_counts(scores.real, scores.fake))
    return "\n".join(lines)


def _spread_cell(values: Mapping[str, MeanSpread]) -> str:
    return " / ".join(f"{percent(values[m].mean)} ± {percent(values[m].spread)}" for m in MEASURES)


def _difference_cells(found: Mapping[str, Difference]) -> list[str]:
    cells = []
    for m in MEASURES:
        one = found[m]
        spread = f" ± {percent(one.spread)}" if one.spread is not None else ""
        bounds = f"\n{_signed(one.interval.low)} to {_signed(one.interval.high)}" if one.interval else ""
        cells += [percent(one.without), percent(one.with_loss), f"{_signed(one.difference)}{spread}{bounds}"]
    return cells


def _mean_spread(values: Iterable[float | None]) -> MeanSpread:
    defined = [value for value in values if value is not None]
    return MeanSpread(unweighted_mean(defined), float(np.std(defined, ddof=1)) if len(defined) > 1 else None)


def _one_a_seed(results: Iterable[Result]) -> list[Result]:
    """The first result of each seed: a training that was merely repeated is no second draw."""
    first: dict[object, Result] = {}
    for result in results:
        first.setdefault(result.run.get("seed"), result)
    return list(first.values())


def _runs(results: Sequence[Result]) -> tuple[Run, ...]:
    return tuple(result.run for result in results)


def _difference(without: Sequence[Result], with_loss: Sequence[Result], name: str, m: str) -> Difference:
    sides = [
        {r.run.get("seed"): getattr(r.scores[name], m) for r in side if name in r.scores}
        for side in (without, with_loss)
    ]
    return _compare(sides[0], sides[1], _paired(without, with_loss, name, m))


def _mean_difference(without: Sequence[Result], with_loss: Sequence[Result], m: str) -> Difference:
    sides = [{r.run.get("seed"): mean_over_generators(r.scores, m) for r in side} for side in (without, with_loss)]
    return _compare(sides[0], sides[1], None)


def _compare(
    without: Mapping[object, float | None], with_loss: Mapping[object, float | None], bounds: Interval | None
) -> Difference:
    before, after = unweighted_mean(without.values()), unweighted_mean(with_loss.values())
    change = None if before is None or after is None else after - before
    pairs = [(without[seed], with_loss[seed]) for seed in without if seed in with_loss]
    spread = _mean_spread(b - a for a, b in pairs if a is not None and b is not None).spread
    return Difference(before, after, change, bounds, spread)


def _paired(without: Sequence[Result], with_loss: Sequence[Result], name: str, m: str) -> Interval | None:
    """Interval of the difference; ``None`` unless all runs were scored on the very same images."""
    everything = [*without, *with_loss]
    first = everything[0].evaluation
    for result in everything:
        same = all(
            np.array_equal(getattr(result.evaluation, column), getattr(first, column))
            for column in ("keys", "labels", "generators", "groups")
        )
        if not same:
            return None
    sides = [np.mean([getattr(r.scores[name].replicates, m) for r in side], axis=0) for side in (without, with_loss)]
    return interval(sides[1] - sides[0])
