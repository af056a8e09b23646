"""The content check: how far can the classes be told apart by what the images show?

A detector that reaches an accuracy may owe it to the subjects of the images, if real and generated ones show other
things. The check trains a linear classifier on a frozen embedding (:mod:`.embedding`) and tests it on what it was not
trained on: on each generator in turn where there are several, so that no generator's own traces help, else on groups of
the sources, else on images. Near duplicates are never on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...metrics.bootstrap import bootstrap, interval
from ...metrics.measures import auc
from ..sources.file import SourceFile
from .checks import AuditRow
from .classify import FOLDS, MIN_IMAGES, REPLICATES
from .embedding import embed

CONTENT_SAMPLE = 400
"""Largest number of images of each class that are drawn."""

_ALPHAS = 10.0 ** np.arange(0, 7)
"""Strengths of the penalty among which the training images choose."""

_Ints = NDArray[np.int64]


class _Fold(NamedTuple):
    held_out: str
    training: _Ints
    test: _Ints


def check_content(rows: Sequence[AuditRow]) -> dict[str, Any]:
    """Measure how well a linear classifier tells the classes by what the images show.

    Parameters
    ----------
    rows
        At most CONTENT_SAMPLE images of each class, all with their square.

    Returns
    -------
    dict
        The fields of :class:`....cache.records.image_audit.ContentCheck`.
    """
    files, groups = [row.file for row in rows], [row.group for row in rows]
    labels = np.array([file.label for file in files], np.int64)
    result: dict[str, Any] = {
        "embedding": "",
        "real": int(np.sum(labels == 0)),
        "fake": int(np.sum(labels == 1)),
        "across": "",
        "auc": None,
        "interval": None,
        "folds": [],
    }
    across, folds = _folds(files, labels, np.asarray(groups, np.int64))
    if not folds:
        reason = f"fewer than {MIN_IMAGES} images of a class that do not look alike"
        return {**result, "reason": reason, "sentence": f"Subject matter was not examined: {reason}."}
    embedding = embed([row.square for row in rows if row.square is not None])
    scores = np.zeros((len(folds), len(files)))
    for number, fold in enumerate(folds):
        scores[number, fold.test] = _scores(embedding.rows, labels, fold)
    areas = [auc(labels[fold.test], scores[number, fold.test]) for number, fold in enumerate(folds)]
    mean = float(np.mean([area for area in areas if area is not None]))
    within = _interval(labels, scores, folds, groups)
    return {
        **result,
        "embedding": embedding.name,
        "across": across,
        "auc": mean,
        "interval": within,
        "folds": [
            {
                "held_out": fold.held_out,
                "real": int(np.sum(labels[fold.test] == 0)),
                "fake": int(np.sum(labels[fold.test] == 1)),
                "auc": area,
            }
            for fold, area in zip(folds, areas, strict=True)
        ],
        "reason": "",
        "sentence": _sentence(embedding.name, across, len(folds), mean, within, len(files)),
    }


def _sentence(
    embedding: str, across: str, folds: int, area: float, within: tuple[float, float] | None, images: int
) -> str:
    held = {
        "generators": f"each of {folds} generators in turn, of which it had seen no image",
        "groups": f"{folds} parts that share no group of the sources",
        "images": f"{folds} parts that share no near duplicates",
    }[across]
    bounds = "" if within is None else f" ({within[0]:.2f} to {within[1]:.2f})"
    tells = "A detector can reach as much by subject, colours and style alone."
    if within is not None and within[0] <= 0.5 <= within[1]:
        tells = "That is chance: what this classifier sees of subject, colours and style does not tell the classes."
    return (
        f"Subject matter: a linear classifier of {embedding} reaches an AUC of {area:.2f}{bounds} on {held}; "
        f"{images:,} images were drawn. {tells}"
    )


def _folds(files: Sequence[SourceFile], labels: _Ints, groups: _Ints) -> tuple[str, list[_Fold]]:
    """Return what is held out in turn, and the folds; none with too few images of a class."""
    if min(len(set(groups[labels == label].tolist())) for label in (0, 1)) < MIN_IMAGES:
        return "", []
    generators = list(_generator_folds(files, labels, groups))
    if len(generators) > 1:
        return "generators", generators
    by_group = _source_groups(files, labels)
    across, members = ("images", groups) if by_group is None else ("groups", by_group)
    return across, list(_group_folds(labels, members, groups))


def _generator_folds(files: Sequence[SourceFile], labels: _Ints, groups: _Ints) -> Iterator[_Fold]:
    """Yield a fold for each generator with enough images: its fakes, and its reals or else a share of the others."""
    names = np.array([file.generator for file in files])
    counts = Counter(names[labels == 1].tolist())
    large = sorted(name for name, count in counts.items() if count >= MIN_IMAGES)
    own = {name: np.flatnonzero((labels == 0) & (names == name)) for name in large}
    shared = np.flatnonzero((labels == 0) & ~np.isin(names, [name for name in large if len(own[name])]))
    turn = np.unique(groups[shared], return_inverse=True)[1] % max(1, len(large))
    for number, name in enumerate(large):
        reals = own[name] if len(own[name]) else shared[turn == number]
        test = np.concatenate([np.flatnonzero((labels == 1) & (names == name)), reals])
        training = np.flatnonzero(~np.isin(groups, groups[test]) & (names != name))
        if min(np.sum(labels[test] == 0), *(np.sum(labels[training] == label) for label in (0, 1))) >= MIN_IMAGES:
            yield _Fold(name, training, np.sort(test))


def _source_groups(files: Sequence[SourceFile], labels: _Ints) -> _Ints | None:
    """Return the number of each file's source group; None unless each class is in as many groups as there are folds."""
    numbers = np.unique([file.group for file in files], return_inverse=True)[1].astype(np.int64)
    fewest = min(len(set(numbers[labels == label].tolist())) for label in (0, 1))
    return numbers if fewest >= FOLDS else None


