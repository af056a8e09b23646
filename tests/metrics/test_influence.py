"""The influence of images on a measure is its derivative by their weights."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.metrics import influence
from sklearn.metrics import average_precision_score, roc_auc_score


def derivative(labels: np.ndarray, scores: np.ndarray, measure) -> np.ndarray:
    """By finite differences, less the mean of each class."""
    found = np.zeros(len(labels))
    for row in range(len(labels)):
        weights = np.ones((2, len(labels)))
        weights[:, row] += (-1e-5, 1e-5)
        low, high = (measure(labels, scores, sample_weight=one) for one in weights)
        found[row] = (high - low) / 2e-5
    return found - np.where(labels == 1, found[labels == 1].mean(), found[labels == 0].mean())


@pytest.mark.parametrize("digits", [1, 8])
def test_the_influence_on_ap_and_auc_is_what_scikit_learns_weights_do(digits: int) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(50) % 3 == 0).astype(int)
    scores = np.round(np.clip(0.4 + 0.2 * labels + 0.2 * rng.normal(size=50), 0, 1), digits)

    found = influence.influences(labels, scores)

    np.testing.assert_allclose(
        found["average_precision"], derivative(labels, scores, average_precision_score), atol=1e-7
    )
    np.testing.assert_allclose(found["auc"], derivative(labels, scores, roc_auc_score), atol=1e-7)


def test_a_cluster_is_one_unit_of_the_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    labels, scores = np.arange(400) % 2, rng.random(400)

    images, scenes = (
        influence.degrees_of_freedom(labels, scores, clusters)["auc"]
        for clusters in (np.arange(400), np.arange(400) // 40)
    )

    assert images > 100
    assert 1 <= scenes <= 8


def test_a_detector_that_separates_all_images_has_the_degrees_of_freedom_of_its_units() -> None:
    labels = np.repeat([0, 1], 10)

    assert influence.degrees_of_freedom(labels, labels * 0.9, np.arange(20))["auc"] == 18
