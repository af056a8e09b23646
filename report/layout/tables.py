"""The report's tables: the comparisons laid out as text. Accuracy, AP and their like are in percent here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...metrics.measures import Interval
from ...metrics.per_generator import GeneratorScores, by_family, mean_interval, mean_over_generators
from ..analysis.differences import Contrast, Difference, DireClass, Distillation, MeanSpread, SeedSummary
from ..inputs.measured import MeasuredEvaluation, all_families, all_generators
from ..inputs.paper import TITLE, PaperCell, paper_cell, paper_mean
from ..inputs.runs import Run
from ..wording.labels import (
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
    "tpr_at_fpr_1": "found at 1 % FPR",
    "tpr_at_fpr_5": "found at 5 % FPR",
    "equal_error_rate": "EER",
    "balanced_average_precision": "AP, balanced",
    "real_accuracy": "reals right",
    "fake_accuracy": "generated right",
    "calibrated_accuracy": "accuracy, validated threshold",
    "brier": "Brier",
    "calibration_error": "ECE",
}
"""What stands in the table of further measures, and its head."""

_DECIMAL = ("brier", "calibration_error")
_PAPER_NOTE = (
    f' Lines that begin with "paper" are figures of {TITLE}, tables 1 and 3, for the same method, training source and generator, and test '
    "source and generator, matched by name: its images and its student may be others."
)


@dataclass(frozen=True)
class Table:
    """A table as text. A cell's lines after the first are shown small; the first column heads its row.

    Columns from ``numeric_from`` on hold numbers and are aligned to the right. The last ``sums`` rows sum up those above
    and stay below them when the page sorts. ``shades`` makes a heat map of it: 0..1 for each cell but the row's head.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric_from: int = 1
    sums: int = 0
    shades: Sequence[Sequence[float | None]] = ()


def results_table(title: str, results: Sequence[MeasuredEvaluation]) -> Table:
    """Rows are runs; columns are test generators, the mean over them, and means by family where there are several."""
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
        "Accuracy at 0.5 / AP, in percent, and below it their 95 % intervals in this order. In the head: real + generated "
        "test images. Means count every generator once."
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
    """Rows are runs on generators, with the mean over these: everything that is measured besides accuracy and AP."""
    rows = []
    for result in results:
        threshold = result.run.threshold(result.evaluation)
        words = "no validated threshold" if threshold is None else f"validated threshold {threshold:.3f}"
        for name, scores in result.scores.items():
            cells = [_measure_cell(m, scores.values[m], scores.interval(m)) for m in FURTHER]
            size = counts(scores.real, scores.fake)
            rows.append([f"{result.run.name}\n{words}", f"{generator_title(name)}\n{size}", *cells])
        if sum(scores.complete for scores in result.scores.values()) > 1:
            means = [
                _measure_cell(m, mean_over_generators(result.scores, m), mean_interval(result.scores, m))
                for m in FURTHER
            ]
            rows.append([f"{result.run.name}\n{words}", "mean", *means])
    note = (
        "In percent, Brier score and ECE (expected calibration error in ten bins of equal width) as they are, each above its "
        "95 % interval. Found at 1 % or 5 % FPR: share of generated images found while at most that share of reals is called "
        "generated. EER: where reals and generated images are wrong equally often. AP, balanced: as if there were as many "
        "reals as generated images. Reals right, generated right: accuracy at 0.5 of each alone. The validated threshold was "
        "chosen on validation images, never on these."
    )
    columns = ["run", "generator", *FURTHER.values()]
    return Table(f"Further measures: {title}.", columns, rows, note, numeric_from=2)


def seeds_table(title: str, summaries: Sequence[SeedSummary]) -> Table:
    """Rows are configurations with several seeds: mean ± sample standard deviation of accuracy / AP."""
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
    return Table(f"The same over seeds: {title}.", columns, rows, note)


def distillation_table(title: str, one: Distillation, results: Sequence[MeasuredEvaluation]) -> Table:
    """Rows are test generators: accuracy and AP without and with the loss, and the difference in points."""
    found = one.contrast
    sides = [next((r for r in results if r.run is runs[0]), None) for runs in (found.first, found.second)]
    rows = []
    for name, differences in found.generators.items():
        papers = [paper_cell(side, name) if side else None for side in sides]
        rows.append([generator_title(name), *_difference_cells(differences, papers)])
    families = found.families if len(found.families) > 1 else {}
    rows += [[f"mean of {family_title(name)}", *_difference_cells(of, ())] for name, of in families.items()]
    rows.append(["mean", *_difference_cells(found.mean, [paper_mean(side) if side else None for side in sides])])
    words = [
        f"{label} ({', '.join(run.name for run in runs)})"
        for label, runs in (("without", found.first), (f"with weight {one.kd_weight:g}", found.second))
    ]
    columns = ["generator", *(f"{m}\n{side}" for m in ("accuracy", "AP") for side in ("without", "with", "difference"))]
    note = (
        f"{words[0]}; {words[1]}; the same configuration otherwise. Percent, differences in percentage points with "
        "their 95 % interval from a paired bootstrap over test images (it does not cover the choice of seed)"
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
    """Rows are pairs of configurations of different methods: the second minus the first, in points."""
    generators = sorted({name for one in contrasts for name in one.generators})
    rows = []
    for one in contrasts:
        row = [f"{_side(one.second)}\nminus {_side(one.first)}"]
        row += [_change_cell(one.generators.get(name)) for name in generators]
        rows.append([*row, _change_cell(one.mean)])
    note = (
        "Accuracy at 0.5 / AP: differences in percentage points, and below them their 95 % intervals in this order, from a "
        "paired bootstrap over the test images that both have scored (it does not cover the choice of seed)."
    )
    columns = ["methods", *map(generator_title, generators), "mean"]
    return Table(f"Differences between methods: {title}.", columns, rows, note)


def dire_table(title: str, classes: Sequence[DireClass]) -> Table:
    """Rows are classes: images, mean DIRE and its interval."""
    rows = [[one.title, str(len(one.values)), f"{one.mean:.4f}", bounds(one.interval, 1.0, 4)] for one in classes]
    note = "Mean over pixels and channels of the reconstruction error, as a share of the grey range (0 to 1)."
    return Table(f"Mean DIRE by class: {title}.", ["class", "images", "mean DIRE", "95 % interval"], rows, note)


def _shown_families(results: Sequence[MeasuredEvaluation]) -> list[str]:
    """Families whose means say something that the mean over all generators does not."""
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
    small = measure in _DECIMAL
    shown = decimal(value) if small else percent(value)
    return f"{shown}\n{bounds(interval, 1.0, 3) if small else bounds(interval)}" if interval else shown


def _spread_cell(values: Mapping[str, MeanSpread] | None) -> str:
    if values is None:
        return MISSING
    return " / ".join(f"{percent(values[m].mean)} ± {percent(values[m].spread)}" for m in MAIN)


def _difference_cells(found: Mapping[str, Difference], papers: Sequence[PaperCell | None]) -> list[str]:
    """First, second and difference of accuracy and of AP, with the paper's below where it has both sides."""
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
