"""Formats of numbers, cells and tables that all commands share."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Result = dict[str, Any]
"""The result of a command, as ``--json`` prints it."""


def new_console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are: brackets and colons in a name are no markup."""
    return Console(stderr=stderr, markup=False, emoji=False)


def size_of(size: float) -> str:
    """Format a number of bytes with a binary unit, such as 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def count(number: int, noun: str) -> str:
    """Format a number of things: ``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def new_table(title: str, columns: list[str]) -> Table:
    """Return a table without borders, its first column aligned left and the others right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def cell(value: object) -> str:
    """Format a value for a table cell: four decimals for floats, thousands separators for integers, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show_profile(console: Console, profile: Result | None) -> None:
    """Print which profile was chosen, and the values of its options; nothing without one."""
    if profile:
        settings = ", ".join(f"--{name} {value}" for name, value in profile["settings"].items())
        console.print(Text(f"Profile {profile['name']}: {settings}."), soft_wrap=True)


def show_next(console: Console, result: Result) -> None:
    """Print the command to type next, if the result names one."""
    if result.get("next"):
        console.print(Text(f"Next: {result['next']}", style="bold"), soft_wrap=True)


def percent(value: float | None) -> str:
    """Format a share in percent with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def percent_with_interval(cell: list[float] | None) -> str:
    """Format a share and its interval in percent: ``94.4 (90-98)``; a dash for None."""
    if cell is None:
        return "-"
    value, low, high = (100 * one for one in cell)
    return f"{value:.1f} ({low:.0f}-{high:.0f})"
