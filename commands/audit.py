"""The command ``audit``: what gives the label away before anything is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from ..choices import AUDIT_SAMPLE
from .options import JsonOption, LayoutOption, SourcesArgument, render


def audit(
    sources: SourcesArgument = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="In place of sources: cache of the dataset to audit.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="The dataset in the cache; its files must still be where they were.", show_default=False),
    ] = None,
    layout: LayoutOption = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Images of each class whose pixels are looked at for traces; 0 for none.")
    ] = AUDIT_SAMPLE,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 5 if the label is given away.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether real and generated can be told apart without looking at what the images show."""
    from ..pipeline.audit import run_audit
    from .show.audit import show_audit
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = run_audit(
            tuple(sources or ()), layout=layout, cache=cache, dataset=dataset, sample=sample,
            progress=progress,
        )  # fmt: skip
    render(result, as_json, show_audit)
    if strict and result["found"]:
        raise typer.Exit(5)
