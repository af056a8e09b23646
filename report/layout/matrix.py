"""The heat map of trainings and tests: every configuration on every test generator of every dataset, in one table.

A matrix stands for one way of testing (split, transform, selection). Runs that differ in the seed alone are one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...metrics.measures import unweighted_mean
from ..inputs.measured import MeasuredEvaluation
from ..inputs.runs import Run
from ..wording.labels import MISSING, generator_title, method_title, percent, training_title
from ..wording.sentences import protocol_title
from .tables import Table

Column = tuple[str, str, str]
"""Dataset, revision, generator."""
Row = dict[Column, list[MeasuredEvaluation]]


def matrices(measured: Mapping[tuple[str, ...], Sequence[MeasuredEvaluation]]) -> list[Table]:
    """A matrix for each way of testing, with AP and accuracy in the cells, shaded by AP from 0.5 to 1.

    measured : the results of each setting (dataset, revision, split, transform, selection). A matrix of a
    single cell is left out.
    """
    ways: dict[tuple[str, ...], list[MeasuredEvaluation]] = {}
    for (_, _, *way), results in measured.items():
        ways.setdefault(tuple(way), []).extend(results)
    found = [_matrix(protocol_title(*way), results) for way, results in ways.items()]
    return [table for table in found if len(table.rows) * (len(table.columns) - 2) > 1]


def _matrix(title: str, results: Sequence[MeasuredEvaluation]) -> Table:
    columns = _columns(results)
    rows, shades = [], []
    for runs, row in _configurations(results):
        cells = [
            [_mean(row.get(column, ()), column, m) for column in columns] for m in ("average_precision", "accuracy")
        ]
        complete = [place for place, column in enumerate(columns) if _has_both(results, column)]
        means = [_complete_mean([values[place] for place in complete]) for values in cells]
        seen = [any(column[2] in result.evaluation.seen for result in row.get(column, ())) for column in columns]
        texts = [_cell(*values) for values in zip(cells[0], cells[1], seen, strict=True)]
        rows.append([_row_title(runs), *texts, _cell(means[0], means[1], False)])
        shades.append([_shade(value) for value in (*cells[0], means[0])])
    heads = [_column_title(column, columns) for column in columns]
    note = (
        "AP in percent, and below it the accuracy at 0.5; means over its runs where a row has several. The stronger the colour, "
        "the higher the AP, from 50 to 100. The mean counts every generator once, and is left out where a cell is missing."
    )
    if any("*" in cell for row in rows for cell in row[1:]):
        note += " * generator seen in training."
    return Table(
        f"AP by training (rows) and test generator (columns): {title}.",
        ["run", *heads, "mean"],
        rows,
        note,
        shades=shades,
    )


def _columns(results: Sequence[MeasuredEvaluation]) -> list[Column]:
    """Datasets in the order in which they were first evaluated, their generators sorted."""
    found: list[Column] = []
    for dataset, revision in dict.fromkeys(result.evaluation.setting[:2] for result in results):
        names = {name for r in results if r.evaluation.setting[:2] == (dataset, revision) for name in r.scores}
        found += [(dataset, revision, name) for name in sorted(names)]
    return found


def _configurations(results: Sequence[MeasuredEvaluation]) -> list[tuple[list[Run], Row]]:
    """The runs and results of each configuration, whatever the seed."""
    found: dict[str, tuple[dict[str, Run], Row]] = {}
    for result in results:
        runs, row = found.setdefault(result.run.configuration(), ({}, {}))
        runs[result.run.name] = result.run
        dataset, revision = result.evaluation.setting[:2]
        for name in result.scores:
            row.setdefault((dataset, revision, name), []).append(result)
    return [(list(runs.values()), row) for runs, row in found.values()]


def _mean(results: Sequence[MeasuredEvaluation], column: Column, measure: str) -> float | None:
    return unweighted_mean(getattr(result.scores[column[2]], measure) for result in results)


def _complete_mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else unweighted_mean(values)


def _has_both(results: Sequence[MeasuredEvaluation], column: Column) -> bool:
    """Whether the generator's test set has reals and generated images."""
    found = [r.scores[column[2]] for r in results if r.evaluation.setting[:2] == column[:2] and column[2] in r.scores]
    return any(scores.complete for scores in found)


def _row_title(runs: Sequence[Run]) -> str:
    first = runs[0]
    seen = ", ".join(generator_title(name) for name in sorted(first.seen))
    trained = f"{training_title(first)}{f': {seen}' if seen else ''}"
    if len(runs) == 1:
        return f"{first.name}\n{method_title(first)}\n{trained}"
    return f"{method_title(first)}\nmean of {len(runs)} runs\n{trained}"


def _column_title(column: Column, columns: Sequence[Column]) -> str:
    """The generator, and its dataset where there are several (with its revision where there are several of that)."""
    dataset, revision, name = column
    datasets = {other[:2] for other in columns}
    if len(datasets) == 1:
        return generator_title(name)
    several = len({other for other in datasets if other[0] == dataset}) > 1
    return f"{generator_title(name)}\n{dataset}{f', revision {revision[:8]}' if several else ''}"


def _cell(ap: float | None, accuracy: float | None, seen: bool) -> str:
    return MISSING if ap is None and accuracy is None else f"{percent(ap)}{'*' if seen else ''}\n{percent(accuracy)}"


def _shade(ap: float | None) -> float | None:
    return None if ap is None else max(0.0, 2 * ap - 1)
