"""What ``build`` prints for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from .format import Result, new_table, size_of


def show_build(result: Result) -> None:
    """Summarise a build, or the plan of one."""
    console = Console()
    plan = result["dry_run"]
    title = f"{result['dataset']} at revision {result['revision']}" if not plan else f"plan for {result['dataset']}"
    table = new_table(title, ["feature", "missing" if plan else "computed", "reused", "size", "fingerprint"])
    for name, row in result["features"].items():
        new = row["missing"] if plan else row["computed"]
        size = ("at most " if plan else "") + size_of(row["bytes"])
        table.add_row(name, f"{new:,}", f"{row['reused']:,}", size, row["fingerprint"][:16])
    console.print(table)
    console.print(
        f"{result['samples']:,} samples; {result['rejected']:,} files rejected"
        f" ({result['label_conflicts']:,} because their bytes have both labels), {result['leaked']:,} left out of a split"
        " because test or val has the same bytes.",
        highlight=False,
    )
    if result["adm_calls"] == 0:
        console.print("Nothing to compute: 0 ADM calls, no image decoded." if not result["decoded"] else "0 ADM calls.")
    else:
        verb = "would make" if plan else "made"
        console.print(f"{verb} {result['adm_calls']:,} ADM calls (images x calls).", highlight=False)
    for note in result["notes"]:
        console.print(Text(f"Note: {note}"))
    if result["audit"] and result["audit"]["found"]:
        console.print(Text(f"Warning: {result['audit']['warning']}", style="yellow"), soft_wrap=True)
    show_rejects(console, result)
    if plan:
        show_estimate(console, result["estimate"])
    elif result["part"] and result["build"] is None:
        part = result["part"]
        console.print(
            f"Part {part['number']} of {part['of']} is done in {result['seconds']:,.1f} s; {part['shards_left']:,} shards of"
            " other parts are not there yet, so no build record was written. The part that ends last writes it, or the same"
            " command without --array.",
            highlight=False,
        )
    else:
        console.print(f"build {result['build']} in {result['seconds']:,.1f} s", highlight=False)


def show_estimate(console: Console, estimate: Result) -> None:
    """Say what a plan takes on the devices whose rate is known."""
    console.print(f"At most {size_of(estimate['bytes'])} before compression.", highlight=False)
    processes = estimate["processes"]
    for one in estimate["devices"]:
        if one["device_hours"] is None:
            continue
        shared = f", {_duration(one['hours'])} on {processes:,} of them" if processes > 1 else ""
        cost = "" if one["cost"] is None else f", cost {one['cost']:,.2f} at {estimate['price_per_hour']:,.2f} an hour"
        rate = (
            f"{one['adm_calls_per_second']:,.1f} ADM calls/s, {one['source']}"
            if one["adm_calls_per_second"]
            else one["source"]
        )
        console.print(
            Text(f"{one['device']}: {_duration(one['device_hours'])} of one device{shared}{cost} ({rate})."),
            soft_wrap=True,
        )
    if not estimate["devices"]:
        console.print(
            "No rate of this model is known, so there is no estimate of time. Measure it with --calibrate on a device that"
            " will do the work.",
            highlight=False,
        )


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"


def show_builds(result: Result) -> None:
    """Summarise a build, or several that one command ran."""
    for one in result.get("builds", [result]):
        show_build(one)


def show_rejects(console: Console, result: Result) -> None:
    """Show the first files that a build or an import set aside, and where the others are listed."""
    for reject in result["rejects"][:5]:
        console.print(Text(f"  rejected {reject['path']}: {reject['reason']} ({reject['detail']})", style="yellow"))
    if len(result["rejects"]) > 5:
        console.print(
            f"  and {len(result['rejects']) - 5:,} more; all of them: {result['rejects_file']}", highlight=False
        )
