"""Every evaluation of every run, measured: what all tables and figures of the report are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...metrics.measures import Array
from ...metrics.per_generator import GeneratorScores, per_generator
from .runs import Evaluation, Run

Setting = tuple[str, ...]
"""Dataset, revision, split, transform and selection."""


@dataclass(frozen=True)
class MeasuredEvaluation:
    """One evaluation of one run, measured: a ``GeneratorScores`` for each generator."""

    run: Run
    evaluation: Evaluation
    scores: Mapping[str, GeneratorScores]


def measure(runs: Iterable[Run], clusters: Mapping[str, str] | None) -> dict[Setting, list[MeasuredEvaluation]]:
    """All evaluations of all runs, measured, by their setting; ``clusters`` names what each key is resampled with."""
    found: dict[Setting, list[MeasuredEvaluation]] = {}
    for run in runs:
        for one in run.evaluations:
            scores = per_generator(
                one.labels,
                one.scores,
                one.generators,
                one.groups,
                families=one.families,
                clusters=cluster_names(one.keys, clusters),
                calibrated_threshold=run.threshold(one),
            )
            found.setdefault(one.setting, []).append(MeasuredEvaluation(run, one, scores))
    return found


def cluster_names(keys: Array, clusters: Mapping[str, str] | None) -> Array:
    """What each image is resampled with: its cluster where it has one, else itself (a repeated image is one)."""
    return keys if clusters is None else np.asarray([clusters.get(key, key) for key in keys.tolist()], dtype=str)


def all_generators(results: Iterable[MeasuredEvaluation]) -> list[str]:
    """Names of all test generators, sorted."""
    return sorted({generator for result in results for generator in result.scores})


def all_families(results: Iterable[MeasuredEvaluation]) -> list[str]:
    """Families of the test generators that count in means, sorted."""
    return sorted({scores.family for result in results for scores in result.scores.values() if scores.complete})
