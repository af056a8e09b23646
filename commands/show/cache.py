"""Summaries of the commands ``cache ...``, laid out for 80 columns."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .build import show_rejects
from .format import Result, count, new_console, show_next, size_of

_KINDS = {"build": "build record", "revision": "revision file", "shard": "shard", "data": "leftover file"}


def show_listing(result: Result) -> None:
    """Print the contents of a cache; unreadable entries are listed with their problem."""
    console = new_console()
    for row in _sound(console, "datasets", result["datasets"]):
        rows = "" if row["rows"] == row["samples"] else f" ({count(row['rows'], 'row')})"
        _line(console, row["name"], f"{count(row['samples'], 'sample')}{rows}, {row['rejected']:,} rejected")
        _more(console, f"revision {row['revision']}, {row['revisions']:,} stored")
        for split, classes in row["splits"].items():
            _more(console, f"{split}: {classes['real']:,} real, {classes['fake']:,} generated")
    for row in _sound(console, "builds", result["builds"]):
        _line(console, row["id"], f"{row['dataset']} at {row['revision']}, {row['created'][:16].replace('T', ' ')}")
        if row["adm"]:
            _more(console, f"ADM {row['adm']}")
        if row["origin"]:
            _more(console, f"derived from {row['origin']['dataset']} by {row['origin']['perturbation']}")
        by_splits = defaultdict(list)
        for name, feature in row["features"].items():
            by_splits["+".join(feature["splits"])].append(name)
        _more(console, "; ".join(f"{splits}: {', '.join(names)}" for splits, names in by_splits.items()))
        _more(console, f"runs: {', '.join(row['runs']) or 'none'}")
    for row in _sound(console, "features", result["features"]):
        formats = ", ".join(row["formats"])
        what = (
            f"{count(row['rows'], 'sample')}, {size_of(row['bytes'])} ({size_of(row['bytes_per_sample'])} per sample)"
        )
        _line(console, row["folder"], what)
        _more(console, row["words"])
        _more(console, f"{count(row['shards'], 'shard')}{f' ({formats})' if formats else ''}")
        if row["merged_away"]["shards"]:
            size = size_of(row["merged_away"]["bytes"])
            _more(console, f"{count(row['merged_away']['shards'], 'merged shard')}, {size}, until gc deletes them")
        _more(console, f"builds: {', '.join(row['builds']) or 'none'}")
        _more(console, f"runs: {', '.join(row['runs']) or 'none'}")
    for ref in result["refs"]:
        if "problem" in ref:
            console.print(Text(ref["problem"], style="red"))
    for lease in result["builders"]:
        console.print(Text(f"running, or killed recently: {lease['lease']}"), soft_wrap=True)
    total = sum(row["bytes"] + row["merged_away"]["bytes"] for row in result["features"] if "bytes" in row)
    console.print(f"\nAll features: {size_of(total)}.", highlight=False)
    show_next(console, result)


def show_difference(result: Result) -> None:
    """Print the differences, one line per dataset, feature or file they concern."""
    console = new_console()
    console.print(Text(f"A: {result['a']}\nB: {result['b']}"), soft_wrap=True)
    if result["same"]:
        console.print("No differences.")
    by_thing: dict[str, list[str]] = {}
    for difference in result["differences"]:
        by_thing.setdefault(difference["about"], []).append(difference["what"])
    for about, what in by_thing.items():
        console.print(Text.assemble((about, "bold"), f": {'; '.join(what)}"))
    show_next(console, result)


def show_verification(result: Result) -> None:
    """Print what is damaged, what was repaired, and which builds to run."""
    console = new_console()
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
    verdict = f"{count(len(result['problems']), 'problem')}{left}" if result["problems"] else "sound"
    if result.get("to_build") and not result["problems"]:
        verdict = "sound after these builds"
    console.print(
        f"{count(result['shards'], 'shard')}, {size_of(result['bytes'])}, checked: {verdict}."
        f" {count(len(result['garbage']), 'leftover file')} of interrupted writes (harmless).",
        highlight=False,
        soft_wrap=True,
    )
    show_next(console, result)


def show_suspects(result: Result) -> None:
    """Print which cached images today's rules refuse or decode otherwise, and what was done about them."""
    console = Console()
    for entry in result["counts"]:
        label = ("real", "generated")[entry["label"]]
        what = f"{entry['generator']}, {label}: {count(entry['images'], 'image')} {entry['reason']}"
        _line(console, entry["dataset"], what, style="red")
    for suspect in result["suspects"][:5]:
        console.print(Text(f"  {suspect['path']}: {suspect['reason']} ({suspect['detail']})", style="yellow"))
    if len(result["suspects"]) > 5:
        console.print(f"  and {len(result['suspects']) - 5:,} more; all are in --json")
    for dataset in result["datasets"]:
        lacking = f"; {dataset['not_seen']:,} are not in these sources" if dataset["not_seen"] else ""
        console.print(
            f"{dataset['name']}: {dataset['seen']:,} of {count(dataset['samples'], 'image')} decoded again{lacking}."
        )
        if dataset["newest_revision"] != dataset["revision"]:
            console.print(f"{dataset['name']}: revision {dataset['newest_revision']} leaves them out.", highlight=False)
    for entry in result["unreadable"][:5]:
        console.print(Text(f"  cannot be read: {entry['path']}: {entry['reason']} ({entry['detail']})", style="yellow"))
    for what in result["left"]:
        console.print(Text(what, style="red"), soft_wrap=True)
    verdict = count(len(result["suspects"]), "suspect") if result["suspects"] else "no suspect"
    console.print(
        f"{count(result['files'], 'file')}, {result['not_in_cache']:,} of them not in the cache, "
        f"{len(result['unreadable']):,} unreadable: {verdict}.",
        highlight=False,
    )
    if result["suspects"] and not result["set_aside"]:
        console.print("--set-aside leaves them out of a new revision.")
    show_next(console, result)


