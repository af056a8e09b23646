"""What an evaluation says to a person: accuracy at 0.5 and at the validated threshold, and AP, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...metrics.calibration import Calibration
from ...metrics.clusters import AUTO, COLUMNS, choose_clusters
from ...metrics.measures import test_sets
from ...metrics.per_generator import GeneratorScores, score_sets
from ..data.select import column
from ..runs.forms import read_scores

WHOLE = "all"
"""Name of the row of all images together."""
_MEASURES = {"at_half": "accuracy", "at_threshold": "calibrated_accuracy", "ap": "average_precision"}


def summarise(
    info: Mapping[str, Any], scores: Path, calibration: Calibration | None, cluster: str = AUTO
) -> dict[str, Any]:
    """Measure an evaluation per generator and over all images.

    Parameters
    ----------
    info
        The content of ``evaluation.json``.
    scores
        The ``scores.parquet`` beside it.
    calibration
        The threshold of the run's best student, if it has one.
    cluster
        What the bootstrap draws, of ``choices.CLUSTER_COLUMNS``.

    Returns
    -------
    dict
        ``threshold``, the one that validation chose for this student, or None; ``validated_on``, the images that chose
        it, in words; ``rows``, one per generator and one for all images, with ``at_half``, ``at_threshold`` and ``ap``,
        each [value, low, high] or None; ``clusters``, with the ``column`` and the ``number`` of clusters that intervals
        draw, and the ``note`` on them, or an empty one.

    Raises
    ------
    UserError
        The scores are damaged.
    UsageError
        The clusters cannot be chosen so.
    """
    table = read_scores(scores)
    labels, values = column(table, "label"), table["score"].to_numpy()
    if calibration is not None and calibration.checkpoint_sha256 != info["checkpoint"]["sha256"]:
        calibration = None
    threshold = calibration.threshold if calibration else None
    sets = dict(test_sets(labels, column(table, "generator"), column(table, "group")))
    if len(sets) != 1:
        sets[WHOLE] = np.arange(len(labels))
    columns = {name: column(table, name) for name in COLUMNS}
    clusters = choose_clusters(cluster, column(table, "key"), labels, columns)
    measured = score_sets(labels, values, sets, clusters=clusters.names, calibrated_threshold=threshold)
    rows = []
    for name, found in measured.items():
        cells = {cell: _cell(found, measure) for cell, measure in _MEASURES.items()}
        rows.append({"generator": name, "real": found.real, "fake": found.fake, **cells})
    drawn = {"column": clusters.column, "number": clusters.number, "note": clusters.sentence}
    chosen = calibration.origin if calibration else None
    return {"threshold": threshold, "validated_on": chosen, "rows": rows, "clusters": drawn}


def _cell(scores: GeneratorScores, measure: str) -> list[float] | None:
    """Return a value and the ends of its interval, those of the report; None where either is not defined."""
    value, reach = scores.values[measure], scores.interval(measure)
    return None if value is None or reach is None else [value, reach.low, reach.high]
