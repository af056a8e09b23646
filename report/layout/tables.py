"""The report's tables: the comparisons as text, with measures in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...metrics.measures import Interval
from ...metrics.per_generator import GeneratorScores, by_family, mean_interval, mean_over_generators
from ..differences import Contrast, Difference, DireClass, Distillation, MeanSpread, SeedSummary
from ..inputs.measured import MeasuredEvaluation, all_families, all_generators
from ..inputs.paper import TITLE, PaperCell, paper_cell, paper_mean
from ..inputs.runs import Run
from ..wording import (
    MISSING,
    bounds,
    counts,
    decimal,
    family_title,
    generator_title,
    method_title,
    paper_line,
    percent,
    signed,
    signed_bounds,
    training_title,
)

MAIN = ("accuracy", "average_precision")
FURTHER = {
    "auc": "AUC",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_5": "TPR at 5 % FPR",
    "equal_error_rate": "EER",
    "balanced_average_precision": "balanced AP",
    "real_accuracy": "accuracy on real",
    "fake_accuracy": "accuracy on generated",
    "calibrated_accuracy": "accuracy at validated threshold",
    "brier": "Brier",
    "calibration_error": "ECE",
}
"""Measures of the second table -> column titles."""

_DECIMAL = ("brier", "calibration_error")
"""Measures shown as fractions, not in percent."""

_PAPER_NOTE = (
    f' Lines that begin with "paper" are from {TITLE}, tables 1 and 3, for the same method and the same sources and generators of '
    "training and test. They are matched by name: images and student may differ."
)


@dataclass(frozen=True)
class Table:
    """A table of text. Further lines of a cell are shown smaller than its first; the first column heads its row.

    Attributes
    ----------
    numeric_from : int
        Columns from this index on are aligned right.
    sums : int
        The last rows that summarise those above; sorting leaves them in place.
    shades : sequence of sequence of float or None
        Makes a heat map: a value in 0..1 for each cell except the row heads.
    scale : tuple of str, optional
        What the shades 0 and 1 stand for.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric_from: int = 1
    sums: int = 0
    shades: Sequence[Sequence[float | None]] = ()
    scale: tuple[str, str] | None = None


def results_table(title: str, results: Sequence[MeasuredEvaluation]) -> Table:
    """Tabulate accuracy and AP: rows are runs; columns are test generators, their mean, and means by family."""
    generators = all_generators(results)
    seen = {name: [name in r.evaluation.seen for r in results] for name in generators}
    sizes = {
        name: {(r.scores[name].real, r.scores[name].fake) for r in results if name in r.scores} for name in generators
    }
    columns = ["run"]
    for name in generators:
        size = counts(*next(iter(sizes[name]))) if len(sizes[name]) == 1 else "counts in the cells"
        columns.append(f"{generator_title(name)}{'*' if all(seen[name]) else ''}\n{size}")
    families = _shown_families(results)
    rows = []
    for result in results:
        row = [
            f"{result.run.name}\n{method_title(result.run)}, seed {result.run.get('seed')}\n{training_title(result.run)}"
        ]
        for name in generators:
            scores = result.scores.get(name)
            mark = "*" if name in result.evaluation.seen and not all(seen[name]) else ""
            row.append(
                _score_cell(scores, mark, paper_cell(result, name), with_counts=len(sizes[name]) > 1)
                if scores
                else MISSING
            )
        own = by_family(result.scores)
        row.append(_mean_cell(result.scores, paper_mean(result)))
        rows.append([*row, *(_mean_cell(own.get(name, {}), None) for name in families)])
    note = (
        "Accuracy at 0.5 / AP, in percent, and below them their 95 % intervals in this order. In the header: real + generated "
        "test images. Means weight all generators equally."
    )
    if any(any(flags) for flags in seen.values()):
        note += " * generator seen in training."
    return Table(
        f"Accuracy and AP by test generator: {title}.",
        [*columns, "mean", *(f"mean of {family_title(name)}" for name in families)],
        rows,
        note + (_PAPER_NOTE if _has_paper(rows) else ""),
    )


