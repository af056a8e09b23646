"""The command ``report``: compare evaluated runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, render


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of evaluated runs, or of a sweep.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.", show_default=False)],
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
    from ..train.report import write_report
    from ..train.report.costs import additions as costs
    from .show.train import show_report

    content = write_report(runs, out, additions=[costs(bench)] if bench else [])
    render({**content, "html": str(out / "report.html")}, as_json, show_report)
