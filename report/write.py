"""Write the report of finished runs: HTML, Markdown, LaTeX, JSON, CSV tables and every score.

Only run folders are read: no cache, no model. report.json holds the whole content as plain values; the other files lay
it out. Two reports of the same runs differ only in their date. docs/reference/report.md describes the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..metrics.clusters import AUTO, Clusters
from ..storage import resolved
from ..train.runs.forms import runs_of
from .audited import audited_data
from .inputs.measured import Setting, clusters_of, measure
from .inputs.provenance import provenance, summary_lines
from .inputs.runs import Run, read_runs
from .layout.figures import training_figure
from .layout.matrix import matrices
from .layout.overview import overview_figure
from .layout.page import Addition
from .layout.page import environment as page_environment
from .output.comparison import Comparison
from .output.comparison import compare as compared
from .output.files import LIST, PROGRAM, REPORT, put_files
from .output.flat_tables import csv_files, write_scores
from .output.latex import latex_text
from .output.report_json import additions_content, frame, plain, run_content, verdict_content
from .sections.audit import data_audits
from .sections.pair import pair_addition
from .sections.robustness import robustness, unperturbed
from .verdict import Verdict, compare_sides, verdict
from .wording import head_sentences, notes, setting_title

SCHEMA_VERSION = 1
"""Version of report.json: raised when a field changes its meaning or is removed."""

RUN_SECTIONS: tuple[Callable[[Sequence[Run], Mapping[str, str] | None], Addition | None], ...] = (
    robustness,
    data_audits,
)
"""Functions that make sections of the runs themselves, or None; arguments are as in `write_report`."""

FILES = {
    "html": "report.html",
    "markdown": "report.md",
    "latex": "report.tex",
    "json": REPORT,
    "tables": LIST,
    "scores": "scores.parquet",
}


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    additions: Sequence[Addition] = (),
    clusters: Mapping[str, str] | None = None,
    compare: tuple[Path, Path] | None = None,
    cluster: str = AUTO,
) -> dict[str, Any]:
    """Write the files of a report.

    Parameters
    ----------
    runs : sequence of Path
        Run folders, or folders of sweeps.
    out : Path
        Folder of the report; an earlier report in it is replaced.
    additions : sequence of Addition
        Sections of the caller. They follow those of ``RUN_SECTIONS``.
    clusters : Mapping, optional
        Key of an image -> name of its cluster, such as its scene. Bootstrap intervals then resample whole clusters; an
        image that is not listed is a cluster of its own. Without it, ``cluster`` decides.
    compare : tuple of Path, optional
        Two runs, or folders of sweeps over seeds, to compare with each other; read if they are not among ``runs``.
    cluster : str
        The column that names clusters, of ``choices.CLUSTER_COLUMNS``.

    Returns
    -------
    dict
        The content of report.json.

    Raises
    ------
    UserError
        If a run cannot be read, no run has an evaluation, or the files cannot be written. An earlier report is then
        unchanged.
    """
    read = read_runs(runs, compare or ())
    if not any(run.evaluations for run in read):
        raise UserError(
            f"no evaluation in {', '.join(str(run) for run in (*runs, *(compare or ())))}: there is nothing to compare. "
            "Run: distil-cache evaluate RUN"
        )
    drawn: dict[Setting, Clusters] = {}
    if clusters is None:
        clusters, drawn = clusters_of(read, cluster)
    measured = measure(map(unperturbed, read), clusters)
    comparisons = [compared(setting_title(setting, measured), found, clusters) for setting, found in measured.items()]
    pair = compare_sides(measured, *(_side(read, folder) for folder in compare)) if compare else None
    added = [pair_addition(pair)] if pair else []
    added += [found for section in RUN_SECTIONS if (found := section(read, clusters)) is not None]
    added += additions
    conclusion = verdict(read, measured, {(one.dataset, one.revision) for one in audited_data(read)}, pair)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    origin = plain(provenance(read))
    content: dict[str, Any] = plain(
        _content(read, conclusion, comparisons, added, created, drawn, clustered=clusters is not None)
        | {"provenance": origin}
    )
    overview = matrices(measured)
    page: dict[str, Any] = {
        "content": content,
        "chart": overview_figure(conclusion.standings),
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


def _side(runs: Sequence[Run], folder: Path) -> list[Run]:
    """Return the runs that a folder stands for."""
    wanted = runs_of(resolved(folder))
    return [run for run in runs if run.folder in wanted]


def _content(
    runs: Sequence[Run],
    conclusion: Verdict,
    comparisons: Sequence[Comparison],
    added: Sequence[Addition],
    created: str,
    drawn: Mapping[Setting, Clusters],
    *,
    clustered: bool,
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "program": {"name": PROGRAM, "version": __version__},
        "files": FILES,
        **frame(clustered, drawn),
        "verdict": verdict_content(conclusion),
        "notes": notes(runs, {comparison.title: comparison.results for comparison in comparisons}, drawn),
        "runs": [run_content(run) for run in runs],
        "comparisons": [comparison.content for comparison in comparisons],
        **additions_content(added),
    }
