"""The commands ``distil-cache cache ...``: arguments in, one function called, its result rendered."""

from __future__ import annotations

from typing import Annotated

import typer

from ..choices import COMPACT_ROWS, GRACE_HOURS, KEEP_REVISIONS
from .exchange import cache_export, cache_import
from .options import CacheArgument, JsonOption, render

cache_app = typer.Typer(
    help="Look into a cache: what it holds, what differs, whether it is sound; mend it, tidy it up, exchange its rows.",
    no_args_is_help=True,
)
cache_app.command("export")(cache_export)
cache_app.command("import")(cache_import)


@cache_app.command("ls")
def cache_ls(cache: CacheArgument, as_json: JsonOption = False) -> None:
    """List datasets, builds and features with their sizes, and which runs use what."""
    from ..cache import Cache, summary
    from .show.cache import show_listing

    render(summary(Cache.open(cache)), as_json, show_listing)


@cache_app.command("diff")
def cache_diff(
    a: Annotated[str, typer.Argument(help="A build or a feature folder of --cache, or the folder of a cache.")],
    b: Annotated[str, typer.Argument(help="What to compare it with, of the same kind.")],
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            help="Cache whose builds or features A and B name; beginnings of names will do.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say in words what differs between two builds, two features (their specs), or two caches."""
    from ..cache.diff import diff
    from .show.cache import show_difference

    render(diff(a, b, cache), as_json, show_difference)


@cache_app.command("verify")
def cache_verify(
    cache: CacheArgument,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set what is damaged aside, so that the next build makes just that again."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every marker, checksum, shape and value; end with exit code 4 if anything is damaged.

    With --repair the code is 4 only if damage remains. Nothing is deleted.
    """
    from ..cache import Cache, verification
    from ..cache.repair import repair as set_right
    from .show.cache import show_verification

    opened = Cache.open(cache)
    result = set_right(opened) if repair else verification(opened)
    render(result, as_json, show_verification)
    if result["problems"]:
        raise typer.Exit(4)


@cache_app.command("gc")
def cache_gc(
    cache: CacheArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what would go. Without it nothing is removed.")] = False,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Hours for which data without a marker stay, and shards that no build names: longer than the longest "
            "training or interruption.",
        ),
    ] = GRACE_HOURS,
    keep_revisions: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many of the newest revisions of each dataset are needed with their builds. An older one goes, with "
            "its records and rows, unless a run's build is of it.",
        ),
    ] = KEEP_REVISIONS,
    as_json: JsonOption = False,
) -> None:
    """Remove what neither a run, nor a dataset's newest revision, nor a running build needs: first in words, then with --yes."""
    from ..cache import Cache
    from ..cache.gc import collect
    from .show.cache import show_collection

    result = collect(Cache.open(cache), delete_them=yes, grace_hours=grace, keep_revisions=keep_revisions)
    render(result, as_json, show_collection)


@cache_app.command("compact")
def cache_compact(
    cache: CacheArgument,
    rows: Annotated[
        int, typer.Option(min=2, help="Rows of a merged shard at most; shards with fewer than half of them are merged.")
    ] = COMPACT_ROWS,
    as_json: JsonOption = False,
) -> None:
    """Merge the small shards that many small builds left; `cache gc` then removes what was merged."""
    from ..cache import Cache
    from ..cache.compact import compact
    from .show.cache import show_compaction
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = compact(Cache.open(cache), rows, progress)
    render(result, as_json, show_compaction)
    if any(feature["damaged"] for feature in result["features"].values()):
        raise typer.Exit(4)
