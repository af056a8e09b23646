"""Summaries of ``build``."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from .format import Result, count, new_console, new_table, show_next, show_profile, size_of

_MOST_WARNINGS = 10
_MOST_GENERATORS = 60
_BUSY, _LONG_SECONDS = 0.8, 60.0
"""A build of more seconds whose devices computed for a smaller share of them says so."""


def show_build(result: Result) -> None:
    """Print the summary of a build, or of a dry run."""
    console = new_console()
    plan = result["dry_run"]
    taken = {name: row["may_be_taken_over" if plan else "taken_over"] for name, row in result["features"].items()}
    column = ["may be taken over" if plan else "taken over"] if any(taken.values()) else []
    head = ["feature", "missing" if plan else "computed", *column, "reused", "size", "fingerprint"]
    table = new_table(_title(result), head)
    for name, row in result["features"].items():
        new = row["missing"] if plan else row["computed"]
        size = ("at most " if plan and row["bytes"] else "") + size_of(row["bytes"])
        taken_over = [f"{taken[name]:,}"] if column else []
        table.add_row(
            name, f"{new:,}", *taken_over, f"{row['reused']:,}", size, (row["fingerprint"] or "not known")[:16]
        )
    show_profile(console, result.get("profile"))
    show_sources(console, result["sources"], result["warnings"])
    for note in result["notes"]:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    show_counts(console, result["counts"])
    if result["untested"]:
        console.print(Text(f"Note: {result['untested']}"), soft_wrap=True)
    console.print(table)
    console.print(Text(" ".join([f"{count(result['samples'], 'sample')}.", *_left_out(result)])))
    if result["adm_calls"] == 0:
        console.print("Nothing to compute: 0 ADM calls, no image decoded." if not result["decoded"] else "0 ADM calls.")
    else:
        calls = count(result["adm_calls"], "ADM call")
        if plan and result["adm_calls_at_least"] < result["adm_calls"]:
            calls = f"{result['adm_calls_at_least']:,} to {calls}"
        console.print(f"{'Would make' if plan else 'Made'} {calls} (images x calls per image).", highlight=False)
    if column:
        when = "are taken over if" if plan else "were taken over where"
        known = ", which is known once it is decoded. Sizes and times below are without that" if plan else ""
        console.print(
            f"Rows of an earlier version {when} the file still gives the same pixels{known}.", highlight=False
        )
    if result["audit"] and result["audit"]["found"]:
        console.print(Text(f"Warning: {result['audit']['warning']}", style="yellow"), soft_wrap=True)
    show_rejects(console, result)
    if plan:
        lacking = [row["missing"] for name, row in result["features"].items() if name != "image"]
        show_estimate(console, result["estimate"], computes=any(lacking))
    elif result["part"] and result["build"] is None:
        part = result["part"]
        console.print(
            f"Part {part['number']} of {part['of']} finished in {result['seconds']:,.1f} s. Missing from other parts:"
            f" {count(part['shards_left'], 'shard')}, so no build record was written. The last part to finish writes it, as does the same"
            " command without --array.",
            highlight=False,
        )
    else:
        console.print(f"Build {result['build']} finished in {result['seconds']:,.1f} s.", highlight=False)
    if not plan:
        _show_busy(console, result)


def _show_busy(console: Console, result: Result) -> None:
    """Say if devices waited for much of a build: for images to be read and decoded, or for rows to be written."""
    busy = result["device_busy"]
    if busy is not None and busy < _BUSY and result["seconds"] > _LONG_SECONDS:
        console.print(
            f"The devices computed for {busy:.0%} of the time. For the rest they waited for models, for images to be read and "
            "decoded, or for rows to be written; --dry-run --calibrate says what limits it.",
            highlight=False,
        )


def _left_out(result: Result) -> list[str]:
    """Say how many files were rejected, and how many left out of a split, a sentence each; none where none was."""
    sentences = []
    if result["rejected"]:
        conflicts = result["label_conflicts"]
        both = f" ({conflicts:,} of them identical files with both labels)" if conflicts else ""
        sentences.append(f"{count(result['rejected'], 'file')} rejected{both}.")
    if result["leaked"]:
        sentences.append(
            f"{count(result['leaked'], 'file')} left out of a split because test or val has an identical file."
        )
    return sentences


def show_sources(console: Console, sources: list[Result], warnings: list[str]) -> None:
    """Print the layout of each source and where its files went, and what was not taken."""
    for source in sources:
        console.print(Text(f"{source['source']}: layout {source['layout']}. {_sum(source)}"), soft_wrap=True)
    for warning in warnings[:_MOST_WARNINGS]:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    if len(warnings) > _MOST_WARNINGS:
        console.print(f"and {len(warnings) - _MOST_WARNINGS:,} more such warnings; --json lists all of them.")


def _sum(source: Result) -> str:
    rejected = sum(source["rejected"].values())
    uncovered = sum(entry["images"] for entry in source["uncovered"])
    parts = (
        (source["used"], "used"),
        (rejected, "rejected"),
        (source["leaked"], "left out of a split"),
        (uncovered, "not covered"),
        (source["not_images"], "not images"),
        (source["hidden"], "hidden"),
    )
    shown = ", ".join(f"{number:,} {what}" for number, what in parts if number or what == "used")
    return f"{count(source['files'], 'file')}: {shown}."


def show_counts(console: Console, counts: list[Result]) -> None:
    """Print the number of images of each generator and class in each split."""
    splits = [split for split in ("train", "val", "test") if any(row["split"] == split for row in counts)]
    table = new_table("Images", ["generator", "class", *splits])
    cells: dict[tuple[int, str], dict[str, int]] = {}
    for row in counts:
        cells.setdefault((row["label"], row["generator"]), {})[row["split"]] = row["images"]
    for (label, generator), numbers in list(cells.items())[:_MOST_GENERATORS]:
        shown = (f"{numbers[split]:,}" if split in numbers else "-" for split in splits)
        table.add_row(Text(generator), ("real", "generated")[label], *shown)
    if cells:
        console.print(table)
    if len(cells) > _MOST_GENERATORS:
        console.print(f"and {len(cells) - _MOST_GENERATORS:,} more generators; --json lists all of them.")


def _title(result: Result) -> str:
    if result["dry_run"]:
        return f"Plan for {result['dataset']}"
    if result["revision"] is None:
        return f"{result['dataset']}, part {result['part']['number']} of {result['part']['of']}"
    return f"{result['dataset']} at revision {result['revision']}"


def show_estimate(console: Console, estimate: Result, *, computes: bool = True) -> None:
    """Print size, time and cost of a plan, for each device of known throughput; ``computes``: a model has work to do."""
    if not estimate["bytes"]:
        return  # nothing is missing, which the summary has said
    console.print(f"New data: at most {size_of(estimate['bytes'])} before compression.", highlight=False)
    processes = estimate["processes"]
    for one in estimate["devices"]:
        if one["device_hours"] is None:
            continue
        shared = f", {_duration(one['hours'])} on {processes:,} devices" if processes > 1 else ""
        cost = "" if one["cost"] is None else f", cost {one['cost']:,.2f} at {estimate['price_per_hour']:,.2f} per hour"
        rate = (
            f"{one['adm_calls_per_second']:,.1f} ADM calls/s, {one['source']}"
            if one["adm_calls_per_second"]
            else one["source"]
        )
        console.print(
            Text(f"{one['device']}: {_duration(one['device_hours'])} on one device{shared}{cost} ({rate})."),
            soft_wrap=True,
        )
    _show_feeding(console, estimate)
    _show_memory(console, estimate)
    if not estimate["devices"] and computes:
        console.print(
            "The throughput of this model is not known, so there is no time estimate. Measure it with --calibrate, on a device"
            " of the kind that will run the build.",
            highlight=False,
        )


def _show_memory(console: Console, estimate: Result) -> None:
    """Print what each process takes on a CPU, and warn if that is more than is free."""
    memory = estimate["memory"]
    if memory is None:
        return
    batch = memory["batch_size"]
    parts = [
        f"{size_of(memory[name])} {words}"
        for name, words in (
            ("program", "program"),
            ("weights", "weights"),
            ("rows", "rows"),
            ("decoding", "images being decoded"),
        )
        if memory[name]
    ]
    if batch:
        parts.insert(2, f"{batch} x {size_of(memory['image'])} feature maps")
    bound = "" if memory["limit"] is None else f", of {size_of(memory['limit'])} allowed"
    console.print(
        f"Memory: up to {size_of(memory['bytes'])} for each process on a CPU{bound} ({', '.join(parts)}).",
        highlight=False,
        soft_wrap=True,
    )
    if memory["limit"] is None and memory["bytes"] > memory["free"]:
        console.print(
            Text(
                f"Warning: only {size_of(memory['free'])} are free here. Free some, or lower it with --shard-size.",
                style="yellow",
            ),
            soft_wrap=True,
        )


def _show_feeding(console: Console, estimate: Result) -> None:
    """Print what decoding and writing can give and what the devices ask for, and warn if the devices will wait."""
    fed = estimate["feeding"]
    if fed is None:
        return
    devices = count(fed["processes"], "device")
    console.print(
        Text(
            f"Decoding and writing give up to {fed['images_per_second']:,.3g} images/s on {count(fed['cores'], 'core')} "
            f"({fed['decode_core_seconds'] * 1e3:,.3g} + {fed['write_core_seconds'] * 1e3:,.3g} ms of a core an image, "
            f"{fed['source']})."
        ),
        soft_wrap=True,
    )
    for one in estimate["devices"]:
        asked = one["images_per_second"]
        if asked is None or one["busy"] is None:
            continue
        total = {name: rate * fed["processes"] for name, rate in asked.items()}
        planned = total.pop("plan")
        rest = ", ".join(f"{rate:,.3g} of {name} alone" for name, rate in total.items())
        console.print(
            Text(
                f"{one['device']}: {devices} on such a machine would take {planned:,.3g} images/s of this plan ({rest})."
            ),
            soft_wrap=True,
        )
        if one["busy"] < 1:
            console.print(
                Text(
                    f"Warning: decoding and writing are the bottleneck: they keep {one['device']} busy for "
                    f"{one['busy']:.0%} of the time. Give each device more cores, or write with --format webdataset.",
                    style="yellow",
                ),
                soft_wrap=True,
            )


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:,.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:,.1f} seconds"


def show_builds(result: Result) -> None:
    """Print the summaries of all builds of a command, and what to type next, once for those that agree in it."""
    builds = result.get("builds", [result])
    for one in builds:
        show_build(one)
    for following in dict.fromkeys(one["next"] for one in builds):
        show_next(new_console(), {"next": following})


def show_rejects(console: Console, result: Result) -> None:
    """Print the first files that a build or an import rejected, and where all of them are listed."""
    for reject in result["rejects"][:5]:
        console.print(Text(f"  rejected {reject['path']}: {reject['reason']} ({reject['detail']})", style="yellow"))
    if len(result["rejects"]) > 5:
        place = f"listed in {result['rejects_file']}" if result["rejects_file"] else "listed with --json"
        console.print(f"  and {len(result['rejects']) - 5:,} more, {place}", highlight=False)
