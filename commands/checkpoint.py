"""The commands ``checkpoint import`` and ``checkpoint export``: students from and for the reference implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import METHOD
from .command import Command, Group
from .options import JsonOption, command_line, render

checkpoint_app = typer.Typer(
    cls=Group, help="Exchange trained students with the reference implementation of DistilDIRE.", no_args_is_help=True
)


@checkpoint_app.command("import", cls=Command)
def checkpoint_import(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Checkpoint of the reference implementation (.pth).", show_default=False),
    ],
    run: Annotated[Path, typer.Option(help="Folder for the run; must be new or empty.", show_default=False)],
    method: Annotated[str, typer.Option(help="Input of the student: distildire (image and eps) or eps.")] = METHOD,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint of the reference implementation into a run.

    Writes a run folder for evaluate, predict and report; it cannot be trained further.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..train.runs.reference_checkpoint import import_checkpoint
    from .show.train import show_checkpoint

    following = command_line(["evaluate", run, "--cache", "CACHE", "--dataset", "NAME"])
    render({**import_checkpoint(file, run, method), "next": following}, as_json, show_checkpoint)


@checkpoint_app.command("export", cls=Command)
def checkpoint_export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="File to write: .pth or .pt for the reference's loader, or .safetensors.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Export the best student of a run for the reference implementation.

    Writes one checkpoint file; an existing file is not overwritten.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..train.runs.reference_checkpoint import export_checkpoint
    from .show.train import show_checkpoint

    result = export_checkpoint(run, file)
    readable = result["method"] in ("distildire", "eps")  # what the reference implementation has
    student = ["--weights", file, "--method", result["method"]] if readable else ["--run", run]
    render({**result, "next": command_line(["predict", "IMAGE", *student])}, as_json, show_checkpoint)
