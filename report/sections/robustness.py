"""Robustness: what a detector's measures become when its test images are perturbed. From evaluations alone.

Nothing is computed from images here: eps and all else of the perturbed ones are made by a build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...metrics.per_generator import mean_interval
from ..analysis.perturbed import KINDS, CurvePoint, RunCurves, Way, robustness_curves, severity_order
from ..inputs.runs import Run
from ..layout.panels import Curve, Figure, Panel, line_panel
from ..layout.section import Addition, Section
from ..layout.tables import Table
from ..wording.labels import MISSING, bounds, percent, signed, signed_bounds
from ..wording.sentences import protocol_title

MEASURES = {"accuracy": "accuracy", "average_precision": "AP"}
NONE = "none"


def robustness(runs: Sequence[Run], clusters: Mapping[str, str] | None) -> Addition | None:
    """Curves, table and values of all runs that were scored on derived datasets; None if no run was.

    clusters : key -> what an image is resampled with, as in ``write_report``.
    """
    found = robustness_curves(runs, clusters)
    if not found:
        return None
    sections = [_section(way, curves) for way, curves in found.items()]
    content = [
        {
            **dict(zip(("dataset", "split", "transform", "select"), way, strict=True)),
            "runs": [
                {"run": one.run.name, "points": [_point_content(point) for point in one.points]} for one in curves
            ],
        }
        for way, curves in found.items()
    ]
    return Addition("robustness", sections, content)


def _section(way: Way, curves: Sequence[RunCurves]) -> Section:
    dataset, *rest = way
    title = f"{dataset}, {protocol_title(*rest)}"
    lacking = [one.run.name for one in curves if one.unperturbed is None]
    text = (
        f"The images of {dataset} were perturbed, and everything that the detectors look at was computed anew from the "
        "perturbed pictures."
    )
    if lacking:
        text += (
            f"\n\nThe same images unperturbed are missing for {', '.join(lacking)}, so nothing is said of what the perturbation "
            f"changes. Run: distil-cache evaluate RUN --cache DIR --dataset {dataset} --split {rest[0]}"
        )
    return Section(f"Robustness: {title}", text, _table(title, curves), _figures(title, curves))


def _table(title: str, curves: Sequence[RunCurves]) -> Table:
    """Rows are perturbations, columns runs: accuracy / AP, then the interval of each, or of what it changed by."""
    perturbations = {p.perturbation.text: p.perturbation for one in curves for p in one.points if p.perturbation}
    rows = []
    for wanted in [None, *sorted(perturbations.values(), key=severity_order)]:
        cells = [_cell(next((p for p in one.points if p.perturbation == wanted), None)) for one in curves]
        if wanted is not None or any(cell != MISSING for cell in cells):
            rows.append([NONE if wanted is None else f"{wanted.kind} {wanted.number}", *cells])
    note = (
        "Accuracy at 0.5 / AP, in percent, unweighted means over generators. Below, unperturbed: their 95 % intervals; "
        "perturbed: the change of each in percentage points, with its 95 % interval from a paired bootstrap over images."
    )
    return Table(f"Under perturbation: {title}.", ["perturbation", *(one.run.name for one in curves)], rows, note)


def _cell(point: CurvePoint | None) -> str:
    if point is None:
        return MISSING
    lines = [" / ".join(percent(point.value(name)) for name in MEASURES)]
    for name in MEASURES:
        if point.before is None:
            own = mean_interval(point.result.scores, name)
            lines += [bounds(own)] if own else []
        elif (around := point.change_interval(name)) is not None:
            lines.append(f"{signed(point.change(name))} ({signed_bounds(around)})")
    return "\n".join(lines)


def _figures(title: str, curves: Sequence[RunCurves]) -> list[Figure]:
    """A figure a measure, a panel a kind; all panels of a figure have one scale."""
    kinds = dict.fromkeys(
        point.perturbation.kind
        for point in sorted((p for one in curves for p in one.points), key=lambda p: severity_order(p.perturbation))
        if point.perturbation is not None
    )
    figures = []
    for name, measured in MEASURES.items():
        values = [100 * value for one in curves for p in one.points if (value := p.value(name)) is not None]
        if values:
            margin = 1 + 0.05 * (max(values) - min(values))
            y_range = min(values) - margin, max(values) + margin
            caption = f"{measured} under perturbation, mean over generators: {title}. Damage grows to the right."
            panels = [_panel(kind, name, curves, y_range) for kind in kinds]
            shown = tuple(panel for panel in panels if panel is not None)
            figures.append(Figure(caption[0].upper() + caption[1:], shown, tuple(one.run.name for one in curves)))
    return figures


def _panel(kind: str, name: str, curves: Sequence[RunCurves], y_range: tuple[float, float]) -> Panel | None:
    """One kind and measure, a line a run; None if the measure is not defined for it."""
    ticks: dict[float, str] = {}
    lines, words = [], []
    for series, one in enumerate(curves):
        along = [(x, value, point) for x, point in one.of(kind) if (value := point.value(name)) is not None]
        if any(point.perturbation for _, _, point in along):
            ticks |= {x: point.perturbation.number if point.perturbation else NONE for x, _, point in along}
            lines.append(Curve(series, [x for x, _, _ in along], [100 * value for _, value, _ in along]))
            words.append(f"{one.run.name} goes from {percent(along[0][1])} to {percent(along[-1][1])} %")
    if not lines:
        return None
    title, number = KINDS.get(kind, (kind, "strength"))
    y_label = f"{MEASURES[name]} in percent"
    return line_panel(
        title, f"{MEASURES[name]}: {'; '.join(words)}", lines, number, y_label, dict(sorted(ticks.items())), y_range
    )


def _point_content(point: CurvePoint) -> dict[str, Any]:
    perturbation = point.perturbation
    return {
        "perturbation": perturbation.text if perturbation else None,
        "kind": perturbation.kind if perturbation else None,
        "severity": perturbation.severity if perturbation else 0.0,
        "evaluation": point.result.evaluation.name,
        "dataset": point.result.evaluation.info["dataset"],
        "images": len(point.result.evaluation.keys),
        "mean": {
            name: {
                "value": point.value(name),
                "interval": mean_interval(point.result.scores, name),
                "change": point.change(name),
                "change_interval": point.change_interval(name),
            }
            for name in MEASURES
        },
        "generators": {
            generator: {name: scores.values[name] for name in MEASURES}
            for generator, scores in point.result.scores.items()
        },
    }