def _group_folds(labels: _Ints, members: _Ints, groups: _Ints) -> Iterator[_Fold]:
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for number, (training, test) in enumerate(splitter.split(labels, labels, groups=members), 1):
        apart = training[~np.isin(groups[training], groups[test])]
        if all(len(set(labels[part].tolist())) == 2 for part in (apart, test)):
            yield _Fold(f"part {number}", apart, test)


def _scores(rows: NDArray[np.float64], labels: _Ints, fold: _Fold) -> NDArray[np.float64]:
    """Return the scores of a fold's test images by a ridge classifier that the others have trained."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeClassifierCV(_ALPHAS, class_weight="balanced"))
    model.fit(rows[fold.training], labels[fold.training])
    return np.asarray(model.decision_function(rows[fold.test]))


def _interval(
    labels: _Ints, scores: NDArray[np.float64], folds: Sequence[_Fold], groups: Sequence[int]
) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean AUC.

    Groups of near duplicates in the test images are resampled, and the interval is widened for the overlap of the
    training images of different folds (Nadeau and Bengio 2003, "Inference for the Generalization Error").
    """
    clusters = np.unique(np.asarray(groups), return_inverse=True)[1]
    drawn = [
        bootstrap(labels, own, {"test": fold.test}, clusters, replicates=REPLICATES)["test"]["auc"]
        for own, fold in zip(scores, folds, strict=True)
    ]
    middle = np.mean(drawn, axis=0)
    found = interval(middle)
    if found is None:
        return None
    overlap = np.mean([len(fold.test) / len(fold.training) for fold in folds])
    wider, centre = float(np.sqrt(1 + len(folds) * overlap)), float(np.nanmedian(middle))
    return max(0.0, centre - wider * (centre - found.low)), min(1.0, centre + wider * (found.high - centre))
