"""Robustness: what perturbing the test images does to a detector's measures.

A derived dataset holds the perturbed images of another one; its evaluations name that dataset and the perturbation
(``origin`` in evaluation.json). The evaluations of a run on a dataset and on those derived from it make a curve for
each kind of perturbation. Nothing is computed from images here: a build has made the features of the perturbed ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ...metrics.measures import Interval
from ...metrics.per_generator import mean_interval, mean_over_generators, paired_interval
from ..inputs.measured import MeasuredEvaluation, measure
from ..inputs.runs import Evaluation, Run
from ..layout.page import Addition, Section
from ..layout.panels import Curve, Figure, Panel, line_panel
from ..layout.tables import Table
from ..wording import MISSING, bounds, command_line, percent, protocol_title, shown_path, signed, signed_bounds

MEASURES = {"accuracy": "accuracy", "average_precision": "AP"}
NONE = "none"

KINDS = {
    "jpeg": ("JPEG", "quality"),
    "resize": ("Resized down and up again", "share of the side"),
    "blur": ("Gaussian blur", "sigma in pixels"),
    "noise": ("Gaussian noise", "sigma in grey levels"),
    "crop": ("Centre crop, enlarged", "share of the side"),
}
"""Kind of perturbation -> its title, and what its number means."""

Protocol = tuple[str, str, str, str]
"""Dataset that was perturbed, split, transform and selection."""


@dataclass(frozen=True)
class PerturbationLabel:
    """A perturbation as an evaluation names it, such as ``jpeg:75``.

    Attributes
    ----------
    severity : float
        Grows with the damage; 0 is none. It is 101 - quality, 1 - share of the side, or sigma.
    """

    text: str
    kind: str
    number: str
    severity: float

    @classmethod
    def read(cls, text: object, where: str) -> PerturbationLabel:
        """Parse ``KIND:NUMBER``.

        Raises
        ------
        UserError
            If the text is not a perturbation; the message begins with ``where``.
        """
        kind, _, number = str(text).partition(":")
        if not re.fullmatch(r"\d+(\.\d+)?", number, re.ASCII):
            raise UserError(
                f"{where}: {text!r} is not a perturbation. Delete the evaluation's folder and evaluate again"
            )
        value = float(number)
        severity = {"jpeg": 101 - value, "resize": 1 - value, "crop": 1 - value}.get(kind, value)
        return cls(str(text), kind, number, round(severity, 6))


@dataclass(frozen=True)
class CurvePoint:
    """A run's result on one perturbation of the test images.

    Attributes
    ----------
    perturbation : PerturbationLabel or None
        None for the unperturbed images.
    before : MeasuredEvaluation or None
        The run's result on the same images unperturbed, if it has one.
    """

    perturbation: PerturbationLabel | None
    result: MeasuredEvaluation
    before: MeasuredEvaluation | None

    def value(self, name: str) -> float | None:
        """Return the unweighted mean of a measure over generators."""
        return mean_over_generators(self.result.scores, name)

    def change(self, name: str) -> float | None:
        """Return the change of the mean by the perturbation."""
        after, before = self.value(name), mean_over_generators(self.before.scores, name) if self.before else None
        return None if after is None or before is None else after - before

    def change_interval(self, name: str) -> Interval | None:
        """Return the 95 % interval of the change: a paired bootstrap, which draws the same images before and after."""
        if self.before is None:
            return None
        sides = [[one for one in result.scores.values() if one.complete] for result in (self.before, self.result)]
        return paired_interval(sides[0], sides[1], name)


@dataclass(frozen=True)
class RunCurves:
    """The points of one run: the unperturbed one first, if there is one, then by kind and severity."""

    run: Run
    points: tuple[CurvePoint, ...]

    @property
    def unperturbed(self) -> CurvePoint | None:
        """The point of severity 0."""
        return next((point for point in self.points if point.perturbation is None), None)

    def of(self, kind: str) -> list[tuple[float, CurvePoint]]:
        """Return severity and point along the curve of one kind, from 0 on if the run was scored unperturbed."""
        begin = [(0.0, self.unperturbed)] if self.unperturbed is not None else []
        return begin + [
            (p.perturbation.severity, p) for p in self.points if p.perturbation and p.perturbation.kind == kind
        ]


def robustness(runs: Sequence[Run], clusters: Mapping[str, str] | None) -> Addition | None:
    """Show how perturbations change the measures of all runs that were scored on derived datasets.

    Parameters
    ----------
    runs : sequence of Run
    clusters : Mapping or None
        Key of an image -> its cluster, as in ``write_report``.

    Returns
    -------
    Addition or None
        A section for each dataset and protocol; None if no run was scored on a derived dataset.
    """
    found = robustness_curves(runs, clusters)
    if not found:
        return None
    sections = [_section(protocol, curves) for protocol, curves in found.items()]
    content = [
        {
            **dict(zip(("dataset", "split", "transform", "select"), protocol, strict=True)),
            "runs": [
                {"run": one.run.name, "points": [_point_content(point) for point in one.points]} for one in curves
            ],
        }
        for protocol, curves in found.items()
    ]
    return Addition("robustness", sections, content)


def unperturbed(run: Run) -> Run:
    """Return the run without its evaluations on derived datasets, which are only points of curves."""
    return dataclasses.replace(run, evaluations=tuple(one for one in run.evaluations if not one.info.get("origin")))


def robustness_curves(runs: Sequence[Run], clusters: Mapping[str, str] | None) -> dict[Protocol, list[RunCurves]]:
    """Collect the curves of all runs by dataset and protocol.

    If a run was scored twice on a perturbation, the first evaluation counts.

    Raises
    ------
    UserError
        If an evaluation does not say which dataset was perturbed, or how.
    """
    found: dict[Protocol, list[RunCurves]] = {}
    for run in runs:
        protocols: dict[Protocol, dict[str, tuple[PerturbationLabel, Evaluation]]] = {}
        for one in run.evaluations:
            if one.info.get("origin"):
                perturbation = _perturbation(run, one)
                protocols.setdefault(_protocol(one), {}).setdefault(perturbation.text, (perturbation, one))
        for protocol, perturbed in protocols.items():
            evaluations = [evaluation for _, evaluation in perturbed.values()]
            plain = _same_images_unperturbed(run, protocol, evaluations[0])
            results = _measured(run, [*evaluations, *([plain] if plain else [])], clusters)
            before = results[plain.name] if plain else None
            points = [
                CurvePoint(p, results[e.name], before if plain and e.same_images(plain) else None)
                for p, e in perturbed.values()
            ]
            points.sort(key=lambda point: severity_order(point.perturbation))
            start = [CurvePoint(None, before, None)] if before is not None else []
            found.setdefault(protocol, []).append(RunCurves(run, (*start, *points)))
    return found


def _perturbation(run: Run, evaluation: Evaluation) -> PerturbationLabel:
    where = f"{run.name}, evaluation {evaluation.name}"
    origin = evaluation.info["origin"]
    if not isinstance(origin, Mapping) or not isinstance(origin.get("dataset"), str):
        raise UserError(
            f"{where}: does not name the dataset that was perturbed. Delete the evaluation's folder and evaluate again"
        )
    return PerturbationLabel.read(origin.get("perturbation"), where)


def _protocol(evaluation: Evaluation) -> Protocol:
    _, _, split, transform, select = evaluation.setting
    return str(evaluation.info["origin"]["dataset"]), split, transform, select


def _same_images_unperturbed(run: Run, protocol: Protocol, perturbed: Evaluation) -> Evaluation | None:
    for one in run.evaluations:
        dataset, _, *rest = one.setting
        if not one.info.get("origin") and (dataset, *rest) == protocol and one.same_images(perturbed):
            return one
    return None


def _measured(
    run: Run, evaluations: Sequence[Evaluation], clusters: Mapping[str, str] | None
) -> dict[str, MeasuredEvaluation]:
    """Measure some evaluations of a run; return the results by the evaluations' names."""
    settings = measure([dataclasses.replace(run, evaluations=tuple(evaluations))], clusters)
    return {result.evaluation.name: result for results in settings.values() for result in results}


