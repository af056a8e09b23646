"""Which figures the report shows of its comparisons, and what they show in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics import test_sets
from .drawing import (
    Curve,
    Figure,
    Spread,
    histogram_panel,
    line_panel,
    pr_panel,
    roc_panel,
    spread_panel,
)
from .runs import Run
from .tables import DireClass, Result, all_generators, generator_title, percent

_TRAINING = (
    ("bce", "Training: cross entropy", "cross entropy"),
    ("kd", "Training: distillation loss", "mean squared error"),
    ("val_bce", "Validation: cross entropy", "cross entropy"),
    ("val_ap", "Validation: AP", "AP"),
)


def training_figure(runs: Sequence[Run]) -> Figure | None:
    """Losses and validation AP by epoch, a line a run; ``None`` if no run kept its metrics."""
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
    return Figure("Training curves, a line for each run.", tuple(panels), tuple(run.name for run in runs))


def curve_figures(title: str, results: Sequence[Result]) -> list[Figure]:
    """ROC and precision-recall curves, a panel a generator, a line a run."""
    roc, pr = [], []
    for generator in all_generators(results):
        scored = {}
        for series, result in enumerate(results):
            scores = result.scores.get(generator)
            if scores is None or not scores.real or not scores.fake:
                continue
            one = result.evaluation
            rows = test_sets(one.labels, one.generators, one.groups)[generator]
            scored[series] = (one.labels[rows], one.scores[rows])
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
        Figure(f"ROC by test generator: {title}. The diagonal is guessing.", tuple(roc), legend),
        Figure(f"Precision and recall by test generator: {title}. The level line is guessing.", tuple(pr), legend),
    ]


def histogram_figure(title: str, results: Sequence[Result]) -> Figure:
    """Scores of reals and of each generator's fakes, a panel a run."""
    generators = all_generators(results)
    panels = []
    for result in results:
        one = result.evaluation
        groups = {0: one.scores[one.labels == 0]}
        for series, name in enumerate(generators, 1):
            groups[series] = one.scores[(one.labels == 1) & (one.generators == name)]
        shown = {series: values for series, values in groups.items() if len(values)}
        names = ["reals", *map(generator_title, generators)]
        words = "; ".join(f"median score of {names[series]} {np.median(v):.2f}" for series, v in shown.items())
        panels.append(histogram_panel(result.run.name, words, shown))
    return Figure(
        f"Scores of real and generated images: {title}. The upright line is the threshold.",
        tuple(panels),
        ("real", *map(generator_title, generators)),
    )


def dire_figure(title: str, classes: Sequence[DireClass]) -> Figure:
    """Mean DIRE of each class."""
    rows = [Spread(one.title, one.values, one.interval, min(one.label, 1)) for one in classes]
    words = "; ".join(f"{one.title} {one.mean:.4f}" for one in classes)
    panel = spread_panel("Mean DIRE", words, rows, "mean DIRE (0 to 1)")
    caption = (
        f"Mean DIRE of each image by class: {title}. Line: 5th to 95th percentile; box: middle half; dot and bar: "
        "mean and its 95 % interval."
    )
    return Figure(caption, (panel,), ("real", "generated"))


def _number(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
