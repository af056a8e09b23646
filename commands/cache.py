"""The commands ``cache ...``: inspect a cache, check it, and free its space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..choices import COMPACT_ROWS, GRACE_HOURS, KEEP_REVISIONS, PROFILES
from .command import Command, Group, typed_again
from .exchange import cache_export, cache_import
from .options import (
    CacheArgument,
    ColumnsOption,
    JsonOption,
    LabelsOption,
    LayoutOption,
    PathPrefixOption,
    command_line,
    render,
)

if TYPE_CHECKING:
    from ..cache import Cache

cache_app = typer.Typer(
    cls=Group,
    help="Inspect, verify, repair and clean up a cache; export and import its features.",
    no_args_is_help=True,
)


@cache_app.command("ls", cls=Command)
def cache_ls(cache: CacheArgument, as_json: JsonOption = False) -> None:
    """List the datasets, builds and features of a cache, with sizes and the runs that use them.

    Writes nothing.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged.
    """
    from ..cache import Cache, summary
    from .show.cache import show_listing

    listing = summary(Cache.open(cache))
    render({**listing, "next": _after_listing(cache, listing)}, as_json, show_listing)


def _after_listing(cache: str, listing: dict[str, Any]) -> str:
    """Return the command to type next: train on the first dataset that no run uses; without datasets, build one."""
    names = [dataset["name"] for dataset in listing["datasets"] if "problem" not in dataset]
    if not names:
        return command_line(["build", "SOURCE", "--cache", cache, "--dataset", "NAME", "--dry-run"])
    used = {build["dataset"] for build in listing["builds"] if build.get("runs")}
    unused = [name for name in names if name not in used]
    if not unused:
        return command_line(["cache", "verify", cache])
    adms = [build.get("adm") for build in listing["builds"] if build.get("dataset") == unused[0]]
    small = ["--profile", "small"] if adms[-1:] == [PROFILES["small"]["build"]["adm"]] else []
    return command_line(["train", "--cache", cache, "--dataset", unused[0], "--run", f"runs/{unused[0]}", *small])


@cache_app.command("diff", cls=Command)
def cache_diff(
    cache: CacheArgument,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Build or feature of the cache; a unique prefix suffices. Without B, another cache.",
            show_default=False,
        ),
    ],
    b: Annotated[
        str | None, typer.Argument(metavar="B", help="Build or feature to compare with A.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the differences between two builds, two features or two caches.

    Writes nothing.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged.
    """
    from ..cache.maintenance.diff import diff
    from .show.cache import show_difference

    result = diff(cache, a) if b is None else diff(a, b, cache)
    render({**result, "next": command_line(["cache", "ls", cache])}, as_json, show_difference)


