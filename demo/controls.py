"""The demo's controls: what smoothness, saturation or file metadata alone can detect, and what DIRE adds.

Every score is the probability of generated. Intervals are bootstraps that resample whole scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..cache.gather import gather
from ..cache.store import Cache
from ..metrics.bootstrap import bootstrap_mean
from ..metrics.measures import Interval, auc
from ..metrics.per_generator import GeneratorScores, per_generator
from .recipe import ImageKind, ImageRecord
from .scenes import Pixels

_Floats = NDArray[np.float64]

FOLDS = 5


@dataclass(frozen=True)
class DireMean:
    """Mean DIRE of images, or its differences within pairs, as fractions of the 8-bit range, with the mean's interval."""

    values: _Floats
    interval: Interval

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(self.values.mean())


@dataclass(frozen=True)
class DireStudy:
    """Mean DIRE of the demo's images.

    Attributes
    ----------
    classes : Mapping
        Mean DIRE by kind of image.
    differences : Mapping
        Pair of kinds -> differences within pairs of images.
    auc : Mapping
        Pair of kinds -> AUC of low DIRE as a sign of the first.
    """

    classes: Mapping[ImageKind, DireMean]
    differences: Mapping[tuple[ImageKind, ImageKind], DireMean]
    auc: Mapping[tuple[ImageKind, ImageKind], float]


def read_pixels(folder: Path, records: Sequence[ImageRecord]) -> Pixels:
    """Read the files of some records, (N, 3, 32, 32) uint8."""
    images = []
    for record in records:
        with Image.open(folder / record.path) as image:
            images.append(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
    return np.stack(images)


def image_statistics(pixels: Pixels) -> _Floats:
    """Compute three statistics of each image.

    Parameters
    ----------
    pixels : ndarray of uint8, (N, 3, S, S)

    Returns
    -------
    ndarray of float64, (N, 3)
        Log energy of the Laplacian (four neighbours, without the border) of the grey image, mean HSV saturation, and
        share of values clipped at 0 or 255.
    """
    values = pixels.astype(np.float64)
    grey = values.mean(axis=1)
    laplacian = (
        grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
    )
    energy = np.log((laplacian**2).mean(axis=(1, 2)) + 1.0)
    highest, lowest = values.max(axis=1), values.min(axis=1)
    saturation = ((highest - lowest) / np.maximum(highest, 1.0)).mean(axis=(1, 2))
    clipped = ((pixels == 0) | (pixels == 255)).mean(axis=(1, 2, 3))
    return np.stack([energy, saturation, clipped], axis=1)


def baseline_scores(
    folder: Path, train: Sequence[ImageRecord], tests: Sequence[Sequence[ImageRecord]]
) -> list[dict[str, GeneratorScores]]:
    """Train a logistic regression on `image_statistics`.

    Parameters
    ----------
    folder : Path
        The images' folder.
    train : sequence of ImageRecord
    tests : sequence of sequence of ImageRecord
        Test splits.

    Returns
    -------
    list of dict
        For each test split, generator -> measures.
    """
    model: Pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(image_statistics(read_pixels(folder, train)), [record.label for record in train])
    found = []
    for records in tests:
        scores = model.predict_proba(image_statistics(read_pixels(folder, records)))[:, 1]
        found.append(
            per_generator(
                [record.label for record in records],
                scores,
                [record.generator for record in records],
                ["" for _ in records],
                clusters=[record.scene or record.key for record in records],
            )
        )
    return found


def metadata_auc(folder: Path, records: Sequence[ImageRecord]) -> float:
    """Return the cross-validated AUC of a random forest on file metadata; a crop and its twins share a fold."""
    features = np.array([file_metadata(folder / record.path) for record in records])
    scores = cross_val_score(
        RandomForestClassifier(n_estimators=50, random_state=0),
        features,
        [record.label for record in records],
        groups=[record.pair for record in records],
        cv=GroupKFold(FOLDS),
        scoring="roc_auc",
    )
    return float(np.mean(scores))


def file_metadata(path: Path) -> tuple[float, ...]:
    """Return size in bytes, width, height, channels, number of metadata entries, and whether the file is a PNG."""
    with Image.open(path) as image:
        return (path.stat().st_size, *image.size, len(image.getbands()), len(image.info), image.format == "PNG")


def study_dire(cache: Cache, build: str, records: Sequence[ImageRecord], seed: int) -> DireStudy:
    """Read the DIRE of some images from the cache and compare the kinds of images.

    Samples belong to no scene; each is a cluster of its own.

    Parameters
    ----------
    cache : Cache
    build : str
        Id of the build that has the DIRE.
    records : sequence of ImageRecord
    seed : int
        Of the bootstrap.
    """
    store = cache.open_feature(cache.builds().read(build).features["dire"].folder)
    keys = [record.key for record in records]
    mean = dict(zip(keys, gather(store, keys).mean(axis=(1, 2, 3)) / 255, strict=True))
    by_kind: dict[ImageKind, list[ImageRecord]] = {}
    for record in records:
        by_kind.setdefault(record.kind, []).append(record)
    classes = {
        kind: _mean([mean[r.key] for r in found], [r.scene or r.key for r in found], seed)
        for kind, found in by_kind.items()
    }
    pairs = {kind: {record.pair: record for record in found} for kind, found in by_kind.items()}
    compared: tuple[tuple[ImageKind, ImageKind], ...] = (("twin", "real"), ("blurred", "real"), ("twin", "blurred"))
    differences, areas = {}, {}
    for one, other in compared:
        common = [(pairs[one][pair], pairs[other][pair]) for pair in pairs[one] if pair in pairs[other]]
        values = [mean[a.key] - mean[b.key] for a, b in common]
        differences[one, other] = _mean(values, [str(a.scene) for a, _ in common], seed)
    for one, other in (*compared, ("sample", "real")):
        scores = [-value for kind in (one, other) for value in classes[kind].values]
        labels = [1] * len(classes[one].values) + [0] * len(classes[other].values)
        areas[one, other] = auc(labels, scores) or 0.0
    return DireStudy(classes, differences, areas)


def _mean(values: Sequence[float], clusters: Sequence[str], seed: int) -> DireMean:
    interval = bootstrap_mean(values, clusters, seed=seed)
    assert interval is not None
    return DireMean(np.asarray(values, dtype=np.float64), interval)
