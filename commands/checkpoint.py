"""The commands ``checkpoint import`` and ``checkpoint export``: students to and from the reference implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import METHOD
from .options import JsonOption, render

checkpoint_app = typer.Typer(
    help="Exchange trained students with the reference implementation of DistilDIRE.", no_args_is_help=True
)


@checkpoint_app.command("import")
def checkpoint_import(
    file: Annotated[Path, typer.Argument(help="A .pth file of the reference implementation.", show_default=False)],
    run: Annotated[Path, typer.Option(help="Folder of the run to make.", show_default=False)],
    method: Annotated[str, typer.Option(help="What the student sees: distildire (image and eps), or eps.")] = METHOD,
    as_json: JsonOption = False,
) -> None:
    """Make a run of a published DistilDIRE checkpoint, so that evaluate and report can use it."""
    from ..train.official import import_checkpoint
    from .show.train import show_checkpoint

    render(import_checkpoint(file, run, method), as_json, show_checkpoint)


@checkpoint_app.command("export")
def checkpoint_export(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="File to write: .pth for the reference's loader, or .safetensors.")],
    as_json: JsonOption = False,
) -> None:
    """Write a run's best student under the names that the reference implementation loads."""
    from ..train.official import export_checkpoint
    from .show.train import show_checkpoint

    render(export_checkpoint(run, file), as_json, show_checkpoint)
