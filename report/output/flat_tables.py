"""The report's numbers as flat tables, one row a fact, for pandas and the like: ``tables/*.csv`` and ``scores.parquet``.

Every measure is in 0..1, with the ends of its interval in ``MEASURE_low`` and ``MEASURE_high``. What is not defined is
empty. CSV files hold nothing but a head and rows; what they come from stands beside them in ``tables.json``.
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
from ..analysis.differences import Contrast, Difference, DireClass, Distillation, MeanSpread, SeedSummary
from ..inputs.measured import MeasuredEvaluation
from ..inputs.paper import PaperCell, paper_cell, paper_mean
from ..inputs.runs import Evaluation, Run
from ..layout.tables import Table

Row = dict[str, Any]

SETTING = ("dataset", "revision", "split", "transform", "select")
OVER_ALL = "mean over generators"


def result_rows(result: MeasuredEvaluation) -> list[Row]:
    """A row a generator, one for the mean over generators, and one for each family's mean; ``of`` says which it is."""
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


def seed_rows(setting: Mapping[str, str], one: SeedSummary) -> list[Row]:
    """A row a generator, mean and family: mean and sample standard deviation of each measure over the runs."""
    head = {
        **setting,
        "runs": _names(one.runs),
        **_run(one.runs[0]),
        "seed": " ".join(str(r.get("seed")) for r in one.runs),
    }
    return [{**head, **what, **_spreads(values)} for what, values in _places(one.generators, one.mean, one.families)]


def difference_rows(setting: Mapping[str, str], kind: str, one: Contrast) -> list[Row]:
    """A row a generator, mean and family, and measure: first, second, second minus first, its interval and spread."""
    head = {**setting, "kind": kind, "first_runs": _names(one.first), "second_runs": _names(one.second)}
    return [
        {**head, **what, "measure": measure, **_difference(found)}
        for what, values in _places(one.generators, one.mean, one.families)
        for measure, found in values.items()
    ]


def distillation_rows(setting: Mapping[str, str], one: Distillation) -> list[Row]:
    """The differences that the distillation loss makes."""
    return difference_rows(setting, f"distillation weight {one.kd_weight:g} against 0", one.contrast)


def dire_row(setting: Mapping[str, str], one: DireClass) -> Row:
    """Mean DIRE of one class."""
    return {
        **setting,
        "label": one.label,
        "generator": one.generator,
        "images": len(one.values),
        "mean_dire": one.mean,
        **_ends("mean_dire", one.interval),
    }


def shown_rows(table: Table) -> list[Row]:
    """A table as it is shown; the lines of a cell are joined by a semicolon."""
    heads = [_one_line(text) for text in table.columns]
    return [dict(zip(heads, map(_one_line, row), strict=True)) for row in table.rows]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV; a field is empty where a row has none."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return stream.getvalue()


def write_scores(path: Path, runs: Iterable[Run], origin: Mapping[str, Any]) -> None:
    """One row an image and evaluation of every run; ``origin`` is the file's metadata ``distil-cache``, as JSON."""
    table = pa.concat_tables([_scores(run, one) for run in runs for one in run.evaluations]).unify_dictionaries()
    table = table.replace_schema_metadata({"distil-cache": json.dumps(origin, sort_keys=True)})
    pq.write_table(table, path, compression="zstd")


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


def _setting(result: MeasuredEvaluation) -> Row:
    return dict(zip(SETTING, result.evaluation.setting, strict=True))


def _run(run: Run) -> Row:
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
) -> Row:
    row: Row = {}
    for name, (value, within) in values.items():
        row |= {name: value, **_ends(name, within)}
    row |= {"calibrated_threshold": threshold}
    return row | {
        "paper_accuracy": paper and paper.accuracy,
        "paper_average_precision": paper and paper.average_precision,
    }


def _ends(name: str, within: Interval | None) -> Row:
    return {f"{name}_low": within and within.low, f"{name}_high": within and within.high}


def _places(
    generators: Mapping[str, Any], mean: Any, families: Mapping[str, Any]
) -> list[tuple[Row, Mapping[str, Any]]]:
    """What a row is of, and its values by measure."""
    found: list[tuple[Row, Mapping[str, Any]]] = [
        ({"of": "generator", "generator": name, "family": ""}, values) for name, values in generators.items()
    ]
    found.append(({"of": OVER_ALL, "generator": "", "family": ""}, mean))
    found += [({"of": "mean over family", "generator": "", "family": name}, v) for name, v in families.items()]
    return found


def _spreads(values: Mapping[str, MeanSpread]) -> Row:
    row: Row = {}
    for name, value in values.items():
        row |= {f"{name}_mean": value.mean, f"{name}_spread": value.spread}
    return row


def _difference(found: Difference) -> Row:
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
