"""The report's files for other programs: flat tables as CSV with a list of them, and the tables as LaTeX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..inputs.provenance import summary_lines
from ..inputs.runs import Run
from ..layout.section import Addition
from ..layout.tables import Table
from ..wording.sentences import slug
from .comparison import Comparison
from .files import LIST, TABLES
from .flat_tables import (
    Row,
    columns_of,
    csv_text,
    difference_rows,
    dire_row,
    distillation_rows,
    result_rows,
    seed_rows,
    shown_rows,
)
from .latex import latex_document

ABOUT = {
    "results": "each run on each generator, means over generators and over families; measures in 0..1 with 95 % intervals",
    "seeds": "mean and sample standard deviation of each measure over the seeds of a configuration",
    "differences": "with minus without the distillation loss, and between methods; paired bootstrap intervals",
    "mean_dire": "mean DIRE by class, as a share of the grey range",
}
"""The tables that every report has if it has their numbers, and what they hold."""


def csv_files(
    comparisons: Sequence[Comparison], added: Sequence[Addition], created: str, origin: Mapping[str, Any]
) -> dict[str, str]:
    """Text of each file below ``tables/``, by its name, and of the list of them with where their numbers come from."""
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


def latex_text(
    comparisons: Sequence[Comparison],
    matrices: Sequence[Table],
    added: Sequence[Addition],
    created: str,
    runs: Sequence[Run],
) -> str:
    """All tables that the page shows, as LaTeX."""
    tables = [*matrices, *(table for comparison in comparisons for table in comparison.tables)]
    tables += [section.table for addition in added for section in addition.sections if section.table]
    return latex_document(tables, [f"report of {created} by distil-cache", *summary_lines(runs)])


def _numbers(comparisons: Sequence[Comparison]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {name: [] for name in ABOUT}
    for one in comparisons:
        found["results"] += [row for result in one.results for row in result_rows(result)]
        found["seeds"] += [row for summary in one.seeds for row in seed_rows(one.setting, summary)]
        found["differences"] += [row for effect in one.distillation for row in distillation_rows(one.setting, effect)]
        found["differences"] += [row for pair in one.methods for row in difference_rows(one.setting, "methods", pair)]
        found["mean_dire"] += [dire_row(one.setting, kind) for kind in one.dire]
    return found
