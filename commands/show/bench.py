"""Summary of ``bench``."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ...inference.bench.result import CONVENTION, Costs, format_ratio, shares
from .format import Result, new_console, new_table, show_next, size_of


def show_bench(result: Result) -> None:
    """Print the cost of each method, where its time goes, and the conditions of the measurement."""
    costs = Costs.model_validate({name: value for name, value in result.items() if name != "next"})
    console = new_console()
    console.print(_counted(costs))
    console.print(Text(f"{CONVENTION} Columns x: DIRE's value divided by the method's."), soft_wrap=True)
    if any(row.warm for row in costs.rows):
        for table in (_warm(costs), _cold(costs), _stages(costs)):
            console.print()
            console.print(table)
        console.print(Text(f"Time from file ({costs.decoded}) to verdict, with everything warm."), soft_wrap=True)
    console.print(Text(_conditions(costs)), soft_wrap=True)
    show_next(console, result)


def amount(value: float) -> str:
    """Format a number with four digits and an SI prefix: 89.59 T, 23.51 M."""
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:#.4g} {prefix}".strip()
        value /= 1000
    return f"{value:#.4g} T"


def duration(seconds: float) -> str:
    """Format seconds as s or ms: 0.59 ms, 2.25 s."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:,.2f} s"


def _counted(costs: Costs) -> Table:
    table = new_table(
        "Cost per image", ["method", "ADM calls", "parameters", "in the ADM", "in the student", "FLOPs", "x"]
    )
    for row in costs.rows:
        own = row.parameters
        numbers = (amount(own.total), amount(own.adm) if own.adm else "-", amount(own.student), amount(row.flops.image))
        table.add_row(row.title, str(row.adm_calls), *numbers, format_ratio(row.dire.flops))
    return table


def _warm(costs: Costs) -> Table:
    table = new_table("Warm time per image", ["method", "median", "interquartile range", "x", "CPU time", "x"])
    for row in costs.rows:
        if row.warm is not None:
            low, high = map(duration, row.warm.quartiles)
            clock = (duration(row.warm.seconds), f"{low} to {high}", format_ratio(row.dire.warm))
            table.add_row(row.title, *clock, duration(row.warm.cpu_seconds), format_ratio(row.dire.cpu))
    return table


def _cold(costs: Costs) -> Table:
    columns = ["method", "total", "imports", "loading", "first image", "x", "peak memory", "x"]
    table = new_table("Cold start", columns)
    for row in costs.rows:
        if row.cold is not None:
            parts = map(duration, (row.cold.seconds, row.cold.start, row.cold.load, row.cold.first))
            memory = (size_of(row.cold.peak_bytes), format_ratio(row.dire.memory))
            table.add_row(row.title, *parts, format_ratio(row.dire.cold), *memory)
    return table


def _stages(costs: Costs) -> Table:
    found = {row.title: shares(costs, row) for row in costs.rows}
    longest = max(found.values(), key=len)
    table = new_table("Where the time goes", ["method", *longest])
    for title, spent in found.items():
        table.add_row(title, *(f"{100 * spent[stage]:.1f} %" if stage in spent else "-" for stage in longest))
    return table


def _conditions(costs: Costs) -> str:
    c = costs.conditions
    software = ", ".join(
        f"{name} {version}" for name, version in c.software.items() if name in ("distil-cache", "torch")
    )
    what = f"ADM {c.adm}, {c.image_size} pixels, {c.steps}; student {c.backbone}"
    if all(row.warm is None for row in costs.rows):
        return f"{what}. Counted, not measured; {software}."
    return (
        f"{what} with random weights (time does not depend on them). {c.device}, CPU threads: {c.threads}, {c.precision}, "
        f"batch size: {c.batch_size}; {software}."
    )
