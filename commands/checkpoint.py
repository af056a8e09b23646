"""The commands ``checkpoint import`` and ``checkpoint export``: students from and for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import METHOD
from .command import Command, Group
from .options import JsonOption, command_line, render

checkpoint_app = typer.Typer(
    cls=Group,
    help="Exchange trained students with other programs: the reference implementation, and ONNX.",
    no_args_is_help=True,
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
            help="File to write: .pth or .pt for the reference's loader, .safetensors, or .onnx for programs without torch.",
            show_default=False,
        ),
    ],
    card: Annotated[
        bool,
        typer.Option("--card", help="Also write a model card, README.md with YAML front matter, beside the file."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export the best student of a run: for the reference implementation, or as ONNX.

    Writes one file; an existing file is not overwritten. An ONNX file is compared with the student first.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from .show.train import show_checkpoint

    text = None
    if card:
        from ..report.output.card import card_path, card_text, write_card

        card_path(file)  # this and the text of the card refuse before anything is written
        text = card_text(run, file.name)
    onnx = file.suffix.lower() == ".onnx"
    if onnx:
        from ..train.runs.onnx_export import export_onnx

        result = export_onnx(run, file)
    else:
        from ..train.runs.reference_checkpoint import export_checkpoint

        result = export_checkpoint(run, file)
    if text is not None:
        result["card"] = str(write_card(text, file))
    # what the reference implementation has can be predicted with from the file itself
    readable = not onnx and result["method"] in ("distildire", "eps")
    student = ["--weights", file, "--method", result["method"]] if readable else ["--run", run]
    render({**result, "next": command_line(["predict", "IMAGE", *student])}, as_json, show_checkpoint)
