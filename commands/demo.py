"""The command ``demo``: the whole path, from images to a report, on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, command_line, render


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("demo-out"),
    as_json: JsonOption = False,
) -> None:
    """Run the whole system on the CPU, with real photographs and a small trained diffusion model.

    Takes two to six minutes on two cores. Writes images, cache, runs and report to the folder --out. A second run reuses
    what is there.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..demo import run_demo
    from .show.demo import show_demo
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = run_demo(out, progress)
    own = ["build", "FOLDER", "--cache", "cache", "--dataset", "mine", "--split-by", "70/15/15", "--profile", "small"]
    render({**result, "next": command_line(own)}, as_json, show_demo)
