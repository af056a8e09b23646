"""The command ``report``: compare evaluated runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, render


def report(
    out: Annotated[Path, typer.Option(help="Folder for the report.", show_default=False)],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Folders of evaluated runs, or of a sweep.", show_default=False),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B", help="Compare two runs, or two sweeps over seeds, with each other.", show_default=False
        ),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(help="File written by bench --out: adds the cost of each method.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluated runs: accuracy and AP per test generator, curves, galleries.

    Reads only the run folders. Writes report.html with the same content as Markdown, LaTeX, JSON, CSV and Parquet to
    the folder --out.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..report import write_report
    from ..report.sections.bench import additions as costs
    from .show.train import show_report

    content = write_report(runs or [], out, additions=[costs(bench)] if bench else [], compare=compare)
    render({**content, "html": str(out / "report.html")}, as_json, show_report)
