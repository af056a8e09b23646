"""The report over finished runs: a page, Markdown, LaTeX, JSON, flat tables, and every score.

Only run folders are read: no cache, no model. What is said stands in report.json as plain values (``SCHEMA_VERSION`` is
raised when a field changes its meaning or goes away); the other files lay the same things out. Two reports over the same
runs differ in their date alone. docs/report.md describes the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from .analysis.perturbed import unperturbed
from .inputs.measured import measure
from .inputs.provenance import provenance, summary_lines
from .inputs.runs import Run, read_runs
from .layout.figures import training_figure
from .layout.matrix import matrices
from .layout.page import environment as page_environment
from .layout.section import Addition
from .output.comparison import Comparison, compare
from .output.export import csv_files, latex_text
from .output.files import LIST, put_files
from .output.flat_tables import write_scores
from .output.report_json import additions_content, frame, plain, run_content
from .sections.audit import header_audits
from .sections.robustness import robustness
from .wording.sentences import head_sentences, notes, setting_title

SCHEMA_VERSION = 1
OF_RUNS: tuple[Callable[[Sequence[Run], Mapping[str, str] | None], Addition | None], ...] = (robustness, header_audits)
"""What is added for whatever the runs hold of it: each gets the runs and the clusters (see ``write_report``), and may find nothing."""

FILES = {
    "html": "report.html",
    "markdown": "report.md",
    "latex": "report.tex",
    "json": "report.json",
    "tables": LIST,
    "scores": "scores.parquet",
}


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    additions: Sequence[Addition] = (),
    clusters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the files of a report over ``runs`` into the folder ``out``; return what report.json holds.

    additions : what a caller adds; it follows what ``OF_RUNS`` finds in the runs themselves.
    clusters : key -> name of what an image belongs to (its scene, say); intervals then resample whole clusters. A key
        that is not there is a cluster of its own.

    Raises ``UserError`` if a run cannot be read, no run has an evaluation, or the files cannot be written: a report that
    was there before is then unchanged.
    """
    read = read_runs(runs)
    if not any(run.evaluations for run in read):
        raise UserError(
            f"no evaluation in {', '.join(str(run) for run in runs)}: there is nothing to compare. "
            "Run: distil-cache evaluate RUN --cache DIR --dataset NAME"
        )
    measured = measure(map(unperturbed, read), clusters)
    comparisons = [compare(setting_title(setting, measured), found, clusters) for setting, found in measured.items()]
    added = [found for of_runs in OF_RUNS if (found := of_runs(read, clusters)) is not None]
    added += additions
    created = datetime.now(UTC).isoformat(timespec="seconds")
    origin = plain(provenance(read))
    content: dict[str, Any] = plain(
        _content(read, comparisons, added, created, clustered=clusters is not None) | {"provenance": origin}
    )
    overview = matrices(measured)
    page: dict[str, Any] = {
        "content": content,
        "head": head_sentences(read, measured),
        "comparisons": comparisons,
        "matrices": overview,
        "training": training_figure(read),
        "extra": [section for addition in added for section in addition.sections],
        "runs": read,
        "origin": summary_lines(read),
    }
    templates = page_environment()
    put_files(
        out,
        {
            FILES["html"]: templates.get_template("report.html.j2").render(page),
            FILES["markdown"]: templates.get_template("report.md.j2").render(page),
            FILES["latex"]: latex_text(comparisons, overview, added, created, read),
            FILES["json"]: json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            FILES["scores"]: lambda path: write_scores(path, read, origin),
            **csv_files(comparisons, added, created, origin),
        },
    )
    return content


def _content(
    runs: Sequence[Run],
    comparisons: Sequence[Comparison],
    added: Sequence[Addition],
    created: str,
    *,
    clustered: bool,
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "program": {"name": "distil-cache", "version": __version__},
        "files": FILES,
        **frame(clustered),
        "notes": notes(runs, {comparison.title: comparison.results for comparison in comparisons}),
        "runs": [run_content(run) for run in runs],
        "comparisons": [comparison.content for comparison in comparisons],
        **additions_content(added),
    }