def measures_table(title: str, results: Sequence[MeasuredEvaluation]) -> Table:
    """Tabulate all measures besides accuracy and AP: rows are runs on generators, and their means."""
    rows = []
    for result in results:
        chosen = _validated(result)
        for name, scores in result.scores.items():
            cells = [_measure_cell(m, scores.values[m], scores.interval(m)) for m in FURTHER]
            size = counts(scores.real, scores.fake)
            rows.append([f"{result.run.name}\n{chosen}", f"{generator_title(name)}\n{size}", *cells])
        if sum(scores.complete for scores in result.scores.values()) > 1:
            means = [
                _measure_cell(m, mean_over_generators(result.scores, m), mean_interval(result.scores, m))
                for m in FURTHER
            ]
            rows.append([f"{result.run.name}\n{chosen}", "mean", *means])
    note = (
        "In percent, each above its 95 % interval; Brier score and ECE (expected calibration error, ten bins of equal width) as "
        "fractions. TPR at 1 % or 5 % FPR: share of generated images detected while at most that share of real images is called "
        "generated. EER: error rate at which both classes are wrong equally often. Balanced AP: real images weighted as if there "
        "were as many as generated ones. Accuracy on real, on generated: accuracy at 0.5 within the class. A validated "
        "threshold was chosen on the images that are named with it."
    )
    columns = ["run", "generator", *FURTHER.values()]
    return Table(f"Further measures: {title}.", columns, rows, note, numeric_from=2)


def _validated(result: MeasuredEvaluation) -> str:
    """Name the threshold that validation chose for the student, and the images that chose it."""
    threshold, calibration = result.run.threshold(result.evaluation), result.run.calibration
    if threshold is None or calibration is None:
        return "no validated threshold"
    return f"validated threshold {threshold:.3f}, by {calibration.origin}"


def seeds_table(title: str, summaries: Sequence[SeedSummary]) -> Table:
    """Tabulate mean ± sample standard deviation of accuracy / AP; rows are configurations with several seeds."""
    generators = sorted({name for summary in summaries for name in summary.generators})
    families = sorted({name for summary in summaries for name in summary.families})
    families = families if len(families) > 1 else []
    rows = []
    for summary in summaries:
        first, seeds = summary.runs[0], ", ".join(str(run.get("seed")) for run in summary.runs)
        names = ", ".join(run.name for run in summary.runs)
        row = [f"{method_title(first)}\nseeds {seeds}, {training_title(first)}\n{names}"]
        row += [_spread_cell(summary.generators.get(name)) for name in generators]
        rows.append(
            [*row, _spread_cell(summary.mean), *(_spread_cell(summary.families.get(name)) for name in families)]
        )
    columns = ["configuration", *map(generator_title, generators), "mean"]
    columns += [f"mean of {family_title(name)}" for name in families]
    note = "Accuracy at 0.5 / AP, in percent: mean ± sample standard deviation over seeds."
    return Table(f"Mean and spread over seeds: {title}.", columns, rows, note)


def distillation_table(title: str, one: Distillation, results: Sequence[MeasuredEvaluation]) -> Table:
    """Tabulate accuracy and AP without and with the distillation loss, and their difference; rows are test generators.

    Parameters
    ----------
    title : str
        Title of the setting.
    one : Distillation
    results : sequence of MeasuredEvaluation
        All results of the setting; those of the compared runs give the paper's figures.
    """
    found = one.contrast
    sides = [next((r for r in results if r.run is runs[0]), None) for runs in (found.first, found.second)]
    rows = []
    for name, differences in found.generators.items():
        papers = [paper_cell(side, name) if side else None for side in sides]
        rows.append([generator_title(name), *_difference_cells(differences, papers)])
    families = found.families if len(found.families) > 1 else {}
    rows += [[f"mean of {family_title(name)}", *_difference_cells(of, ())] for name, of in families.items()]
    rows.append(["mean", *_difference_cells(found.mean, [paper_mean(side) if side else None for side in sides])])
    labels = [
        f"{label} ({', '.join(run.name for run in runs)})"
        for label, runs in (("without", found.first), (f"with weight {one.kd_weight:g}", found.second))
    ]
    columns = ["generator", *(f"{m}\n{side}" for m in ("accuracy", "AP") for side in ("without", "with", "difference"))]
    note = (
        f"{labels[0]}; {labels[1]}; otherwise the same configuration. Percent; differences in percentage points with "
        "their 95 % interval from a paired bootstrap over test images, which does not cover the choice of seed"
    )
    if any(difference.spread is not None for difference in found.mean.values()):
        note += "; ± is the standard deviation of the difference over common seeds"
    return Table(
        f"With and without the distillation loss: {title}.",
        columns,
        rows,
        note + "." + (_PAPER_NOTE if _has_paper(rows) else ""),
        sums=1 + len(families),
    )


def methods_table(title: str, contrasts: Sequence[Contrast]) -> Table:
    """Tabulate differences between methods in percentage points; rows are pairs of configurations."""
    generators = sorted({name for one in contrasts for name in one.generators})
    rows = []
    for one in contrasts:
        row = [f"{_side(one.second)}\nminus {_side(one.first)}"]
        row += [_change_cell(one.generators.get(name)) for name in generators]
        rows.append([*row, _change_cell(one.mean)])
    note = (
        "Accuracy at 0.5 / AP: differences in percentage points, and below them their 95 % intervals in this order, from a "
        "paired bootstrap over the common test images, which does not cover the choice of seed."
    )
    columns = ["methods", *map(generator_title, generators), "mean"]
    return Table(f"Differences between methods: {title}.", columns, rows, note)


