"""The command ``report``: evaluate what is not evaluated yet, and compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import StoppedError, UsageError, UserError
from .options import DeviceOption, JsonOption, command_line, render


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
    from ..train.runs.forms import runs_of
    from .show.train import show_report

    if on and not evaluate:
        raise UsageError("report: --on asks for evaluations, and --no-evaluate forbids them. Omit one of them.")
    folders = [*(runs or ()), *(compare or ())]
    done = _evaluate_missing(folders, on or (), device) if evaluate else {"evaluated": [], "not_evaluated": []}
    content = write_report(runs or [], out, additions=[costs(bench)] if bench else [], compare=compare)
    begun = [run for folder in folders for run in runs_of(folder)]
    following = command_line(["predict", "IMAGE", "--run", begun[0]]) if begun else None
    render({**content, **done, "html": str(out / "report.html"), "next": following}, as_json, show_report)


def _evaluate_missing(runs: Sequence[Path], on: Sequence[str], device: str) -> dict[str, list[dict[str, str]]]:
    """Evaluate runs on what they lack; return what was evaluated and what was not, and why.

    What the user named must succeed. A test part that is evaluated unasked may lack features; the report does without.
    """
    from ..train.evaluation.pending import NotEvaluated, pending_evaluations
    from .show.progress import RichProgress

    pending, without = pending_evaluations(runs, on)
    for impossible in without:
        if impossible.asked:
            raise UserError(f"--on {impossible.dataset}:{impossible.split}: {impossible.run}: {impossible.why}.")
    evaluated = []
    with RichProgress() as progress:
        for one in pending:
            from ..train.evaluation.evaluate import run_evaluation  # brings torch with it

            try:
                run_evaluation(one.run, one.cache, one.dataset, split=one.split, device=device, progress=progress)
            except StoppedError:
                raise
            except UserError as error:
                if one.asked:
                    raise
                without.append(NotEvaluated(one.run, one.dataset, one.split, str(error), one.asked))
            else:
                evaluated.append({"run": str(one.run), "dataset": one.dataset, "split": one.split})
        for each in without:
            progress.say(f"{each.run}: not evaluated on {each.dataset}, split {each.split}: {each.why.rstrip('.')}.")
    missing = [{"run": str(one.run), "dataset": one.dataset, "split": one.split, "why": one.why} for one in without]
    return {"evaluated": evaluated, "not_evaluated": missing}
