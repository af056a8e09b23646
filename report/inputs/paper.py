"""The figures of DistilDIRE's paper (arXiv 2406.00856), for cells of the report that the paper also has.

``data/paper.json`` holds them. A cell matches if these are equal: method, distillation weight, source groups and
generators of the training images, and generator and source group of the test set. Names are compared without case,
spaces and punctuation. Whether the images are the same is unknown. Most results of users match no cell of the paper.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .measured import MeasuredEvaluation
from .runs import Run

DATA = Path(__file__).parent / "data" / "paper.json"
TITLE = "arXiv 2406.00856"


class PaperCell(NamedTuple):
    """Accuracy at 0.5 and AP of the paper, both in 0..1, and the table they are from."""

    accuracy: float
    average_precision: float
    table: str


@dataclass(frozen=True)
class PaperCosts:
    """One row of the paper's table 2: seconds per image, millions of parameters, TFLOPs."""

    method: str
    seconds: float
    parameters_millions: float
    tflop: float


@functools.cache
def paper() -> Mapping[str, Any]:
    """Read ``data/paper.json``; accuracies and APs are in percent, other units are in the names."""
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def paper_costs() -> tuple[PaperCosts, ...]:
    """Return table 2 of the paper."""
    return tuple(PaperCosts(**row) for row in paper()["costs"]["rows"])


def paper_cell(result: MeasuredEvaluation, generator: str) -> PaperCell | None:
    """Return the paper's figures for a run's method and training on this generator; None if it has no such cell."""
    row, name = _row(result.run), _tested(result, generator)
    return None if row is None or name is None else _cell(row["cells"][name], row["table"])


def paper_mean(result: MeasuredEvaluation) -> PaperCell | None:
    """Return the paper's average over its six generators; None unless exactly these were tested."""
    row = _row(result.run)
    tested = [_tested(result, generator) for generator in result.scores]
    if row is None or None in tested or sorted(map(str, tested)) != sorted(row["cells"]):
        return None
    return _cell(row["average"], row["table"])


def _cell(percent: Iterable[float], table: str) -> PaperCell:
    accuracy, average_precision = (round(value / 100, 6) for value in percent)
    return PaperCell(accuracy, average_precision, table)


def _row(run: Run) -> Mapping[str, Any] | None:
    """Return the paper's row with the run's method, distillation weight, training sources and training generators."""
    if run.get("imported"):
        return None
    sources = {_source(group) for group in run.get("groups") or ()}
    seen = {_plain(name) for name in run.seen}
    for row in paper()["detection"]:
        known = {name for one in paper()["training"][row["trained_on"]] for name in paper()["generators"][one]["names"]}
        same = (row["method"], row["kd_weight"]) == (run.get("method"), run.kd_weight)
        if same and sources == {row["trained_on"]} and seen and seen <= known:
            found: Mapping[str, Any] = row
            return found
    return None


def _tested(result: MeasuredEvaluation, generator: str) -> str | None:
    """Return the paper's name of a test set, if all its generated images come from the paper's source."""
    one = result.evaluation
    if one.setting[2] != "test":
        return None
    groups = set(one.groups[(one.labels == 1) & (one.generators == generator)].tolist())
    for name, known in paper()["generators"].items():
        if _plain(generator) in known["names"] and {_source(group) for group in groups} == {known["source"]}:
            return str(name)
    return None


def _source(group: object) -> str | None:
    """Return the paper's name of a source group."""
    return next((name for name, names in paper()["sources"].items() if _plain(group) in names), None)


def _plain(name: object) -> str:
    return re.sub("[^a-z0-9]", "", str(name).lower())
