"""The program ``distil-cache``: the list of its commands, and how an error ends it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from . import __version__
from .commands.audit import audit
from .commands.bench import bench
from .commands.build import build
from .commands.cache import cache_app
from .commands.checkpoint import checkpoint_app
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.predict import predict
from .commands.report import report
from .commands.train import train
from .errors import DistilCacheError
from .signals import ended_by_signals
from .storage.text import visible

app = typer.Typer(
    name="distil-cache",
    help="Compute the expensive features of diffusion-image detectors once; train, evaluate and compare students from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"distil-cache {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
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
app.command()(demo)
app.add_typer(cache_app, name="cache")
app.add_typer(checkpoint_app, name="checkpoint")


def main() -> None:
    """Run the program; a user's mistake ends with its sentence on stderr and its exit code, without a traceback."""
    try:
        with ended_by_signals():
            app()
    except DistilCacheError as error:
        print(f"distil-cache: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno is None:
            raise  # not from the operating system
        what = "the store cannot be used" if "://" in str(error.filename) else "cannot be used"
        where = f"{error.filename}: " if error.filename is not None else ""
        sentence = f"{where}{what} ({error.strerror}). What was finished is kept."
        print(f"distil-cache: {visible(sentence)}", file=sys.stderr)
        raise SystemExit(1) from None
