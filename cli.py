"""The command line: arguments in, one function called, its result rendered. No logic of its own.

Heavy modules are imported inside the commands, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .cli_bench import bench
from .cli_build import build
from .cli_cache import cache_app
from .cli_evaluate import audit, evaluate, report
from .cli_options import JsonOption
from .cli_options import render as _render
from .cli_predict import predict
from .cli_train import train
from .errors import DistilCacheError
from .signals import ended_by_signals

app = typer.Typer(
    name="distil-cache",
    help="Compute the expensive features of diffusion-image detectors once, and train, evaluate and compare students from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")
checkpoint_app = typer.Typer(
    help="Exchange trained students with the reference implementation of DistilDIRE.", no_args_is_help=True
)
app.add_typer(checkpoint_app, name="checkpoint")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"distil-cache {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""


app.command()(build)
app.command()(train)
app.command()(evaluate)
app.command()(report)
app.command()(audit)
app.command()(predict)
app.command()(bench)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-out"),
    as_json: JsonOption = False,
) -> None:
    """Show the whole system on real photographs and a small, really trained diffusion model, on the CPU, in minutes."""
    from .demo import run_demo
    from .rendering import RichProgress, show_demo

    with RichProgress() as progress:
        result = run_demo(out, progress)
    _render(result, as_json, show_demo)


@checkpoint_app.command("import")
def checkpoint_import(
    file: Annotated[Path, typer.Argument(help="A .pth file of the reference implementation.", show_default=False)],
    run: Annotated[Path, typer.Option(help="Folder of the run to make.", show_default=False)],
    method: Annotated[
        str, typer.Option(help="What the student sees: distildire (image and eps), or eps.")
    ] = "distildire",
    as_json: JsonOption = False,
) -> None:
    """Make a run of a published DistilDIRE checkpoint, so that evaluate and report can use it."""
    from .rendering import show_checkpoint
    from .train.official import import_checkpoint

    _render(import_checkpoint(file, run, method), as_json, show_checkpoint)


@checkpoint_app.command("export")
def checkpoint_export(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="File to write: .pth for the reference's loader, or .safetensors.")],
    as_json: JsonOption = False,
) -> None:
    """Write a run's best student under the names that the reference implementation loads."""
    from .rendering import show_checkpoint
    from .train.official import export_checkpoint

    _render(export_checkpoint(run, file), as_json, show_checkpoint)


def main() -> None:
    """Run the program; a user's mistake ends with its sentence on stderr and its exit code, without a traceback."""
    try:
        with ended_by_signals():
            app()
    except DistilCacheError as error:
        print(f"distil-cache: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno is None:
            raise  # not from the operating system
        what = "the store cannot be used" if "://" in str(error.filename) else "cannot be used"
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"distil-cache: {where}{what} ({error.strerror}). What was finished is kept.", file=sys.stderr)
        raise SystemExit(1) from None
