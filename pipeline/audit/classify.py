"""Measure how well features separate real from generated images: the cross-validated AUC of a random forest.

A forest of small trees can ask what any shortcut learner could: is it this format, is the width 256, is the quality
between 90 and 95. Near and exact duplicates stay in one fold. The interval is a percentile bootstrap of the out-of-fold
scores over the groups of duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...metrics.bootstrap import bootstrap, interval
from ...metrics.measures import auc
from .header_features import FeatureValue

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

MIN_IMAGES = 20
"""Smallest number of images, and of groups of them, in each class for a result."""

FOLDS = 5
REPLICATES = 2000

_TREES = 50
_LEAF = 5  # images in a leaf: a single odd file makes no rule
_MOST_CATEGORIES = 12  # categories of a feature with a column of their own


@dataclass(frozen=True)
class Separability:
    """How well features separate the classes.

    Attributes
    ----------
    auc
        AUC of the out-of-fold scores.
    interval
        Confidence interval of the AUC at ``level``.
    level
        Confidence level.
    alone
        (feature, cross-validated AUC of a small tree on this feature alone), highest first.
    """

    auc: float
    interval: tuple[float, float]
    level: float
    alone: tuple[tuple[str, float], ...]


def measure_separability(
    features: Sequence[Mapping[str, FeatureValue]], labels: Sequence[int], groups: Sequence[int], level: float = 0.95
) -> Separability | None:
    """Measure how well features separate the labels.

    Parameters
    ----------
    features
        One mapping per image, all with the same names. None is a value of its own.
    labels
        0 real, 1 generated.
    groups
        Images of one group stay in one fold.
    level
        Confidence level of the interval.

    Returns
    -------
    Separability or None
        None if a class has fewer than MIN_IMAGES groups.
    """
    truth, members = np.asarray(labels), np.unique(np.asarray(groups), return_inverse=True)[1]
    if min(len(set(members[truth == label].tolist())) for label in (0, 1)) < MIN_IMAGES:
        return None
    values = {name: [row[name] for row in features] for name in features[0]}
    columns = {name: _encoded(column) for name, column in values.items() if len(set(column)) > 1}
    if not columns:
        return Separability(0.5, (0.5, 0.5), level, ())
    from sklearn.ensemble import (
        RandomForestClassifier,  # takes a second to import, and most builds audit nothing
    )
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.tree import DecisionTreeClassifier

    folds = list(
        StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(np.zeros(len(truth)), truth, groups=members)
    )
    forest = RandomForestClassifier(
        _TREES, min_samples_leaf=_LEAF, class_weight="balanced", max_features="sqrt", random_state=0
    )
    scores = _out_of_fold(forest, np.hstack(list(columns.values())), truth, folds)
    tree = DecisionTreeClassifier(max_leaf_nodes=8, min_samples_leaf=_LEAF, class_weight="balanced", random_state=0)
    alone = {name: _area(truth, _out_of_fold(tree, values, truth, folds)) for name, values in columns.items()}
    drawn = bootstrap(truth, scores, {"all": np.arange(len(truth))}, members, replicates=REPLICATES)["all"]
    middle = interval(drawn["auc"], level)
    assert middle is not None  # there are at least MIN_IMAGES groups of each class
    return Separability(_area(truth, scores), middle, level, tuple(sorted(alone.items(), key=lambda item: -item[1])))


def _area(truth: _Ints, scores: _Floats) -> float:
    area = auc(truth, scores)
    assert area is not None  # there are images of both classes
    return area


def _encoded(values: Sequence[FeatureValue]) -> _Floats:
    """Encode a feature as (N, columns): numbers as they are, with NaN for None; one column per common category."""
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([[np.nan if value is None else float(value)] for value in values])
    common = [value for value, _ in Counter(values).most_common(_MOST_CATEGORIES)]
    return np.array([[float(value == known) for known in common] for value in values])


def _out_of_fold(
    model: RandomForestClassifier | DecisionTreeClassifier,
    values: _Floats,
    truth: _Ints,
    folds: list[tuple[_Ints, _Ints]],
) -> _Floats:
    scores = np.zeros(len(truth))
    for training, held_out in folds:
        scores[held_out] = model.fit(values[training], truth[training]).predict_proba(values[held_out])[:, 1]
    return scores
