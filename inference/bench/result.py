"""What detecting one image costs by each method, as ``bench`` stores it and the report repeats it.

The file is one JSON object of kind ``distil-cache-bench``. A FLOP is one multiplication or one addition, so a
multiply-add is two, as `torch.utils.flop_counter` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ...choices import BENCH_METHODS
from ...errors import UserError

METHODS_IN_ORDER = BENCH_METHODS
"""Rows of the table; the first four in the order of DistilDIRE's paper."""

TITLES = {"cnndet": "CNNDet", "dire": "DIRE", "dnf": "DNF", "distildire": "DistilDIRE", "eps": "eps alone"}

YARDSTICK = "dire"
"""The method that the others are compared with."""

CONVENTION = "One multiply-add is 2 FLOPs; convolutions and matrix products are counted, elementwise work is not."

MAX_BYTES = 1_000_000
"""Longest file that is read; a real one has a few kilobytes."""

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameters(_Frozen):
    """Weights that a method holds in memory; ``adm`` is 0 where it needs no diffusion model."""

    adm: Count
    student: Count

    @property
    def total(self) -> int:
        """Both together."""
        return self.adm + self.student


class Flops(_Frozen):
    """Operations of one ADM call on one image (0 where there is none), of the student, and of the whole image."""

    adm_call: Count
    student: Count
    image: Count


class Warm(_Frozen):
    """Seconds an image when everything is loaded and has run before: medians over ``passes`` of one batch each.

    cpu_seconds : processor time of all threads, which other programs disturb less. quartiles : of ``seconds``.
    stages : the parts of a pass in their order, medians of each.
    """

    passes: Annotated[int, Field(ge=1)]
    seconds: Amount
    cpu_seconds: Amount
    quartiles: tuple[Amount, Amount]
    stages: dict[str, Amount]


class Cold(_Frozen):
    """Seconds from nothing to the first verdict, in fresh processes: medians over ``processes``.

    start : the interpreter and its imports. load : networks from file to device. first : the first image.
    peak_bytes : most memory that such a process held: resident on a CPU, allocated by torch on CUDA.
    """

    processes: Annotated[int, Field(ge=1)]
    start: Amount
    load: Amount
    first: Amount
    peak_bytes: Count

    @property
    def seconds(self) -> float:
        """All three together."""
        return self.start + self.load + self.first


class Ratios(_Frozen):
    """How many times what this method costs DIRE costs; None where one of them is not known, or is 0.

    warm, cpu : of the warm image's seconds on the clock and of processor time. cold : of the cold start.
    """

    flops: Amount | None = None
    warm: Amount | None = None
    cpu: Amount | None = None
    cold: Amount | None = None
    memory: Amount | None = None


class MethodCosts(_Frozen):
    """One method's row. ``student_size`` is the side of what the student sees, in pixels.

    warm, cold : None where nothing was timed. dire : DIRE's costs over these.
    """

    method: str
    adm_calls: Count
    student_size: Annotated[int, Field(ge=1)]
    parameters: Parameters
    flops: Flops
    warm: Warm | None = None
    cold: Cold | None = None
    dire: Ratios = Ratios()

    @property
    def title(self) -> str:
        """The method's name for people."""
        return TITLES.get(self.method, self.method)


class Conditions(_Frozen):
    """Where and how it was measured.

    adm : name or file. weights : digest of its weights; None for random ones. flags : guided-diffusion's.
    """

    device: str
    threads: Annotated[int, Field(ge=1)]
    precision: str
    image_size: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    steps: str
    adm: str
    weights: str | None
    flags: dict[str, str | int | float | bool]
    backbone: str
    software: dict[str, str]


class Costs(_Frozen):
    """The content of a bench file. ``decode``: seconds to decode one file, of which ``decoded`` says what it was."""

    kind: Literal["distil-cache-bench"] = "distil-cache-bench"
    version: Literal[1] = 1
    created: AwareDatetime
    conditions: Conditions
    rows: Annotated[tuple[MethodCosts, ...], Field(min_length=1)]
    decode: Amount | None = None
    decoded: str = ""

    def row(self, method: str) -> MethodCosts | None:
        """One method's row, if it is there."""
        return next((row for row in self.rows if row.method == method), None)


def with_ratios(rows: Sequence[MethodCosts]) -> tuple[MethodCosts, ...]:
    """Compare each row with DIRE's, if there is one."""
    dire = next((row for row in rows if row.method == YARDSTICK), None)
    if dire is None:
        return tuple(rows)
    return tuple(row.model_copy(update={"dire": _ratios(dire, row)}) for row in rows)


def _ratios(dire: MethodCosts, row: MethodCosts) -> Ratios:
    found = {"flops": _over(dire.flops.image, row.flops.image)}
    if dire.warm and row.warm:
        found["warm"] = _over(dire.warm.seconds, row.warm.seconds)
        found["cpu"] = _over(dire.warm.cpu_seconds, row.warm.cpu_seconds)
    if dire.cold and row.cold:
        found["cold"] = _over(dire.cold.seconds, row.cold.seconds)
        found["memory"] = _over(dire.cold.peak_bytes, row.cold.peak_bytes)
    return Ratios(**found)


def _over(dearer: float, value: float) -> float | None:
    return dearer / value if value else None


def shares(costs: Costs, row: MethodCosts) -> dict[str, float]:
    """Share of each stage in the time of an image from file to verdict (0..1), decoding first; empty if not timed."""
    if row.warm is None:
        return {}
    spent = {**({} if costs.decode is None else {"decode": costs.decode}), **row.warm.stages}
    whole = sum(spent.values())
    return {stage: seconds / whole for stage, seconds in spent.items()} if whole else {}


def read_costs(path: Path) -> Costs:
    """Read a bench file. Raises UserError if it is none."""
    again = "Make one with: distil-cache bench --out FILE"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is too long for a table of costs. {again}")
        return Costs.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {again}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: is no table of costs ({where}: {first['msg']}). {again}") from error


def format_ratio(ratio: float | None) -> str:
    """A ratio as ``39.9 x``."""
    if ratio is None:
        return "-"
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.3g} x"
