"""The report's figures: which panels each has, with captions and text alternatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...metrics.calibration import FEWEST, Bin, reliability
from ...metrics.measures import CALIBRATION_BINS, Array, test_sets
from ..differences import DireClass
from ..inputs.measured import MeasuredEvaluation, all_generators
from ..inputs.runs import Run
from ..wording import generator_title, percent
from .panels import (
    MAX_WITH_BARS,
    Curve,
    Figure,
    Spread,
    histogram_panel,
    line_panel,
    pr_panel,
    reliability_panel,
    roc_panel,
    spread_panel,
)

_TRAINING = (
    ("bce", "Training: cross entropy", "cross entropy"),
    ("kd", "Training: distillation loss", "mean squared error"),
    ("val_bce", "Validation: cross entropy", "cross entropy"),
    ("val_ap", "Validation: AP", "AP"),
)


def training_figure(runs: Sequence[Run]) -> Figure | None:
    """Plot losses and validation AP by epoch, one line per run; None if no run has metrics."""
    panels = []
    for name, title, y_label in _TRAINING:
        curves, ends = [], []
        for series, run in enumerate(runs):
            points = [(float(e["epoch"]), _number(e, name)) for e in run.history if "epoch" in e]
            points = [(epoch, value) for epoch, value in points if value is not None]
            if not points:
                continue
            curves.append(Curve(series, [epoch for epoch, _ in points], [float(value or 0.0) for _, value in points]))
            ends.append(f"{run.name} ends at {points[-1][1]:.3f}")
        if curves:
            panels.append(line_panel(title, "; ".join(ends), curves, "epoch", y_label))
    if not panels:
        return None
    return Figure("Training curves, one line per run.", tuple(panels), tuple(run.name for run in runs))


def comparison_figures(title: str, results: Sequence[MeasuredEvaluation], classes: Sequence[DireClass]) -> list[Figure]:
    """Return all figures of one evaluation setting, in the order of the page."""
    found = [*curve_figures(title, results), *reliability_figures(title, results), histogram_figure(title, results)]
    return [*found, dire_figure(title, classes)] if classes else found


def curve_figures(title: str, results: Sequence[MeasuredEvaluation]) -> list[Figure]:
    """Plot ROC and precision-recall curves, one panel per generator, one line per run."""
    roc, pr = [], []
    for generator in all_generators(results):
        scored = _scored(results, generator)
        if not scored:
            continue
        name = generator_title(generator)
        found = {series: results[series].scores[generator] for series in scored}
        areas = "; ".join(f"{results[series].run.name} has AUC {percent(s.auc)} %" for series, s in found.items())
        aps = "; ".join(
            f"{results[series].run.name} has AP {percent(s.average_precision)} %" for series, s in found.items()
        )
        roc.append(roc_panel(name, areas, scored))
        pr.append(pr_panel(name, aps, scored))
    if not roc:
        return []
    legend = tuple(result.run.name for result in results)
    return [
        Figure(f"ROC by test generator: {title}. The diagonal is chance.", tuple(roc), legend),
        Figure(f"Precision and recall by test generator: {title}. The horizontal line is chance.", tuple(pr), legend),
    ]


def reliability_figures(title: str, results: Sequence[MeasuredEvaluation]) -> list[Figure]:
    """Plot reliability diagrams, one panel per generator, one line per run."""
    panels = []
    for generator in all_generators(results):
        scored = _scored(results, generator)
        if scored:
            binned = {series: reliability(labels, scores) for series, (labels, scores) in scored.items()}
            binned = {series: bins for series, bins in binned.items() if bins}
            alt = "; ".join(f"{results[series].run.name}: {_ends(bins)}" for series, bins in binned.items())
            panels.append(reliability_panel(generator_title(generator), alt, binned))
    if not panels:
        return []
    caption = (
        f"Reliability by test generator: {title}. Scores in {CALIBRATION_BINS} bins of equal width; bins of fewer than {FEWEST} "
        "images are left out. On the diagonal, scores are probabilities; below it, fewer images are generated than the scores say, "
        "above it more. "
        f"Larger dots hold more images{', vertical bars are 95 % intervals' if len(results) <= MAX_WITH_BARS else ''}."
    )
    return [Figure(caption, tuple(panels), tuple(result.run.name for result in results))]


def histogram_figure(title: str, results: Sequence[MeasuredEvaluation]) -> Figure:
    """Plot histograms of the scores of real images and of each generator's, one panel per run."""
    generators = all_generators(results)
    panels = []
    for result in results:
        one = result.evaluation
        groups = {0: one.scores[one.labels == 0]}
        for series, name in enumerate(generators, 1):
            groups[series] = one.scores[(one.labels == 1) & (one.generators == name)]
        shown = {series: values for series, values in groups.items() if len(values)}
        names = ["reals", *map(generator_title, generators)]
        alt = "; ".join(f"median score of {names[series]} {np.median(v):.2f}" for series, v in shown.items())
        threshold = result.run.threshold(one)
        alt += "" if threshold is None else f"; validated threshold {threshold:.2f}"
        panels.append(histogram_panel(result.run.name, alt, shown, threshold))
    return Figure(
        f"Scores of real and generated images: {title}. Vertical lines are thresholds: 0.5, and dashed the "
        "one chosen on validation, if there is one.",
        tuple(panels),
        ("real", *map(generator_title, generators)),
    )


def dire_figure(title: str, classes: Sequence[DireClass]) -> Figure:
    """Plot the distribution of mean DIRE in each class."""
    rows = [Spread(one.title, one.values, one.interval, min(one.label, 1)) for one in classes]
    alt = "; ".join(f"{one.title} {one.mean:.4f}" for one in classes)
    panel = spread_panel("Mean DIRE", alt, rows, "mean DIRE (0 to 1)")
    caption = (
        f"Mean DIRE of each image by class: {title}. Line: 5th to 95th percentile; box: quartiles; dot and bar: "
        "mean and its 95 % interval."
    )
    return Figure(caption, (panel,), ("real", "generated"))


def _scored(results: Sequence[MeasuredEvaluation], generator: str) -> dict[int, tuple[Array, Array]]:
    """Return labels and scores of a generator's test set by the run's index; sets of a single class are left out."""
    found = {}
    for series, result in enumerate(results):
        scores = result.scores.get(generator)
        if scores is None or not scores.real or not scores.fake:
            continue
        one = result.evaluation
        rows = test_sets(one.labels, one.generators, one.groups)[generator]
        found[series] = (one.labels[rows], one.scores[rows])
    return found


def _ends(bins: Sequence[Bin]) -> str:
    """Describe the lowest and the highest bin."""
    ends = [f"{100 * one.share:.0f} % generated where the mean score is {one.mean_score:.2f}" for one in bins]
    return ends[0] if len(ends) == 1 else f"{ends[0]}, {ends[-1]}"


def _number(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
