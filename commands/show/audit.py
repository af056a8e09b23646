"""Summary of ``audit``."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from .build import show_sources
from .format import Result, count, new_console, show_next

_MOST_REJECTS = 5
_TOO_FEW = "too few images"
_EXAMINED = {"files": "Source files", "cache": "Cached images"}


def show_audit(result: Result) -> None:
    """Print each check with its AUC, the features that give the label away, duplicates and skipped files."""
    console = new_console()
    show_sources(console, result["accounts"], result["warnings"])
    for note in result["notes"]:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    images = result["images"]
    if images is not None:
        console.print(Text(_cached(images)), soft_wrap=True)
    examined = [("files", check) for check in result["checks"]]
    examined += [("cache", check) for check in (images or {"checks": ()})["checks"]]
    table = Table(header_style="dim", box=None, pad_edge=False)
    for column in ("examined", "images", "features", "real", "generated", "AUC (interval)", "label"):
        table.add_column(column, justify="right" if column in ("real", "generated") else "left", overflow="fold")
    for what, check in examined:
        verdict = Text("given away", style="bold red") if check["found"] else Text(_short(check["reason"]))
        counts = (f"{check['real']:,}", f"{check['fake']:,}")
        table.add_row(what, check["part"], check["features"], *counts, _area(check), verdict)
    console.print(table)
    for reason in sorted({check["reason"] for _, check in examined if _short(check["reason"]) == _TOO_FEW}):
        console.print(Text(f"{_TOO_FEW.capitalize()}: {reason}."), soft_wrap=True)
    for what, check in examined:
        if check["found"]:
            console.print()
            heading = (
                f"{_EXAMINED[what]}, {check['part']}, {check['features']}: what gives the label away, and the AUC of each "
                "feature alone"
            )
            console.print(Text(heading), soft_wrap=True)
            for carrier in check["carried_by"]:
                console.print(Text(f"  {carrier['auc']:.2f}  {carrier['words']}"), soft_wrap=True)
    console.print()
    pixels, duplicates = result["pixels"], result["duplicates"]
    lines = [_pixels(pixels)] if pixels else []
    lines += _duplicates(duplicates) if duplicates else []
    for line in (*map(_unjudged, result["told"]), *lines):
        console.print(Text(line), soft_wrap=True)
    for reject in result["set_aside"][:_MOST_REJECTS]:
        text = f"skipped {reject['path']}: {reject['reason']} ({reject['detail']})"
        console.print(Text(text, style="yellow"), soft_wrap=True)
    if len(result["set_aside"]) > _MOST_REJECTS:
        console.print(f"and {len(result['set_aside']) - _MOST_REJECTS:,} more; --json lists all of them.")
    if result["content"] is not None:
        console.print(Text(result["content"]["sentence"]), soft_wrap=True)
        for fold in result["content"]["folds"]:
            if result["content"]["across"] == "generators":
                size = f"{fold['real']:,} real, {fold['fake']:,} generated"
                console.print(Text(f"  {fold['auc']:.2f}  {fold['held_out']} ({size})"), soft_wrap=True)
    console.print(Text("Not checked:"))
    for line in result["not_checked"]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text(_verdict(result), style="bold red" if result["found"] else "bold"), soft_wrap=True)
    show_next(console, result)


def show_swap(result: Result) -> None:
    """Print how much of a verdict the history carries, the AUC under each history, and the histories."""
    console = new_console()
    table = Table(header_style="dim", box=None, pad_edge=False)
    for column in ("class", "history", "images"):
        table.add_column(column, justify="right" if column == "images" else "left", overflow="fold")
    for entry in result["histories"]:
        table.add_row("generated" if entry["label"] else "real", entry["history"], f"{entry['images']:,}")
    console.print(table)
    moved = f"{result['moved_real']:,} real and {result['moved_fake']:,} generated"
    console.print(Text(f"Given a history of the other class: {moved} images."), soft_wrap=True)
    areas = ", ".join(
        f"{words} {result[f'auc_{which}']:.3f}"
        for which, words in (
            ("own", "as they are"),
            ("again", "compressed as their class"),
            ("swapped", "as the other"),
        )
    )
    console.print(Text(f"AUC: {areas}."), soft_wrap=True)
    if result["one_history"] is not None:
        console.print(Text(_one_history(result["one_history"], result["auc_own"])), soft_wrap=True)
    for reject in result["set_aside"][:_MOST_REJECTS]:
        text = f"skipped {reject['path']}: {reject['reason']} ({reject['detail']})"
        console.print(Text(text, style="yellow"), soft_wrap=True)
    if result["carried"] is None:
        console.print(Text(f"No verdict: {result['reason']}.", style="bold"), soft_wrap=True)
        show_next(console, result)
        return
    low, high = result["interval"]
    console.print(
        Text(
            f"The files' history carries {100 * result['carried']:.0f} % of the verdict "
            f"(95 % interval {100 * low:.0f} to {100 * high:.0f}). Stored in {result['run']}/swap.json for the report.",
            style="bold",
        ),
        soft_wrap=True,
    )
    show_next(console, result)


def _one_history(found: Result, auc_own: float) -> str:
    within = "" if found["interval"] is None else " ({:.3f} to {:.3f})".format(*found["interval"])
    change = "" if found["change"] is None else ", a change of {:+.3f} to {:+.3f}".format(*found["change"])
    return (
        f"All compressed as {found['history']}: AUC {found['auc']:.3f}{within}, from {auc_own:.3f}{change}; accuracy at "
        f"{found['threshold']:.3f}: {100 * found['accuracy']:.1f} %, from {100 * found['accuracy_own']:.1f} %."
    )


def _short(reason: str) -> str:
    """Return a reason in the words of a table's cell: that of small classes is long, and the same in many rows."""
    return _TOO_FEW if reason.startswith("fewer than") else reason or "not given away"


