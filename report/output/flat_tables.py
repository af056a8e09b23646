"""The report's numbers as flat tables in long form, for pandas and the like: ``tables/*.csv`` and ``scores.parquet``.

Measures are in 0..1, with the ends of their intervals in ``MEASURE_low`` and ``MEASURE_high``. Undefined values are
empty. CSV files hold only a header and rows; ``tables.json`` beside them says where their numbers come from.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...metrics.measures import MEASURES, Interval
from ...metrics.per_generator import GeneratorScores, by_family, mean_interval, mean_over_generators
from ...storage.text import csv_cell
from ..differences import Contrast, Difference, DireClass, Distillation, MeanSpread, SeedSummary
from ..inputs.measured import MeasuredEvaluation
from ..inputs.paper import PaperCell, paper_cell, paper_mean
from ..inputs.runs import SETTING, Evaluation, Run
from ..layout.page import Addition
from ..layout.tables import Table
from ..wording import slug
from .comparison import Comparison
from .files import LIST, TABLES

_Row = dict[str, Any]

OVER_ALL = "mean over generators"
ABOUT = {
    "results": "each run on each generator, means over generators and over families; measures in 0..1 with 95 % intervals",
    "seeds": "mean and sample standard deviation of each measure over the seeds of a configuration",
    "differences": "with minus without the distillation loss, and between methods; paired bootstrap intervals",
    "mean_dire": "mean DIRE by class, as a share of the grey range",
}
"""The report's own tables, and what each holds."""


def csv_files(
    comparisons: Sequence[Comparison], added: Sequence[Addition], created: str, origin: Mapping[str, Any]
) -> dict[str, str]:
    """Return the CSV files and their list.

    Parameters
    ----------
    comparisons : sequence of Comparison
    added : sequence of Addition
        Each of their tables becomes a file as shown.
    created : str
        Date of the report, ISO 8601.
    origin : Mapping
        The provenance, repeated in the list.

    Returns
    -------
    dict of str
        Path below the report's folder -> text.
    """
    tables = {name: rows for name, rows in _numbers(comparisons).items() if rows}
    about = {f"{name}.csv": ABOUT[name] for name in tables}
    found = {f"{name}.csv": rows for name, rows in tables.items()}
    for addition in added:
        shown = [(section.title, section.table) for section in addition.sections if section.table]
        for number, (title, table) in enumerate(shown, 1):
            name = f"{slug(addition.name) or 'added'}-{number}.csv"
            found[name], about[name] = shown_rows(table), title
    listed = {
        "created": created,
        "tables": {
            name: {"about": about[name], "rows": len(rows), "columns": columns_of(rows)} for name, rows in found.items()
        },
        "provenance": origin,
    }
    return {
        **{f"{TABLES}/{name}": csv_text(rows) for name, rows in found.items()},
        LIST: json.dumps(listed, indent=1, ensure_ascii=False) + "\n",
    }


def result_rows(result: MeasuredEvaluation) -> list[_Row]:
    """Return a row per generator, one for their mean, and one per family's mean; ``of`` names the kind."""
    head = {**_setting(result), "run": result.run.name, **_run(result.run)}
    threshold = result.run.threshold(result.evaluation)
    rows = []
    for name, scores in result.scores.items():
        sizes = {"real": scores.real, "fake": scores.fake, "seen_in_training": name in result.evaluation.seen}
        values = {m: (scores.values[m], scores.interval(m)) for m in MEASURES}
        rows.append(
            {**head, "of": "generator", "generator": name, "family": scores.family, **sizes}
            | _measured(values, threshold, paper_cell(result, name))
        )
    rows.append({**head, "of": OVER_ALL} | _measured(_means(result.scores), threshold, paper_mean(result)))
    for family, own in by_family(result.scores).items():
        rows.append({**head, "of": "mean over family", "family": family} | _measured(_means(own), threshold, None))
    return rows


def seed_rows(setting: Mapping[str, str], one: SeedSummary) -> list[_Row]:
    """Return mean and sample standard deviation of each measure over seeds, a row per generator, mean and family."""
    head = {
        **setting,
        "runs": _names(one.runs),
        **_run(one.runs[0]),
        "seed": " ".join(str(r.get("seed")) for r in one.runs),
    }
    return [
        {**head, **what, **_spreads(values)}
        for what, values in _values_by_subject(one.generators, one.mean, one.families)
    ]


def difference_rows(setting: Mapping[str, str], kind: str, one: Contrast) -> list[_Row]:
    """Return both sides and their difference, a row per measure and generator, mean or family."""
    head = {**setting, "kind": kind, "first_runs": _names(one.first), "second_runs": _names(one.second)}
    return [
        {**head, **what, "measure": measure, **_difference(found)}
        for what, values in _values_by_subject(one.generators, one.mean, one.families)
        for measure, found in values.items()
    ]


def distillation_rows(setting: Mapping[str, str], one: Distillation) -> list[_Row]:
    """Return the effect of the distillation loss, as `difference_rows`."""
    return difference_rows(setting, f"distillation weight {one.kd_weight:g} against 0", one.contrast)


