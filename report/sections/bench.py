"""What detecting an image costs with each method: the result of ``bench`` beside table 2 of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ...inference.bench.result import CONVENTION, Costs, MethodCosts, format_ratio, read_costs, shares
from ..inputs.paper import TITLE, PaperCosts, paper, paper_costs
from ..layout.page import Addition, Section
from ..layout.tables import Table
from ..wording import MISSING, listed

NAME = "costs"

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = ((1.0, "s"), (1e-3, "ms"))

_PAPER_FLOPS = (
    "The paper's FLOPs are another quantity. Its figures for DIRE and DistilDIRE are reproduced to the last digit if each multiply-add is "
    "counted once per module that encloses it (its tool keeps a count per module) and DIRE makes 30 ADM calls, where the "
    "paper's text says 40. "
    "Counted once, 40 calls of the paper's ADM are 44.8 T multiply-adds, or 89.6 T FLOPs."
)
_PAPER_SECONDS = (
    "The paper's seconds seem to include start-up: its CNNDet, a ResNet-50 alone, takes 1.687 s. Compare them with "
    "the cold start rather than with the warm time."
)


def additions(bench: Path) -> Addition:
    """Show the result of ``bench`` beside the paper's figures.

    Parameters
    ----------
    bench : Path
        File that ``bench --out`` wrote.

    Raises
    ------
    UserError
        If the file cannot be read or is not a result of ``bench``.
    """
    costs = read_costs(bench)
    printed = {row.method: row for row in paper_costs()}
    sections = [Section("What an image costs", _conditions(costs), _table(costs, printed))]
    if any(row.warm for row in costs.rows):
        sections.append(Section("Where an image's time goes", _spent(costs), _stages(costs)))
    content = {"bench": costs.model_dump(mode="json"), "paper": [dataclasses.asdict(row) for row in printed.values()]}
    return Addition(NAME, sections, content)


def _conditions(costs: Costs) -> str:
    c = costs.conditions
    software = ", ".join(f"{name} {version}" for name, version in c.software.items())
    text = f"ADM {c.adm} at {c.image_size} pixels, {c.steps}; student {c.backbone} with random weights, which do not affect the time. "
    if any(row.warm for row in costs.rows):
        text += (
            f"Measured on {c.device} (CPU threads: {c.threads}) in {c.precision}, batch size {c.batch_size}, on "
            f"{costs.created:%d %B %Y} with {software}. Warm: median over interleaved rounds, from the decoded image to the "
            "probability. Cold: a fresh process, from its start to the first probability, with imports and loading."
        )
    else:
        text += f"Counted, not run, with {software}."
    return f"{text}\n\n{_PAPER_FLOPS} {_PAPER_SECONDS}"


@dataclass(frozen=True)
class _Unit:
    """One unit for a whole column, so that its numbers compare at a glance and can be sorted."""

    size: float
    name: str

    @classmethod
    def of(cls, values: Iterable[float], units: Sequence[tuple[float, str]]) -> _Unit:
        """Choose the largest unit that does not exceed the largest value."""
        largest = max(values, default=0.0)
        return cls(*next((unit for unit in units if largest >= unit[0]), units[-1]))

    def digits(self, value: float, count: int) -> str:
        """Format a value in this unit with ``count`` significant digits and no exponent."""
        return f"{Decimal(f'{value / self.size:.{count - 1}e}'):,f}"


@dataclass(frozen=True)
class _Units:
    """The unit of each kind of column."""

    weights: _Unit
    flops: _Unit
    warm: _Unit
    cold: _Unit

    @classmethod
    def of(cls, rows: Sequence[MethodCosts]) -> _Units:
        """Choose the units for a table's rows."""
        return cls(
            _Unit.of((row.parameters.total for row in rows), _PREFIXES),
            _Unit.of((row.flops.image for row in rows), _PREFIXES),
            _Unit.of((row.warm.seconds for row in rows if row.warm), _TIMES),
            _Unit.of((row.cold.seconds for row in rows if row.cold), _TIMES),
        )


def _table(costs: Costs, printed: Mapping[str, PaperCosts]) -> Table:
    units = _Units.of(costs.rows)
    columns = [
        "method", "ADM calls", f"parameters\n{units.weights.name}", f"FLOPs\n{units.flops.name}",
        f"an image, warm\n{units.warm.name}", f"its CPU time\n{units.warm.name}", f"cold start\n{units.cold.name}", "memory\nMiB",
    ]  # fmt: skip
    rows = [[row.title, *_cells(row, units, printed.get(row.method))] for row in costs.rows]
    note = (
        f'{CONVENTION} Second lines: cost of DIRE divided by that of the method. Lines that begin with "paper": {TITLE}, '
        f"table {paper()['costs']['table']} ({paper()['costs']['conditions']}), whatever was measured here; its DNF "
        "uses a smaller diffusion model."
    )
    return Table("What an image costs with each method.", columns, rows, note)


def _cells(row: MethodCosts, units: _Units, papers: PaperCosts | None) -> list[str]:
    warm, cold = row.warm, row.cold
    printed = ("", "", "")
    if papers is not None:
        printed = (f"{papers.parameters_millions:.2f} M", f"{papers.tflop:g} T", f"{papers.seconds:.3f} s")
    return [
        str(row.adm_calls),
        _cell(units.weights.digits(row.parameters.total, 5), None, printed[0]),
        _cell(units.flops.digits(row.flops.image, 4), row.dire.flops, printed[1]),
        _cell(units.warm.digits(warm.seconds, 3) if warm else MISSING, row.dire.warm, printed[2]),
        _cell(units.warm.digits(warm.cpu_seconds, 3) if warm else MISSING, row.dire.cpu),
        _cell(units.cold.digits(cold.seconds, 3) if cold else MISSING, row.dire.cold),
        _cell(f"{cold.peak_bytes / 2**20:,.0f}" if cold else MISSING, row.dire.memory),
    ]


def _cell(value: str, ratio: float | None, papers: str = "") -> str:
    lines = [value, "" if ratio is None else format_ratio(ratio), papers and f"paper: {papers}"]
    return "\n".join(line for line in lines if line)


def _spent(costs: Costs) -> str:
    row = costs.row("distildire")
    if row is None or row.warm is None:
        return "Shares of the time from a file to its probability, with everything warm."
    parts = listed([f"{stage} {_percent(share)}" for stage, share in shares(costs, row).items()])
    return (
        f"Where the time of a DistilDIRE image goes: {parts}. Everything is warm; the file is a {costs.decoded}. The DDIM arithmetic "
        "between ADM calls counts as ADM."
    )


def _stages(costs: Costs) -> Table:
    found = {row.title: shares(costs, row) for row in costs.rows}
    stages = max(found.values(), key=len)
    rows = [[title, *(_percent(spent[s]) if s in spent else MISSING for s in stages)] for title, spent in found.items()]
    return Table("Shares of an image's time, from its file to its probability.", ["method", *stages], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
