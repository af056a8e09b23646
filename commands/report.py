"""The command ``report``: runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, render


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the page, Markdown, LaTeX, JSON, flat tables and scores.", show_default=False),
    ],
    bench: Annotated[
        Path | None, typer.Option(help="File of bench --out: adds what each method costs.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: accuracy and AP per test generator, curves, galleries. Reads the runs and nothing else."""
    from ..train.report import write_report
    from ..train.report.costs import additions as costs
    from .show.train import show_report

    content = write_report(runs, out, additions=[costs(bench)] if bench else [])
    render({**content, "html": str(out / "report.html")}, as_json, show_report)