def dire_row(setting: Mapping[str, str], one: DireClass) -> _Row:
    """Return the mean DIRE of one class."""
    return {
        **setting,
        "label": one.label,
        "generator": one.generator,
        "images": len(one.values),
        "mean_dire": one.mean,
        **_ends("mean_dire", one.interval),
    }


def shown_rows(table: Table) -> list[_Row]:
    """Return the rows of a table as shown; semicolons join the lines of a cell."""
    heads = [_one_line(text) for text in table.columns]
    return [dict(zip(heads, map(_one_line, row), strict=True)) for row in table.rows]


def columns_of(rows: Sequence[_Row]) -> list[str]:
    """Return all columns in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def csv_text(rows: Sequence[_Row]) -> str:
    """Format rows as CSV; missing values are empty, and texts are what a spreadsheet shows and does not run."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else csv_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def write_scores(path: Path, runs: Iterable[Run], origin: Mapping[str, Any]) -> None:
    """Write a row per image and evaluation of every run; ``origin`` is JSON in the metadata ``distil-cache``."""
    table = pa.concat_tables([_scores(run, one) for run in runs for one in run.evaluations]).unify_dictionaries()
    table = table.replace_schema_metadata({"distil-cache": json.dumps(origin, sort_keys=True)})
    pq.write_table(table, path, compression="zstd")


def _numbers(comparisons: Sequence[Comparison]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = {name: [] for name in ABOUT}
    for one in comparisons:
        found["results"] += [row for result in one.results for row in result_rows(result)]
        found["seeds"] += [row for summary in one.seeds for row in seed_rows(one.setting, summary)]
        found["differences"] += [row for effect in one.distillation for row in distillation_rows(one.setting, effect)]
        found["differences"] += [row for pair in one.methods for row in difference_rows(one.setting, "methods", pair)]
        found["mean_dire"] += [dire_row(one.setting, kind) for kind in one.mean_dire]
    return found


def _scores(run: Run, one: Evaluation) -> pa.Table:
    rows = len(one.keys)
    same = {"run": run.name, "evaluation": one.name, **dict(zip(SETTING, one.setting, strict=True))}
    columns: dict[str, Any] = {name: _repeating([value] * rows) for name, value in same.items()}
    columns |= {"key": pa.array(one.keys.tolist(), pa.string()), "label": pa.array(one.labels, pa.int8())}
    for name, values in (("generator", one.generators), ("family", one.families), ("group", one.groups)):
        columns[name] = _repeating(values.tolist())
    return pa.table({**columns, "score": pa.array(one.scores, pa.float64())})


def _repeating(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.string()).dictionary_encode()


def _setting(result: MeasuredEvaluation) -> _Row:
    return dict(zip(SETTING, result.evaluation.setting, strict=True))


def _run(run: Run) -> _Row:
    return {
        "method": run.get("method"),
        "preset": run.get("preset"),
        "kd_weight": run.kd_weight,
        "seed": run.get("seed"),
        "trained_on": "" if run.get("imported") else run.datasets,
    }


def _means(scores: Mapping[str, GeneratorScores]) -> dict[str, tuple[float | None, Interval | None]]:
    return {m: (mean_over_generators(scores, m), mean_interval(scores, m)) for m in MEASURES}


def _measured(
    values: Mapping[str, tuple[float | None, Interval | None]], threshold: float | None, paper: PaperCell | None
) -> _Row:
    row: _Row = {}
    for name, (value, within) in values.items():
        row |= {name: value, **_ends(name, within)}
    row |= {"calibrated_threshold": threshold}
    return row | {
        "paper_accuracy": paper and paper.accuracy,
        "paper_average_precision": paper and paper.average_precision,
    }


def _ends(name: str, within: Interval | None) -> _Row:
    return {f"{name}_low": within and within.low, f"{name}_high": within and within.high}


def _values_by_subject(
    generators: Mapping[str, Any], mean: Any, families: Mapping[str, Any]
) -> list[tuple[_Row, Mapping[str, Any]]]:
    """Return the identifying columns of each row, and its values by measure."""
    found: list[tuple[_Row, Mapping[str, Any]]] = [
        ({"of": "generator", "generator": name, "family": ""}, values) for name, values in generators.items()
    ]
    found.append(({"of": OVER_ALL, "generator": "", "family": ""}, mean))
    found += [({"of": "mean over family", "generator": "", "family": name}, v) for name, v in families.items()]
    return found


def _spreads(values: Mapping[str, MeanSpread]) -> _Row:
    row: _Row = {}
    for name, value in values.items():
        row |= {f"{name}_mean": value.mean, f"{name}_spread": value.spread}
    return row


def _difference(found: Difference) -> _Row:
    ends = _ends("difference", found.interval)
    return {
        "first": found.first,
        "second": found.second,
        "difference": found.difference,
        **ends,
        "spread": found.spread,
    }


def _names(runs: Sequence[Run]) -> str:
    return " ".join(run.name for run in runs)


def _one_line(text: str) -> str:
    return "; ".join(text.split("\n"))
