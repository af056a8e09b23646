"""The result of ``bench``: what detecting one image costs with each method. The report repeats it.

The file is one JSON object of kind ``distil-cache-bench``. A multiply-add counts as two FLOPs, as in
`torch.utils.flop_counter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...choices import BENCH_METHODS
from ...errors import UserError
from ...storage.regular import read_regular

METHODS_IN_ORDER = BENCH_METHODS
"""Rows of the table; the first four in the order of DistilDIRE's paper."""

REFERENCE_METHOD = "dire"
"""The method with which the others are compared."""

CONVENTION = (
    "One multiply-add is 2 FLOPs; convolutions and matrix products are counted, elementwise operations are not."
)

MAX_BYTES = 1_000_000
"""Largest file that is read; a result has a few kilobytes."""

_Count = Annotated[int, Field(ge=0)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameters(_Frozen):
    """Numbers of parameters; ``adm`` is 0 if the method needs no diffusion model, ``others`` are of other networks."""

    adm: _Count
    student: _Count
    others: _Count = 0

    @property
    def total(self) -> int:
        """Parameters of all networks."""
        return self.adm + self.student + self.others


class Flops(_Frozen):
    """FLOPs of one ADM call on one image (0 without ADM), of the student, of other networks, and of the whole image."""

    adm_call: _Count
    student: _Count
    others: _Count = 0
    image: _Count


class Warm(_Frozen):
    """Seconds per image when everything is loaded and warmed up: medians over passes of one batch each.

    Attributes
    ----------
    passes : int
    seconds : float
        Wall time.
    cpu_seconds : float
        CPU time of all threads, which other programs affect less.
    quartiles : tuple of float
        Lower and upper quartile of ``seconds``.
    stages : dict
        Stage -> seconds, in the order of a pass.
    """

    passes: Annotated[int, Field(ge=1)]
    seconds: _Amount
    cpu_seconds: _Amount
    quartiles: tuple[_Amount, _Amount]
    stages: dict[str, _Amount]


class Cold(_Frozen):
    """Seconds from the start of a fresh process to its first probability: medians over processes.

    Attributes
    ----------
    processes : int
    start : float
        Interpreter and imports.
    load : float
        Networks from file to device.
    first : float
        The first image.
    peak_bytes : int
        Peak memory: resident on a CPU, allocated by torch on CUDA.
    """

    processes: Annotated[int, Field(ge=1)]
    start: _Amount
    load: _Amount
    first: _Amount
    peak_bytes: _Count

    @property
    def seconds(self) -> float:
        """Start, loading and first image."""
        return self.start + self.load + self.first


class Ratios(_Frozen):
    """Costs of DIRE divided by those of this method; None if one of them is unknown or 0.

    Attributes
    ----------
    flops : float or None
        Per image.
    warm, cpu : float or None
        Wall and CPU time of a warm image.
    cold : float or None
        Time of the cold start.
    memory : float or None
        Peak memory.
    """

    flops: _Amount | None = None
    warm: _Amount | None = None
    cpu: _Amount | None = None
    cold: _Amount | None = None
    memory: _Amount | None = None


class MethodCosts(_Frozen):
    """The costs of one method.

    Attributes
    ----------
    title : str
        The method's name as shown.
    adm_calls : int
        Per image.
    student_size : int
        Side length of the student's input in pixels.
    warm, cold : Warm, Cold or None
        None if nothing was timed.
    dire : Ratios
        DIRE's costs divided by these.
    """

    method: str
    title: str
    adm_calls: _Count
    student_size: Annotated[int, Field(ge=1)]
    parameters: Parameters
    flops: Flops
    warm: Warm | None = None
    cold: Cold | None = None
    dire: Ratios = Ratios()

    @model_validator(mode="before")
    @classmethod
    def _has_title(cls, values: Any) -> Any:
        """Name a method of a file without titles, which earlier versions wrote."""
        return {"title": values.get("method"), **values} if isinstance(values, dict) else values


class Conditions(_Frozen):
    """The conditions of the measurement.

    Attributes
    ----------
    adm : str
        Name or file of the diffusion model.
    weights : str or None
        Digest of its weights; None for random ones.
    flags : dict
        Its guided-diffusion flags.
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
    """The content of a result file.

    Attributes
    ----------
    decode : float or None
        Seconds to decode one file.
    decoded : str
        Description of that file.
    """

    kind: Literal["distil-cache-bench"] = "distil-cache-bench"
    version: Literal[1] = 1
    created: AwareDatetime
    conditions: Conditions
    rows: Annotated[tuple[MethodCosts, ...], Field(min_length=1)]
    decode: _Amount | None = None
    decoded: str = ""

    def row(self, method: str) -> MethodCosts | None:
        """Return the row of a method, or None."""
        return next((row for row in self.rows if row.method == method), None)


def with_ratios(rows: Sequence[MethodCosts]) -> tuple[MethodCosts, ...]:
    """Return the rows with their ratios to DIRE, if DIRE is among them."""
    dire = next((row for row in rows if row.method == REFERENCE_METHOD), None)
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


def _over(dire: float, value: float) -> float | None:
    return dire / value if value else None


def shares(costs: Costs, row: MethodCosts) -> dict[str, float]:
    """Return each stage's share (0..1) of the time from file to probability, decoding first; empty if not timed."""
    if row.warm is None:
        return {}
    spent = {**({} if costs.decode is None else {"decode": costs.decode}), **row.warm.stages}
    whole = sum(spent.values())
    return {stage: seconds / whole for stage, seconds in spent.items()} if whole else {}


def read_costs(path: Path) -> Costs:
    """Read a result of ``bench``.

    Raises
    ------
    UserError
        If the file cannot be read or is not a result of ``bench``.
    """
    hint = "Make one with: distil-cache bench --out FILE"
    try:
        return Costs.model_validate_json(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {hint}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: is not a result of bench ({where}: {first['msg']}). {hint}") from error


def format_ratio(ratio: float | None) -> str:
    """Format a ratio as ``39.9 x``."""
    if ratio is None:
        return "-"
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.3g} x"