def show_collection(result: Result) -> None:
    """Print what is deleted and why, in groups, and what is kept."""
    console = new_console()
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for item in result["items"]:
        folder = item["path"].split("/")[1] if item["path"].startswith(("features/", "datasets/")) else ""
        groups.setdefault((folder, item["kind"], item["why"]), []).append(item)
    for (folder, kind, why), items in groups.items():
        size = size_of(sum(item["bytes"] for item in items))
        console.print(
            Text.assemble((folder or f"{_KINDS[kind]}s", "bold"), f": {count(len(items), _KINDS[kind])}, {size}: {why}")
        )
    for what in result["kept"]:
        console.print(Text(f"kept: {what}", style="dim"))
    verb = "Would free" if result["dry_run"] else "Freed"
    later = result["later"] + result["waiting"]
    console.print(
        f"{verb} {size_of(result['bytes'])} now; {size_of(later)} more when gc runs again after the grace period of"
        f" {result['grace_hours']:g} hours.",
        highlight=False,
    )
    if result["dry_run"]:
        console.print("Nothing was deleted." if result["items"] else "Nothing to delete.")
    show_next(console, result)


def show_compaction(result: Result) -> None:
    """Print how many shards were merged, per feature, and which are damaged."""
    console = new_console()
    merged = {name: row for name, row in result["features"].items() if row["into"]}
    for name, row in merged.items():
        what = f"{count(row['shards'], 'shard')} merged into {row['into']:,}, {count(row['rows'], 'row')}, {size_of(row['bytes'])}"
        _line(console, name, what)
    for row in result["features"].values():
        for what in row["damaged"]:
            console.print(Text(what, style="red"), soft_wrap=True)
    if merged:
        console.print("The original shards stay on disk until `cache gc` deletes them.")
    else:
        console.print("Nothing to merge.")
    show_next(console, result)


def show_export(result: Result) -> None:
    """Print the splits of an export, and where it was written."""
    console = new_console()
    for name, split in result["splits"].items():
        what = (
            f"{count(split['samples'], 'sample')} in {count(len(split['tars']), 'tar')}: {', '.join(split['features'])}"
        )
        _line(console, name, what)
    console.print(
        f"Exported {size_of(result['bytes'])} of build {result['build']} to {result['out']}",
        highlight=False,
        soft_wrap=True,
    )
    show_next(console, result)


def show_import(result: Result) -> None:
    """Print how many rows were imported, and which files were rejected."""
    console = new_console()
    for name, row in result["features"].items():
        what = f"{count(row['imported'], 'row')} imported, {row['rows']:,} in total ({'+'.join(row['splits'])}), {size_of(row['bytes'])}"
        _line(console, name, what)
    console.print(
        f"{count(result['samples'], 'sample')} of {result['size']} x {result['size']} pixels."
        f" {count(result['rejected'], 'image')} rejected,"
        f" {result['leaked']:,} left out of a split because test or val has an identical file.",
        highlight=False,
    )
    for reason, counts in result["rejected_by_class"].items():
        _line(console, reason, f"{counts['real']:,} real, {counts['fake']:,} generated")
    for note in result["notes"]:
        console.print(Text(f"Warning: {note}", style="yellow"), soft_wrap=True)
    show_rejects(console, result)
    console.print(f"Build {result['build']} finished in {result['seconds']:,.1f} s.", highlight=False)
    show_next(console, result)


def _sound(console: Console, title: str, entries: list[Result]) -> list[Result]:
    """Print a title and the unreadable entries; return the others."""
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