def pair_table(title: str, first: str, second: str, found: Contrast) -> Table:
    """Tabulate accuracy and AP of two sides and their difference; rows are test generators."""
    rows = [[generator_title(name), *_difference_cells(of, ())] for name, of in found.generators.items()]
    rows.append(["mean", *_difference_cells(found.mean, ())])
    note = (
        f"Percent; differences are {second} minus {first}, in percentage points, with their 95 % interval from a paired "
        "bootstrap over test images; ± is the standard deviation of the difference over common seeds, if there are several."
    )
    columns = [
        "generator",
        *(f"{m}\n{side}" for m in ("accuracy", "AP") for side in (first, second, "difference")),
    ]
    return Table(f"{title}.", columns, rows, note, sums=1)


def dire_table(title: str, classes: Sequence[DireClass]) -> Table:
    """Tabulate mean DIRE and its interval by class."""
    rows = [[one.title, str(len(one.values)), f"{one.mean:.4f}", bounds(one.interval, 1.0, 4)] for one in classes]
    note = (
        "Absolute reconstruction error, averaged over pixels and channels, as a fraction of the 8-bit range (0 to 1)."
    )
    return Table(f"Mean DIRE by class: {title}.", ["class", "images", "mean DIRE", "95 % interval"], rows, note)


def _shown_families(results: Sequence[MeasuredEvaluation]) -> list[str]:
    """Return the families, unless there is only one: its mean would repeat the mean over all generators."""
    found = all_families(results)
    return found if len(found) > 1 else []


def _has_paper(rows: Sequence[Sequence[str]]) -> bool:
    return any("\npaper" in cell for row in rows for cell in row[1:])


def _score_cell(scores: GeneratorScores, mark: str, paper: PaperCell | None, *, with_counts: bool) -> str:
    lines = [f"{percent(scores.accuracy)} / {percent(scores.average_precision)}{mark}"]
    lines += [bounds(found) for found in map(scores.interval, MAIN) if found]
    lines += [counts(scores.real, scores.fake)] if with_counts else []
    return "\n".join([*lines, paper_line(paper)] if paper else lines)


def _mean_cell(scores: Mapping[str, GeneratorScores], paper: PaperCell | None) -> str:
    if not any(one.complete for one in scores.values()):
        return MISSING
    lines = [" / ".join(percent(mean_over_generators(scores, m)) for m in MAIN)]
    lines += [bounds(found) for m in MAIN if (found := mean_interval(scores, m))]
    return "\n".join([*lines, paper_line(paper)] if paper else lines)


def _measure_cell(measure: str, value: float | None, interval: Interval | None) -> str:
    fraction = measure in _DECIMAL
    shown = decimal(value) if fraction else percent(value)
    return f"{shown}\n{bounds(interval, 1.0, 3) if fraction else bounds(interval)}" if interval else shown


def _spread_cell(values: Mapping[str, MeanSpread] | None) -> str:
    if values is None:
        return MISSING
    return " / ".join(f"{percent(values[m].mean)} ± {percent(values[m].spread)}" for m in MAIN)


def _difference_cells(found: Mapping[str, Difference], papers: Sequence[PaperCell | None]) -> list[str]:
    """Format first, second and difference of accuracy and AP, and below them the paper's if it has both sides."""
    cells = []
    for m in MAIN:
        one = found[m]
        spread = f" ± {percent(one.spread)}" if one.spread is not None else ""
        within = f"\n{signed_bounds(one.interval)}" if one.interval else ""
        lines = [percent(one.first), percent(one.second), f"{signed(one.difference)}{spread}{within}"]
        known: list[float] = [getattr(paper, m) for paper in papers if paper is not None]
        if len(known) == 2:
            shown = (percent(known[0]), percent(known[1]), signed(known[1] - known[0]))
            lines = [f"{line}\npaper: {value}" for line, value in zip(lines, shown, strict=True)]
        cells += lines
    return cells


def _change_cell(found: Mapping[str, Difference] | None) -> str:
    if found is None:
        return MISSING
    lines = [" / ".join(signed(found[m].difference) for m in MAIN)]
    return "\n".join([*lines, *(signed_bounds(one) for m in MAIN if (one := found[m].interval))])


def _side(runs: Sequence[Run]) -> str:
    return f"{method_title(runs[0])} ({', '.join(run.name for run in runs)})"
