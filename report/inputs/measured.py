"""The measures of every evaluation, from which all tables and figures of the report are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...metrics.clusters import IMAGE, Clusters, choose_clusters
from ...metrics.measures import Array
from ...metrics.per_generator import GeneratorScores, per_generator
from .runs import Evaluation, Run

Setting = tuple[str, ...]
"""Dataset, revision, split, transform and selection."""


@dataclass(frozen=True)
class MeasuredEvaluation:
    """One evaluation of one run, with its measures by generator."""

    run: Run
    evaluation: Evaluation
    scores: Mapping[str, GeneratorScores]


def measure(runs: Iterable[Run], clusters: Mapping[str, str] | None) -> dict[Setting, list[MeasuredEvaluation]]:
    """Measure all evaluations of all runs.

    Parameters
    ----------
    runs : iterable of Run
    clusters : Mapping or None
        Key of an image -> its cluster, the unit of the bootstrap; None resamples images.

    Returns
    -------
    dict
        Setting -> results, in the order of the runs.
    """
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
    """Return the cluster of each key, (N,) str; without one it is the key itself, which keeps copies together."""
    return keys if clusters is None else np.asarray([clusters.get(key, key) for key in keys.tolist()], dtype=str)


def clusters_of(runs: Iterable[Run], choice: str) -> tuple[dict[str, str] | None, dict[Setting, Clusters]]:
    """Choose the clusters of the images of all evaluations by a column.

    Parameters
    ----------
    runs : iterable of Run
    choice : str
        One of ``choices.CLUSTER_COLUMNS``.

    Returns
    -------
    dict or None
        Key of an image -> its cluster; None if images are drawn in all settings.
    dict
        What each setting draws.

    Raises
    ------
    UsageError
        If the column does not divide the images of a setting.
    """
    found: dict[str, str] = {}
    by_setting: dict[Setting, Clusters] = {}
    for run in runs:
        for one in run.evaluations:
            columns = {"group": one.groups, "generator": one.generators, "family": one.families}
            chosen = choose_clusters(choice, one.keys, one.labels, columns)
            by_setting.setdefault(one.setting, chosen)
            if chosen.column != IMAGE:
                for key, name in zip(one.keys.tolist(), chosen.names.tolist(), strict=True):
                    found.setdefault(key, f"{one.setting[0]}: {name}")
    return found or None, by_setting


def all_generators(results: Iterable[MeasuredEvaluation]) -> list[str]:
    """Return the names of all test generators, sorted."""
    return sorted({generator for result in results for generator in result.scores})


def all_families(results: Iterable[MeasuredEvaluation]) -> list[str]:
    """Return the families of the test generators that enter means, sorted."""
    return sorted({scores.family for result in results for scores in result.scores.values() if scores.complete})
