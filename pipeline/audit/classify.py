"""Whether some features tell real from generated: a cross-validated forest, its AUC with an interval, and what carries it.

A forest of small trees asks what any shortcut learner could ask: is it this format, is the width 256, is the quality
between 90 and 95. Near and exact duplicates stay in one fold. The interval is a percentile bootstrap over the groups of
duplicates, of the scores that every image got from a forest that had not seen it.
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
"""Images of each class, and groups of them, below which nothing is concluded."""

FOLDS = 5
REPLICATES = 2000

_TREES = 50
_LEAF = 5  # images in a leaf: one odd file makes no rule
_MOST_WORDS = 12  # values of a word feature that get a column of their own


@dataclass(frozen=True)
class Separability:
    """What a forest makes of some features.

    auc : of its out-of-fold scores. interval : of the AUC, at ``level``. alone : for each feature, the cross-validated
    AUC of a small tree that sees nothing else, highest first.
    """

    auc: float
    interval: tuple[float, float]
    level: float
    alone: tuple[tuple[str, float], ...]


def measure_separability(
    features: Sequence[Mapping[str, FeatureValue]], labels: Sequence[int], groups: Sequence[int], level: float = 0.95
) -> Separability | None:
    """Say how well the features tell the labels (0 real, 1 generated).

    features : one mapping an image, all with the same names; None is a value of its own. groups : images of one group
    are kept together. level : of the interval.
    None if there are fewer than MIN_IMAGES images or groups of a class.
    """
    truth, members = np.asarray(labels), np.unique(np.asarray(groups), return_inverse=True)[1]
    if min(len(set(members[truth == label].tolist())) for label in (0, 1)) < MIN_IMAGES:
        return None
    values = {name: [row[name] for row in features] for name in features[0]}
    columns = {name: _encoded(column) for name, column in values.items() if len(set(column)) > 1}
    if not columns:
        return Separability(0.5, (0.5, 0.5), level, ())
    from sklearn.ensemble import (
        RandomForestClassifier,  # a second to import, and most builds have nothing to measure_separability
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
    """Return a feature as (N, columns): a number as itself with NaN for None, a word as one column a common value."""
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([[np.nan if value is None else float(value)] for value in values])
    common = [value for value, _ in Counter(values).most_common(_MOST_WORDS)]
    return np.array([[float(value == known) for known in common] for value in values])


def _out_of_fold(
    model: RandomForestClassifier | DecisionTreeClassifier,
    values: _Floats,
    truth: _Ints,
    folds: list[tuple[_Ints, _Ints]],
) -> _Floats:
    scores = np.zeros(len(truth))
    for seen, unseen in folds:
        scores[unseen] = model.fit(values[seen], truth[seen]).predict_proba(values[unseen])[:, 1]
    return scores
