"""Numbers and names as the report's tables show them."""

from __future__ import annotations

from ...metrics.measures import Interval
from ...metrics.per_generator import UNKNOWN_FAMILY
from ..inputs.paper import PaperCell
from ..inputs.runs import Run

MISSING = "–"
FAMILIES = {"gan": "GANs", "diffusion": "diffusion models", UNKNOWN_FAMILY: "unknown family"}


def generator_title(name: str) -> str:
    """A generator's name as shown."""
    return name or "(no name)"


def family_title(name: str) -> str:
    """A family of generators in words."""
    return FAMILIES.get(name, name)


def method_title(run: Run) -> str:
    """Method, with its preset unless that is the paper's, and distillation weight of a run."""
    preset = run.get("preset")
    method = f"{run.get('method')}{f' ({preset})' if preset not in (None, 'paper') else ''}"
    return method if run.kd_weight is None else f"{method}, distillation weight {run.kd_weight:g}"


def training_title(run: Run) -> str:
    """What a run was trained on."""
    return "trained elsewhere" if run.get("imported") else f"trained on {run.datasets}"


def percent(value: float | None) -> str:
    """0.9345 as ``93.5`` (no sign), ``–`` for a value that is not defined."""
    return MISSING if value is None else f"{100 * value:.1f}"


def decimal(value: float | None) -> str:
    """Three digits after the point."""
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference in percentage points, always with its sign."""
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def bounds(interval: Interval | None, scale: float = 100.0, digits: int = 1) -> str:
    """An interval's ends in words."""
    if interval is None:
        return MISSING
    return f"{interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f}"


def signed_bounds(interval: Interval) -> str:
    """The ends of a difference's interval, in percentage points."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def counts(real: int, fake: int) -> str:
    """Numbers of real and generated images."""
    return f"{real} + {fake}"


def paper_line(cell: PaperCell) -> str:
    """The paper's accuracy and AP, marked as the paper's."""
    return f"paper: {percent(cell.accuracy)} / {percent(cell.average_precision)}"
