"""Summary of ``features``."""

from __future__ import annotations

from rich.text import Text

from .format import Result, new_console, new_table

_OWN = "distil-cache "


def show_features(result: Result) -> None:
    """Print a line for each feature, and what is wrong with those that cannot be used."""
    table = new_table("Features", ["feature", "description", "geometry", "calls", "settings"])
    for column in table.columns[1:]:
        column.justify = "left"
    broken = []
    for row in result["features"]:
        if row["problem"]:
            broken.append(row["problem"])
            continue
        calls = ", ".join(f"{number:,} {unit}" for unit, number in row["calls"].items())
        of = "" if row["provider"].startswith(_OWN) else f" ({row['provider']})"
        table.add_row(
            row["name"], f"{row['description']}{of}", row["geometry"], calls or "-", ", ".join(row["settings"]) or "-"
        )
    console = new_console()
    console.print(table)
    for sentence in dict.fromkeys(broken):
        console.print(Text(sentence), soft_wrap=True)