@cache_app.command("verify", cls=Command)
def cache_verify(
    ctx: typer.Context,
    cache: CacheArgument,
    more_sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="Further sources for --sources.", show_default=False),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Move damaged shards and files out of the way, so that the next build computes just those again.",
        ),
    ] = False,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Instead: decode these sources again and name the cached images that today's rules refuse or decode "
            "to other pixels. Repeatable.",
            show_default=False,
        ),
    ] = None,
    set_aside: Annotated[
        bool,
        typer.Option("--set-aside", help="With --sources: give the datasets a revision without the images it names."),
    ] = False,
    layout: LayoutOption = None,
    labels: LabelsOption = None,
    columns: ColumnsOption = None,
    path_prefix: PathPrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every marker, checksum, shape and value of a cache.

    Writes nothing; with --repair, moves what is damaged to folders of its own and deletes nothing; with --set-aside,
    writes revisions and build records, and deletes nothing.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 damage or, with --sources, such images found (with --repair
    or --set-aside: left).
    """
    from ..cache import Cache, verification
    from ..cache.maintenance.repair import repair as repair_cache
    from .show.cache import show_verification

    opened = Cache.open(cache)
    if sources:
        if repair:
            raise typer.BadParameter("does not go with --sources, which has --set-aside.", param_hint="--repair")
        _verify_sources(
            ctx, opened, [*sources, *(more_sources or ())], layout, labels, columns, path_prefix, set_aside, as_json
        )
        return
    for option, value in (
        ("--set-aside", set_aside), ("--layout", layout), ("--labels", labels), ("--columns", columns),
        ("--path-prefix", path_prefix), ("SOURCE", more_sources),
    ):  # fmt: skip
        if value:
            raise typer.BadParameter("needs --sources.", param_hint=option)
    result = repair_cache(opened) if repair else verification(opened)
    render({**result, "next": _after_verification(cache, result, repair=repair)}, as_json, show_verification)
    if result["problems"]:
        raise typer.Exit(4)


def _after_verification(cache: str, result: dict[str, Any], *, repair: bool) -> str | None:
    """Return the command to type next; None where the result itself names the builds to run, or damage is left."""
    if repair:
        return None if result["problems"] or result["to_build"] else command_line(["cache", "ls", cache])
    return command_line(["cache", "verify", cache, "--repair"] if result["problems"] else ["cache", "ls", cache])


def _verify_sources(
    ctx: typer.Context,
    cache: Cache,
    sources: list[str],
    layout: str | None,
    labels: str | None,
    columns: str | None,
    path_prefix: list[str] | None,
    set_aside: bool,
    as_json: bool,
) -> None:
    """Compare the cached images with their files, print the result, and end with code 4 if suspects are left."""
    from ..pipeline.config import default_threads
    from ..pipeline.sources.reading import parse_reading
    from ..pipeline.verify_sources import verify_sources
    from .show.cache import show_suspects
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = verify_sources(
            cache, sources, layout=layout,
            reading=parse_reading(labels, columns, tuple(path_prefix or ())), set_aside=set_aside,
            threads=default_threads(), progress=progress,
        )  # fmt: skip
    again = result["suspects"] and not set_aside
    following = typed_again(ctx, "--set-aside") if again else command_line(["cache", "ls", cache.root])
    render({**result, "next": following}, as_json, show_suspects)
    if (result["suspects"] and not set_aside) or result["left"]:
        raise typer.Exit(4)


@cache_app.command("gc", cls=Command)
def cache_gc(
    ctx: typer.Context,
    cache: CacheArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Delete the data. Without it, only list them.")] = False,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Hours for which unreferenced shards and data are kept. Choose more than your longest training takes.",
        ),
    ] = GRACE_HOURS,
    keep_revisions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Newest revisions of each dataset to keep, with their builds. Older ones that a run uses are kept, too.",
        ),
    ] = KEEP_REVISIONS,
    as_json: JsonOption = False,
) -> None:
    """List data that no run, kept revision or running build uses; delete them with --yes.

    Writes nothing without --yes. With it, shards are unlisted first, and their data deleted after the grace period.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged, so nothing was deleted.
    """
    from ..cache import Cache
    from ..cache.maintenance.gc import collect
    from .show.cache import show_collection

    result = collect(Cache.open(cache), delete_them=yes, grace_hours=grace, keep_revisions=keep_revisions)
    following = (
        typed_again(ctx, "--yes") if result["dry_run"] and result["items"] else command_line(["cache", "ls", cache])
    )
    render({**result, "next": following}, as_json, show_collection)


@cache_app.command("compact", cls=Command)
def cache_compact(
    cache: CacheArgument,
    rows: Annotated[
        int, typer.Option(min=2, help="Maximum rows per merged shard; shards with fewer than half as many are merged.")
    ] = COMPACT_ROWS,
    as_json: JsonOption = False,
) -> None:
    """Merge the small shards that incremental builds leave.

    Writes merged shards with the same values. The originals stay until cache gc deletes them.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 a damaged shard was left as it is.
    """
    from ..cache import Cache
    from ..cache.maintenance.compact import compact
    from .show.cache import show_compaction
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = compact(Cache.open(cache), rows, progress)
    merged = any(feature["into"] for feature in result["features"].values())
    following = command_line(["cache", "gc" if merged else "ls", cache])
    if any(feature["damaged"] for feature in result["features"].values()):
        following = command_line(["cache", "verify", cache, "--repair"])
    render({**result, "next": following}, as_json, show_compaction)
    if any(feature["damaged"] for feature in result["features"].values()):
        raise typer.Exit(4)


cache_app.command("export", cls=Command)(cache_export)
cache_app.command("import", cls=Command)(cache_import)
