"""The command ``audit``: find shortcuts that give the label away."""

from __future__ import annotations

from typing import Annotated

import typer

from ..choices import AUDIT_SAMPLE
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
            help="With --cache: dataset to audit. Its files must still be at their original paths.", show_default=False
        ),
    ] = None,
    layout: LayoutOption = None,
    labels: LabelsOption = None,
    columns: ColumnsOption = None,
    path_prefix: PathPrefixOption = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Images per class whose pixels are examined; 0 examines headers only.")
    ] = AUDIT_SAMPLE,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 5 if the label is given away.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether real and generated images can be told apart without looking at their content.

    Examines file headers, compression and resampling traces, and duplicates. Writes nothing.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged,
    5 the label is given away (with --strict).
    """
    from ..pipeline.audit.run import run_audit
    from .show.audit import show_audit
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = run_audit(
            tuple(sources or ()), layout=layout, labels=labels, columns=columns, path_prefix=tuple(path_prefix or ()),
            cache=cache, dataset=dataset, sample=sample, progress=progress,
        )  # fmt: skip
    following = ["train", "--cache", cache, "--dataset", dataset] if cache else ["build", *(sources or ())]
    more = ["--run", f"runs/{dataset}"] if cache else ["--cache", "CACHE", "--dataset", "NAME"]
    render({**result, "next": command_line([*following, *more])}, as_json, show_audit)
    if strict and result["found"]:
        raise typer.Exit(5)