def severity_order(perturbation: PerturbationLabel | None) -> tuple[int, str, float]:
    """Return the sort key of a perturbation: by kind in the order of ``KINDS``, then by severity; None comes first."""
    if perturbation is None:
        return -1, "", 0.0
    kinds = list(KINDS)
    position = kinds.index(perturbation.kind) if perturbation.kind in kinds else len(kinds)
    return position, perturbation.kind, perturbation.severity


def _section(protocol: Protocol, curves: Sequence[RunCurves]) -> Section:
    dataset, *rest = protocol
    title = f"{dataset}, {protocol_title(*rest)}"
    lacking = [one.run for one in curves if one.unperturbed is None]
    text = (
        f"The images of {dataset} were perturbed, and all features that the detectors use were computed from the "
        "perturbed images."
    )
    if lacking:
        first = command_line("evaluate", shown_path(lacking[0].folder), "--dataset", dataset, "--split", rest[0])
        each = " for each of them, such as" if len(lacking) > 1 else ""
        names = ", ".join(run.name for run in lacking)
        text += (
            f"\n\n{names}: no evaluation on the same images unperturbed, so the changes are unknown. Run{each}: {first}"
        )
    return Section(f"Robustness: {title}", text, _table(title, curves), _figures(title, curves))


def _table(title: str, curves: Sequence[RunCurves]) -> Table:
    """Rows are perturbations, columns are runs; cells hold accuracy / AP, then their intervals or changes."""
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
    """Draw one figure per measure with one panel per kind; the panels of a figure share their scale."""
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
    """Draw one kind and measure, one line per run; None if the measure is undefined everywhere."""
    ticks: dict[float, str] = {}
    lines, descriptions = [], []
    for series, one in enumerate(curves):
        along = [(x, value, point) for x, point in one.of(kind) if (value := point.value(name)) is not None]
        if any(point.perturbation for _, _, point in along):
            ticks |= {x: point.perturbation.number if point.perturbation else NONE for x, _, point in along}
            lines.append(Curve(series, [x for x, _, _ in along], [100 * value for _, value, _ in along]))
            descriptions.append(f"{one.run.name} goes from {percent(along[0][1])} to {percent(along[-1][1])} %")
    if not lines:
        return None
    title, number = KINDS.get(kind, (kind, "strength"))
    y_label = f"{MEASURES[name]} in percent"
    return line_panel(
        title,
        f"{MEASURES[name]}: {'; '.join(descriptions)}",
        lines,
        number,
        y_label,
        dict(sorted(ticks.items())),
        y_range,
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
