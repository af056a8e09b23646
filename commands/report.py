"""The command ``report``: evaluate what is not evaluated yet, and compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import ClusterOption, DeviceOption, JsonOption, command_line, render


def report(
    out: Annotated[Path, typer.Option(help="Folder for the report.", show_default=False)],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Folders of trained runs, or of a sweep.", show_default=False),
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
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="First evaluate runs on the test images of their datasets, where that is missing.",
        ),
    ] = True,
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET[:SPLIT]",
            help="Also evaluate on this dataset of the run's cache. Repeatable. Default split: test.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = "auto",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate runs where needed and compare them: accuracy and AP per test generator, curves, galleries.

    Reads the caches of the runs for evaluations that are missing, and otherwise only the run folders. Writes report.html
    with the same content as Markdown, LaTeX, JSON, CSV and Parquet to the folder --out.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..report import write_report
    from ..report.sections.bench import additions as costs
    from ..train.evaluation.pending import evaluate_missing
    from ..train.runs.forms import runs_of
    from .show.progress import RichProgress
    from .show.train import show_report

    if on and not evaluate:
        raise UsageError("report: --on asks for evaluations, and --no-evaluate forbids them. Omit one of them.")
    folders = [*(runs or ()), *(compare or ())]
    done: dict[str, list[dict[str, str]]] = {"evaluated": [], "not_evaluated": []}
    if evaluate:
        with RichProgress() as progress:
            done = evaluate_missing(folders, on or (), device, progress)
    content = write_report(runs or [], out, additions=[costs(bench)] if bench else [], compare=compare, cluster=cluster)
    begun = [run for folder in folders for run in runs_of(folder)]
    following = command_line(["predict", "IMAGE", "--run", begun[0]]) if begun else None
    render({**content, **done, "html": str(out / "report.html"), "next": following}, as_json, show_report)
