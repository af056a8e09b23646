"""How numbers and tables look, the same for every command."""

from __future__ import annotations

from typing import Any

from rich.table import Table

Result = dict[str, Any]
"""What a command found out, as ``--json`` prints it."""


def size_of(count: float) -> str:
    """Return a number of bytes in the largest unit that keeps it above 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def new_table(title: str, columns: list[str]) -> Table:
    """Return a table without lines: the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def cell(value: object) -> str:
    """Return a value as a table shows it: four decimals, thousands apart, a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