def _area(check: Result) -> str:
    if check["auc"] is None:
        return "-"
    low, high = check["interval"]
    return f"{check['auc']:.2f} ({low:.2f} to {high:.2f})"


def _unjudged(entry: Result) -> str:
    low, high = entry["interval"]
    return (
        f"Not judged, because it also depends on the content: {entry['words']}; AUC {entry['auc']:.2f}"
        f" ({low:.2f} to {high:.2f})."
    )


def _pixels(pixels: Result) -> str:
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in pixels["not_measured"].items())
    text = f"Pixels of {count(pixels['measured'], 'image')} examined{f' (not of {reasons})' if reasons else ''}."
    if pixels["measured"] and pixels["without_spectrum"]:
        text += f" {pixels['without_spectrum']:,} of them were too small for the grid and resampling features."
    return text


def _duplicates(found: Result) -> list[str]:
    lines = [
        f"Identical files: {found['same_bytes_both_labels']:,} with both labels,"
        f" {found['same_bytes_across_splits']:,} left out of a split because test or val has one,"
        f" {found['same_bytes_repeated']:,} other repeats.",
        f"Near duplicates among {count(found['compared'], 'image')}: {count(found['near_pairs'], 'pair')},"
        f" {found['near_across_labels']:,} across labels, {found['near_across_splits']:,} across splits.",
    ]
    return lines + [f"  {one}  {other}" for one, other in found["near_examples"][:_MOST_REJECTS]]


def _cached(images: Result) -> str:
    alike = f"all compressed alike ({images['harmonize']})" if images["harmonize"] else "without --harmonize"
    drawn = f"{images['real']:,} real and {images['fake']:,} generated were drawn"
    return f"Cached images of {images['size']} pixels, {alike}: {drawn}."


def _verdict(result: Result) -> str:
    images = result["images"]
    if result["harmonize"]:
        return _harmonized_verdict(result, images)
    if result["found"] and images is not None and not images["found"]:
        return (
            "The label is given away by the source files. Nothing made their histories alike (--harmonize), so a detector may "
            f"read them from what is left in the pixels, although there is no sign in {count(_judged(images['checks']), 'check')} "
            "of the cached images."
        )
    if result["found"]:
        return (
            "The label is given away: a detector trained on these images need not learn anything about their content."
        )
    judged = _judged([*result["checks"], *(images or {"checks": ()})["checks"]])
    if judged == 0:
        return "Too few images for a verdict."
    return f"No sign in {count(judged, 'check')} that the label is given away by what was checked."


def _harmonized_verdict(result: Result, images: Result | None) -> str:
    """Say what ``--harmonize`` took away, and what remains."""
    taken = (
        f"--harmonize {result['harmonize']} took away: {', '.join(result['removed'])}. " if result["removed"] else ""
    )
    left = []
    if images is None:
        left.append("the cached images were not examined")
    elif images["found"]:
        left.append("traces in the pixels of the cached images give the label away")
    elif judged := _judged(images["checks"]):
        left.append(f"no sign in {count(judged, 'check')} of the pixels of the cached images")
    else:
        left.append("the cached images are too few for a verdict")
    if any(check["found"] for check in result["checks"] if check["features"] == "size"):
        left.append("the sizes of the files give the label away, and resizing may leave traces of them")
    return f"{taken}What remains: {'; '.join(left)}."


def _judged(checks: list[Result]) -> int:
    return sum(check["auc"] is not None for check in checks)
