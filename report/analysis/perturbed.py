"""Evaluations on perturbed images as points of curves: which belong together, and what changed against the unperturbed.

A derived dataset holds the images of another one, perturbed; its evaluations name it and the perturbation (``origin`` in
evaluation.json). The evaluations of a run on D and on what was derived from D make a curve for each kind of perturbation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import UserError
from ...metrics.bootstrap import interval
from ...metrics.measures import Interval
from ...metrics.per_generator import mean_over_generators, mean_replicates
from ..inputs.measured import MeasuredEvaluation, measure
from ..inputs.runs import Evaluation, Run

KINDS = {
    "jpeg": ("JPEG", "quality"),
    "resize": ("Resized down and up again", "share of the side"),
    "blur": ("Gaussian blur", "sigma in pixels"),
    "noise": ("Gaussian noise", "sigma in grey levels"),
    "crop": ("Centre crop, enlarged", "share of the side"),
}
"""Each kind in words, and what its number is."""


@dataclass(frozen=True)
class PerturbationLabel:
    """A perturbation as an evaluation names it: ``jpeg:75``.

    severity : grows with the damage, 0 is none: 101 - quality, 1 - share, or sigma.
    """

    text: str
    kind: str
    number: str
    severity: float

    @classmethod
    def read(cls, text: object, where: str) -> PerturbationLabel:
        """Read the text; UserError if it is no perturbation."""
        kind, _, number = str(text).partition(":")
        if not re.fullmatch(r"\d+(\.\d+)?", number, re.ASCII):
            raise UserError(f"{where}: names no perturbation ({text!r}). Delete its folder and evaluate again")
        value = float(number)
        severity = {"jpeg": 101 - value, "resize": 1 - value, "crop": 1 - value}.get(kind, value)
        return cls(str(text), kind, number, round(severity, 6))


@dataclass(frozen=True)
class CurvePoint:
    """A run's result on one perturbation of the images; ``change`` is against the same images unperturbed."""

    perturbation: PerturbationLabel | None
    result: MeasuredEvaluation
    before: MeasuredEvaluation | None

    def value(self, name: str) -> float | None:
        """A measure's mean over generators."""
        return mean_over_generators(self.result.scores, name)

    def change(self, name: str) -> float | None:
        """What the perturbation does to the mean."""
        after, before = self.value(name), mean_over_generators(self.before.scores, name) if self.before else None
        return None if after is None or before is None else after - before

    def change_interval(self, name: str) -> Interval | None:
        """95 % interval of the change: a bootstrap of the images, which are drawn alike before and after."""
        after = mean_replicates(self.result.scores, name)
        before = mean_replicates(self.before.scores, name) if self.before else None
        return None if after is None or before is None else interval(after - before)


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
        """Severity and point along the curve of one kind, from 0 if the run was scored unperturbed."""
        begin = [(0.0, self.unperturbed)] if self.unperturbed is not None else []
        return begin + [
            (p.perturbation.severity, p) for p in self.points if p.perturbation and p.perturbation.kind == kind
        ]


Way = tuple[str, str, str, str]
"""Dataset that was perturbed, split, transform and selection."""


def unperturbed(run: Run) -> Run:
    """The run without its evaluations on derived datasets, which are points of curves and no comparisons of their own."""
    return dataclasses.replace(run, evaluations=tuple(one for one in run.evaluations if not one.info.get("origin")))


def robustness_curves(runs: Sequence[Run], clusters: Mapping[str, str] | None) -> dict[Way, list[RunCurves]]:
    """The curves of all runs, by what was perturbed. A perturbation that a run was scored on twice counts once."""
    found: dict[Way, list[RunCurves]] = {}
    for run in runs:
        ways: dict[Way, dict[str, tuple[PerturbationLabel, Evaluation]]] = {}
        for one in run.evaluations:
            if one.info.get("origin"):
                perturbation = _perturbation(run, one)
                ways.setdefault(_way(one), {}).setdefault(perturbation.text, (perturbation, one))
        for way, perturbed in ways.items():
            evaluations = [evaluation for _, evaluation in perturbed.values()]
            plain = _same_images_unperturbed(run, way, evaluations[0])
            results = _measured(run, [*evaluations, *([plain] if plain else [])], clusters)
            before = results[plain.name] if plain else None
            points = [
                CurvePoint(p, results[e.name], before if plain and e.same_images(plain) else None)
                for p, e in perturbed.values()
            ]
            points.sort(key=lambda point: severity_order(point.perturbation))
            start = [CurvePoint(None, before, None)] if before is not None else []
            found.setdefault(way, []).append(RunCurves(run, (*start, *points)))
    return found


def _perturbation(run: Run, evaluation: Evaluation) -> PerturbationLabel:
    where = f"{run.name}, evaluation {evaluation.name}"
    origin = evaluation.info["origin"]
    if not isinstance(origin, Mapping) or not isinstance(origin.get("dataset"), str):
        raise UserError(f"{where}: names no dataset that was perturbed. Delete its folder and evaluate again")
    return PerturbationLabel.read(origin.get("perturbation"), where)


def _way(evaluation: Evaluation) -> Way:
    _, _, split, transform, select = evaluation.setting
    return str(evaluation.info["origin"]["dataset"]), split, transform, select


def _same_images_unperturbed(run: Run, way: Way, perturbed: Evaluation) -> Evaluation | None:
    for one in run.evaluations:
        dataset, _, *rest = one.setting
        if not one.info.get("origin") and (dataset, *rest) == way and one.same_images(perturbed):
            return one
    return None


def _measured(
    run: Run, evaluations: Sequence[Evaluation], clusters: Mapping[str, str] | None
) -> dict[str, MeasuredEvaluation]:
    """Each evaluation's result, by its name."""
    settings = measure([dataclasses.replace(run, evaluations=tuple(evaluations))], clusters)
    return {result.evaluation.name: result for results in settings.values() for result in results}


def severity_order(perturbation: PerturbationLabel | None) -> tuple[int, str, float]:
    """What sorts perturbations by kind, in the order of ``KINDS``, and by severity; none comes first."""
    if perturbation is None:
        return -1, "", 0.0
    kinds = list(KINDS)
    place = kinds.index(perturbation.kind) if perturbation.kind in kinds else len(kinds)
    return place, perturbation.kind, perturbation.severity
