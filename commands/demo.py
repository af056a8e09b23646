"""The command ``demo``: the whole path on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, render


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-out"),
    as_json: JsonOption = False,
) -> None:
    """Show the whole system on real photographs and a small, really trained diffusion model, on the CPU, in minutes."""
    from ..demo import run_demo
    from .show.demo import show_demo
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = run_demo(out, progress)
    render(result, as_json, show_demo)
