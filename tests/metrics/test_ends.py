"""Intervals near 0 and 1, where resamples show no spread."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.metrics.calibration import share_interval
from distil_cache.metrics.ends import interval_near_the_ends
from distil_cache.metrics.measures import Interval
from distil_cache.metrics.per_generator import GeneratorScores, mean_interval, per_generator


def scored(scores: np.ndarray, *, clusters: list[str] | None = None) -> dict[str, GeneratorScores]:
    labels = np.repeat([0, 1], len(scores) // 2)
    names = np.where(labels == 1, "adm", "")
    return per_generator(labels, scores, names, np.full(len(labels), "g"), clusters=clusters)


def perfect(images: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(0.0, 0.3, images), rng.uniform(0.7, 1.0, images)])


def test_a_perfect_detector_on_few_images_is_not_certain_to_be_perfect() -> None:
    found = scored(perfect(20))["adm"]

    assert found.interval("accuracy") == share_interval(40, 40)
    assert found.interval("fake_accuracy") == share_interval(20, 20)
    for measure in ("average_precision", "auc", "tpr_at_fpr_5"):
        low, high = found.interval(measure) or (0, 0)
        assert 0.6 < low < 0.9, measure
        assert high == 1.0, measure
    low, high = found.interval("equal_error_rate") or (0, 0)
    assert (low, high) == (0.0, pytest.approx(3.689 / 20, abs=1e-3))
    assert mean_interval({"adm": found}, "auc") == found.interval("auc")


def test_more_images_narrow_the_bounds_of_a_perfect_detector() -> None:
    few, many = (scored(perfect(images))["adm"].interval("auc") for images in (20, 500))

    assert few is not None
    assert many is not None
    assert few.low < many.low < 1.0
    assert many.low > 0.99


def test_clusters_count_as_one_unit_each() -> None:
    clusters = [f"scene {number // 10}" for number in range(200)]

    found = scored(perfect(100), clusters=clusters)["adm"]

    assert (found.real_units, found.fake_units, found.units) == (10, 10, 20)
    assert found.interval("accuracy") == share_interval(20, 20)


def test_few_errors_have_wilsons_interval_and_many_that_of_the_resamples() -> None:
    drawn = Interval(0.98, 1.0)

    assert interval_near_the_ends("accuracy", 0.99, drawn, 100, 100, 200) == share_interval(198, 200)
    assert interval_near_the_ends("accuracy", 0.9, drawn, 100, 100, 200) == drawn
    assert interval_near_the_ends("accuracy", 0.8, drawn, 10, 10, 20) == share_interval(16, 20)
    assert interval_near_the_ends("accuracy", 0.8, drawn, 10, 10, 20, 8) == drawn  # 32 errors in 20 scenes
    assert interval_near_the_ends("auc", 0.99, drawn, 100, 100, 200) == drawn


def test_finds_at_a_rate_that_one_real_image_exceeds_have_no_interval() -> None:
    few, many = scored(perfect(80))["adm"], scored(perfect(100))["adm"]

    assert (few.interval("tpr_at_fpr_1"), few.values["tpr_at_fpr_1"]) == (None, 1.0)
    assert many.interval("tpr_at_fpr_1") == share_interval(100, 100)


def test_the_calibration_error_has_no_interval() -> None:
    found = scored(perfect(20))["adm"]

    assert found.interval("calibration_error") is None
    assert mean_interval({"adm": found}, "calibration_error") is None
