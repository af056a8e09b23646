"""The heat map of trainings and tests: every configuration on every test generator of every dataset.

There is one matrix per protocol (split, transform, selection). Runs that differ only in the seed share a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...metrics.measures import Interval, unweighted_mean
from ..differences import mean_spread
from ..inputs.measured import MeasuredEvaluation
from ..inputs.runs import Run
from ..wording import MISSING, generator_title, method_title, percent, protocol_title, training_title
from .tables import Table

NARROWEST = 0.05
"""Smallest difference of AP that the whole range of shades may stand for."""

_Column = tuple[str, str, str]
"""Dataset, revision, generator."""
_Row = dict[_Column, list[MeasuredEvaluation]]


def matrices(measured: Mapping[tuple[str, ...], Sequence[MeasuredEvaluation]]) -> list[Table]:
    """Return a matrix per protocol, with AP and accuracy in the cells, shaded from its lowest AP to its highest.

    Parameters
    ----------
    measured : Mapping
        Setting (dataset, revision, split, transform, selection) -> its results.

    Returns
    -------
    list of Table
        Matrices of a single cell are left out.
    """
    protocols: dict[tuple[str, ...], list[MeasuredEvaluation]] = {}
    for (_, _, *protocol), results in measured.items():
        protocols.setdefault(tuple(protocol), []).extend(results)
    found = [_matrix(protocol_title(*protocol), results) for protocol, results in protocols.items()]
    return [table for table in found if len(table.rows) * (len(table.columns) - 2) > 1]


def _matrix(title: str, results: Sequence[MeasuredEvaluation]) -> Table:
    columns = _columns(results)
    rows, values_of_rows = [], []
    for runs, row in _configurations(results):
        cells = [
            [_mean(row.get(column, ()), column, m) for column in columns] for m in ("average_precision", "accuracy")
        ]
        complete = [index for index, column in enumerate(columns) if _has_both(results, column)]
        means = [_complete_mean([values[index] for index in complete]) for values in cells]
        seen = [any(column[2] in result.evaluation.seen for result in row.get(column, ())) for column in columns]
        spreads = [_spread(row.get(column, ()), column) for column in columns]
        texts = [_cell(*values) for values in zip(cells[0], cells[1], spreads, seen, strict=True)]
        rows.append([_row_title(runs), *texts, _cell(means[0], means[1], None, False)])
        values_of_rows.append([*cells[0], means[0]])
    scale = heat_scale([value for row in values_of_rows for value in row])
    heads = [_column_title(column, columns) for column in columns]
    note = (
        "AP in percent, and below it the accuracy at 0.5; where a row has several runs, means, and ± the sample standard deviation "
        "of the AP over them. Stronger colour is higher AP, on the scale of this table. The mean weights all generators "
        "equally; it is missing where a cell is."
    )
    if any("*" in cell for row in rows for cell in row[1:]):
        note += " * generator seen in training."
    return Table(
        f"AP by training (rows) and test generator (columns): {title}.",
        ["run", *heads, "mean"],
        rows,
        note,
        shades=[[_shade(value, scale) for value in row] for row in values_of_rows],
        scale=(percent(scale.low), percent(scale.high)),
    )


def heat_scale(values: Iterable[float | None]) -> Interval:
    """Return the range of the shades: that of the values, but no narrower than ``NARROWEST``, so that noise stays pale."""
    known = [value for value in values if value is not None] or [0.5, 1.0]
    low, high = min(known), max(known)
    widen = max(0.0, NARROWEST - (high - low)) / 2
    return Interval(low - widen, high + widen)


def _columns(results: Sequence[MeasuredEvaluation]) -> list[_Column]:
    """Return datasets in the order of their first evaluation, each with its generators sorted."""
    found: list[_Column] = []
    for dataset, revision in dict.fromkeys(result.evaluation.setting[:2] for result in results):
        names = {name for r in results if r.evaluation.setting[:2] == (dataset, revision) for name in r.scores}
        found += [(dataset, revision, name) for name in sorted(names)]
    return found


def _configurations(results: Sequence[MeasuredEvaluation]) -> list[tuple[list[Run], _Row]]:
    """Group runs and results by configuration, over all seeds."""
    found: dict[str, tuple[dict[str, Run], _Row]] = {}
    for result in results:
        runs, row = found.setdefault(result.run.configuration(), ({}, {}))
        runs[result.run.name] = result.run
        dataset, revision = result.evaluation.setting[:2]
        for name in result.scores:
            row.setdefault((dataset, revision, name), []).append(result)
    return [(list(runs.values()), row) for runs, row in found.values()]


def _mean(results: Sequence[MeasuredEvaluation], column: _Column, measure: str) -> float | None:
    return unweighted_mean(getattr(result.scores[column[2]], measure) for result in results)


def _spread(results: Sequence[MeasuredEvaluation], column: _Column) -> float | None:
    return mean_spread(result.scores[column[2]].average_precision for result in results).spread


def _complete_mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else unweighted_mean(values)


def _has_both(results: Sequence[MeasuredEvaluation], column: _Column) -> bool:
    """Return whether the generator's test set has real and generated images."""
    found = [r.scores[column[2]] for r in results if r.evaluation.setting[:2] == column[:2] and column[2] in r.scores]
    return any(scores.complete for scores in found)


def _row_title(runs: Sequence[Run]) -> str:
    first = runs[0]
    seen = ", ".join(generator_title(name) for name in sorted(first.seen))
    trained = f"{training_title(first)}{f': {seen}' if seen else ''}"
    if len(runs) == 1:
        return f"{first.name}\n{method_title(first)}\n{trained}"
    return f"{method_title(first)}\nmean of {len(runs)} runs\n{trained}"


def _column_title(column: _Column, columns: Sequence[_Column]) -> str:
    """Name the generator, its dataset if there are several, and the revision if the dataset has several."""
    dataset, revision, name = column
    datasets = {other[:2] for other in columns}
    if len(datasets) == 1:
        return generator_title(name)
    several = len({other for other in datasets if other[0] == dataset}) > 1
    return f"{generator_title(name)}\n{dataset}{f', revision {revision[:8]}' if several else ''}"


def _cell(ap: float | None, accuracy: float | None, spread: float | None, seen: bool) -> str:
    if ap is None and accuracy is None:
        return MISSING
    around = "" if spread is None else f" ± {percent(spread)}"
    return f"{percent(ap)}{around}{'*' if seen else ''}\n{percent(accuracy)}"


def _shade(ap: float | None, scale: Interval) -> float | None:
    """Return the place of an AP on the scale, from 0.1, so that the lowest has a colour too."""
    return None if ap is None else 0.1 + 0.9 * (ap - scale.low) / (scale.high - scale.low)
