"""The command ``audit``: find shortcuts that give the label away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..choices import AUDIT_SAMPLE
from ..errors import UsageError
from .options import (
    ColumnsOption,
    JsonOption,
    LabelsOption,
    LayoutOption,
    PathPrefixOption,
    SourcesArgument,
    command_line,
    render,
)


def audit(
    sources: SourcesArgument = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Instead of sources: cache of the dataset to audit.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="With --cache: dataset to audit: its cached images, and its source files as far as they are still there.",
            show_default=False,
        ),
    ] = None,
    build: Annotated[
        str | None,
        typer.Option(help="With --cache: build whose images are examined. Default: the newest.", show_default=False),
    ] = None,
    swap: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Instead of sources: score the test images of this run under the codec history of the other class.",
            show_default=False,
        ),
    ] = None,
    adm: Annotated[
        str | None,
        typer.Option(
            help="With --swap: file or name of the run's ADM. Default: found by the run's record.", show_default=False
        ),
    ] = None,
    harmonize: Annotated[
        str | None,
        typer.Option(
            metavar="jpeg:Q",
            help="With --swap: also score all images after this one compression, which the training had not.",
            show_default=False,
        ),
    ] = None,
    layout: LayoutOption = None,
    labels: LabelsOption = None,
    columns: ColumnsOption = None,
    path_prefix: PathPrefixOption = None,
    sample: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images per class whose pixels are examined, or scored; 0 examines headers only (all, with --swap).",
        ),
    ] = AUDIT_SAMPLE,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 5 if the label is given away.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether real and generated images can be told apart without looking at their content, and how far by it.

    Examines file headers, compression and resampling traces, duplicates, and how well a linear classifier tells the
    classes by subject matter. Of sources, writes nothing. With --cache, examines the cached images too, and keeps that
    in the cache for evaluations and reports. With --swap, measures instead how much of a trained detector's verdict
    follows from the history of the files, and stores that in the run for the report.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged,
    5 the label is given away (with --strict).
    """
    from .show.audit import show_audit, show_swap
    from .show.progress import RichProgress

    if swap is not None:
        if sources or layout or labels or columns or path_prefix or build or strict:
            raise UsageError(
                "--swap takes the run's own images: leave out sources, how to read them, --build, and --strict."
            )
        from ..inference.swap import run_swap

        with RichProgress() as progress:
            found = run_swap(
                swap, cache=cache, dataset=dataset, sample=sample or sys.maxsize, harmonize=harmonize, adm=adm,
                progress=progress,
            )  # fmt: skip
        render({**found, "next": command_line(["report", swap, "--out", "report"])}, as_json, show_swap)
        return
    for option, value in (("--adm", adm), ("--harmonize", harmonize)):
        if value is not None:
            raise UsageError(f"{option} belongs to --swap.")
    from ..pipeline.audit.run import run_audit

    with RichProgress() as progress:
        result = run_audit(
            tuple(sources or ()), layout=layout, labels=labels, columns=columns, path_prefix=tuple(path_prefix or ()),
            cache=cache, dataset=dataset, build=build, sample=sample, progress=progress,
        )  # fmt: skip
    if cache:
        following = ["train", "--cache", cache, "--dataset", dataset, "--run", f"runs/{dataset}"]
    else:
        files = any(check["found"] and check["features"] == "headers" for check in result["checks"])
        alike = ["--harmonize", "jpeg:95"] if files else []
        following = ["build", *_reading(sources, layout, labels, columns, path_prefix)]
        following += ["--cache", "cache", "--dataset", "mine", "--split-by", "70/15/15", *alike, "--dry-run"]
    render({**result, "next": command_line(following)}, as_json, show_audit)
    if strict and result["found"]:
        raise typer.Exit(5)


def _reading(
    sources: list[str] | None, layout: str | None, labels: str | None, columns: str | None, prefixes: list[str] | None
) -> list[str]:
    """Return the sources and how to read them, as arguments of ``build``."""
    options = (("--layout", layout), ("--labels", labels), ("--columns", columns))
    given = [word for option, value in options if value for word in (option, value)]
    return [*(sources or ()), *given, *(word for prefix in prefixes or () for word in ("--path-prefix", prefix))]
