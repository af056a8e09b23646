"""What the commands ``distil-cache cache ...`` print for people, made for 80 columns."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .build import show_rejects
from .format import Result, size_of

_KINDS = {"build": "build records", "revision": "tables of revisions", "shard": "shards", "data": "leftovers"}


def show_listing(result: Result) -> None:
    """Show what a cache holds; an entry that cannot be read is shown with its problem."""
    console = Console()
    for row in _sound(console, "datasets", result["datasets"]):
        times = "" if row["rows"] == row["samples"] else f" that occur {row['rows']:,} times"
        _line(console, row["name"], f"{row['samples']:,} samples{times}, {row['rejected']:,} rejected")
        _more(console, f"revision {row['revision']}, {row['revisions']:,} kept")
        for split, count in row["splits"].items():
            _more(console, f"{split}: {count['real']:,} real, {count['fake']:,} generated")
    for row in _sound(console, "builds", result["builds"]):
        _line(console, row["id"], f"{row['dataset']} at {row['revision']}, {row['created'][:16].replace('T', ' ')}")
        if row["origin"]:
            _more(console, f"from {row['origin']['dataset']} by {row['origin']['perturbation']}")
        by_splits = defaultdict(list)
        for name, feature in row["features"].items():
            by_splits["+".join(feature["splits"])].append(name)
        _more(console, "; ".join(f"{splits}: {', '.join(names)}" for splits, names in by_splits.items()))
        _more(console, f"runs: {', '.join(row['runs']) or 'none'}")
    for row in _sound(console, "features", result["features"]):
        formats = ", ".join(row["formats"])
        what = f"{row['rows']:,} samples, {size_of(row['bytes'])} ({size_of(row['bytes_per_sample'])} a sample)"
        _line(console, row["folder"], what)
        _more(console, row["words"])
        _more(console, f"{row['shards']:,} shards{f' ({formats})' if formats else ''}")
        if row["merged_away"]["shards"]:
            size = size_of(row["merged_away"]["bytes"])
            _more(console, f"{row['merged_away']['shards']:,} more, {size}, were merged and wait for gc")
        _more(console, f"builds: {', '.join(row['builds']) or 'none'}")
        _more(console, f"runs: {', '.join(row['runs']) or 'none'}")
    for ref in result["refs"]:
        if "problem" in ref:
            console.print(Text(ref["problem"], style="red"))
    for lease in result["builders"]:
        console.print(Text(f"at work, or killed not long ago: {lease['lease']}"), soft_wrap=True)
    total = sum(row["bytes"] + row["merged_away"]["bytes"] for row in result["features"] if "bytes" in row)
    console.print(f"\n{size_of(total)} of features in all.", highlight=False)


def show_difference(result: Result) -> None:
    """Show what differs, a line for each thing it is about."""
    console = Console()
    console.print(Text(f"A: {result['a']}\nB: {result['b']}"), soft_wrap=True)
    if result["same"]:
        console.print("No difference.")
    by_thing: dict[str, list[str]] = {}
    for difference in result["differences"]:
        by_thing.setdefault(difference["about"], []).append(difference["what"])
    for about, what in by_thing.items():
        console.print(Text.assemble((about, "bold"), f": {'; '.join(what)}"))


def show_verification(result: Result) -> None:
    """Show what is damaged, what was repaired, and what to run."""
    console = Console()
    for what in result.get("repaired", []):
        console.print(Text(what), soft_wrap=True)
    for what in result.get("left", []):
        console.print(Text(what, style="yellow"), soft_wrap=True)
    for problem in result["problems"]:
        text = f"{problem['feature']} {problem['shard'] or ''}: {problem['what']}"
        console.print(Text(text, style="red"), soft_wrap=True)
    for task in result.get("to_build", []):
        console.print(Text(f"{task['why']}\nRun: {task['command']}", style="yellow"), soft_wrap=True)
    left = " left" if "repaired" in result else ""
    verdict = f"{len(result['problems']):,} problems{left}" if result["problems"] else "sound"
    if result.get("to_build") and not result["problems"]:
        verdict = "sound, once that is built"
    console.print(
        f"{result['shards']:,} shards, {size_of(result['bytes'])} checked: {verdict}."
        f" {len(result['garbage']):,} leftovers of interrupted writes, which harm nothing.",
        highlight=False,
    )


def show_collection(result: Result) -> None:
    """Show what goes and why, in groups, and what is left alone."""
    console = Console()
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for item in result["items"]:
        place = item["path"].split("/")[1] if item["path"].startswith(("features/", "datasets/")) else ""
        groups.setdefault((place, item["kind"], item["why"]), []).append(item)
    for (place, kind, why), items in groups.items():
        size = size_of(sum(item["bytes"] for item in items))
        console.print(Text.assemble((place or _KINDS[kind], "bold"), f": {len(items):,} {_KINDS[kind]}, {size}: {why}"))
    for what in result["kept"]:
        console.print(Text(f"left alone: {what}", style="dim"))
    verb = "would be freed" if result["dry_run"] else "freed"
    later = result["later"] + result["waiting"]
    console.print(
        f"{size_of(result['bytes'])} {verb} now, {size_of(later)} when the grace period of {result['grace_hours']:g} hours"
        " is over and gc runs again.",
        highlight=False,
    )
    if result["dry_run"]:
        console.print("Nothing was removed. Remove it with --yes.")


def show_compaction(result: Result) -> None:
    """Show how many shards became how many."""
    console = Console()
    merged = {name: row for name, row in result["features"].items() if row["into"]}
    for name, row in merged.items():
        what = f"{row['shards']:,} shards merged into {row['into']:,}, {row['rows']:,} rows, {size_of(row['bytes'])}"
        _line(console, name, what)
    for row in result["features"].values():
        for what in row["damaged"]:
            console.print(Text(what, style="red"), soft_wrap=True)
    if merged:
        console.print("What was merged stays until: distil-cache cache gc CACHE --yes", highlight=False)
    else:
        console.print("Nothing to merge.")


def show_export(result: Result) -> None:
    """Show what was written where."""
    console = Console()
    for name, split in result["splits"].items():
        what = f"{split['samples']:,} samples in {len(split['tars']):,} tars: {', '.join(split['features'])}"
        _line(console, name, what)
    console.print(
        f"{size_of(result['bytes'])} of build {result['build']} in {result['out']}", highlight=False, soft_wrap=True
    )


def show_import(result: Result) -> None:
    """Show how many rows were imported, and what was set aside."""
    console = Console()
    for name, row in result["features"].items():
        what = f"{row['imported']:,} rows imported, {row['rows']:,} in all ({'+'.join(row['splits'])}), {size_of(row['bytes'])}"
        _line(console, name, what)
    console.print(
        f"{result['samples']:,} samples of {result['size']} x {result['size']} pixels; {result['rejected']:,} images rejected,"
        f" {result['leaked']:,} left out of a split because test or val has the same bytes.",
        highlight=False,
    )
    show_rejects(console, result)
    console.print(f"build {result['build']} in {result['seconds']:,.1f} s", highlight=False)


def _sound(console: Console, title: str, entries: list[Result]) -> list[Result]:
    """Print a title and the entries that cannot be read; return the others."""
    console.print(Text(title if entries else f"no {title}", style="bold"))
    for entry in entries:
        if "problem" in entry:
            name = entry.get("name") or entry.get("folder") or entry.get("id")
            _line(console, str(name), entry["problem"], style="red")
    return [entry for entry in entries if "problem" not in entry]


def _line(console: Console, name: str, what: str, style: str = "") -> None:
    console.print(Padding(Text.assemble((name, "cyan"), f"  {what}", style=style), (0, 0, 0, 2)))


def _more(console: Console, what: str) -> None:
    console.print(Padding(Text(what), (0, 0, 0, 6)))
