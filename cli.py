"""The program ``distil-cache``: the list of its commands, and how an error ends it."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

import typer

from . import __version__
from .commands.audit import audit
from .commands.bench import bench
from .commands.build import build
from .commands.cache import cache_app
from .commands.checkpoint import checkpoint_app
from .commands.command import Command, Group
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.features import features
from .commands.predict import predict
from .commands.report import report
from .commands.train import train
from .errors import DistilCacheError
from .signals import ended_by_signals

app = typer.Typer(
    name="distil-cache",
    cls=Group,
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


app.command(cls=Command)(build)
app.command(cls=Command)(train)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(report)
app.command(cls=Command)(audit)
app.command(cls=Command)(predict)
app.command(cls=Command)(bench)
app.command(cls=Command)(features)
app.command(cls=Command)(demo)
app.add_typer(cache_app, name="cache")
app.add_typer(checkpoint_app, name="checkpoint")


def main() -> None:
    """Run the program; a user's mistake ends with its sentence on stderr and its exit code, without a traceback."""
    _use_utf8()
    try:
        with ended_by_signals():
            app()
    except DistilCacheError as error:
        _print_error("".join(map(str, error.args)) if error.details else str(error), error.details)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno is None:
            raise  # not from the operating system
        from .storage import is_url  # as below

        what = "the store cannot be used" if is_url(str(error.filename)) else "cannot be used"
        where = f"{error.filename}: " if error.filename is not None else ""
        _print_error(f"{where}{what} ({error.strerror}). What was finished is kept.")
        raise SystemExit(1) from None


def _use_utf8() -> None:
    """Start Python again in UTF-8 mode where the locale has another encoding; return if it is in use.

    File names are bytes, almost everywhere UTF-8. In another encoding Python reads valid names wrongly and cannot print
    the help. An encoding that was asked for by PYTHONIOENCODING stays, with escapes for what it lacks.
    """
    if not _is_utf8(sys.getfilesystemencoding()) and os.environ.get("PYTHONUTF8") != "1" and sys.executable:
        again = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not _is_utf8(stream.encoding):
            stream.reconfigure(errors="backslashreplace")


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _print_error(sentence: str, details: Sequence[str] = ()) -> None:
    from .storage.text import visible  # brings `storage` with it, which a command line that is right may never need

    print(f"distil-cache: {visible(sentence)}", *map(visible, details), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
