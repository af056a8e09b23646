"""Summary of ``predict``."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from .format import Result, count, new_console, show_next

_STYLES = {"generated": "red", "real": "green"}


def show_predictions(result: Result, out: Path | None) -> None:
    """Print the verdicts, unless they were written to a file, then the skipped files, counts and notes."""
    console = new_console()
    scored = [row for row in result["predictions"] if row["score"] is not None]
    if scored and out is None:
        console.print(_verdicts(scored))
    skipped = [row for row in result["predictions"] if row["score"] is None]
    for row in skipped if out is None else skipped[:5]:
        text = f"  skipped {row['path']}: {row['reason']} ({row['detail']})"
        console.print(Text(text, style="yellow"), soft_wrap=True)
    counts = result["counts"]
    withheld = f"{counts['withheld']:,} without a verdict, " if counts.get("withheld") else ""
    console.print(
        f"{count(counts['files'], 'file')}: {counts['generated']:,} generated, {counts['real']:,} real, "
        f"{withheld}{counts['set_aside']:,} skipped; {count(result['adm_calls_per_image'], 'ADM call')} per image, "
        f"{result['seconds']:,.1f} s.",
        highlight=False,
    )
    for note in result["notes"]:
        console.print(Text(f"Note: {note}."), soft_wrap=True)
    if out is not None:
        console.print(Text(f"Written to {out}", style="bold"), soft_wrap=True)
    show_next(console, result)


def _verdict(row: Result) -> Text:
    return Text(row["verdict"], style=_STYLES[row["verdict"]]) if row["verdict"] else Text("withheld", style="yellow")


def _verdicts(rows: list[Result]) -> Table:
    videos = any("frames" in row for row in rows)
    table = Table(header_style="dim", box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for column in ("P(generated)", "verdict", *(("frames", "highest frame") if videos else ())):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [Text(f"{row['score']:.4f}"), _verdict(row)]
        if videos and "frames" in row:
            cells += [Text(str(len(row["frames"]))), Text(f"{row['highest']:.4f}")]
        table.add_row(Text(row["path"]), *cells)
    return table
