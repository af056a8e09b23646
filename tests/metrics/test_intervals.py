"""Intervals that hold: near 0 and 1, where few images decide, and for differences between alike detectors."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.metrics.calibration import share_interval
from distil_cache.metrics.intervals import Basis, interval_of, interval_of_difference
from distil_cache.metrics.measures import MEASURES
from distil_cache.metrics.per_generator import GeneratorScores, mean_interval, paired_interval, per_generator
from scipy.stats import beta


def scored(scores: np.ndarray, *, clusters: list[str] | None = None) -> dict[str, GeneratorScores]:
    labels = np.repeat([0, 1], len(scores) // 2)
    names = np.where(labels == 1, "adm", "")
    return per_generator(labels, scores, names, np.full(len(labels), "g"), clusters=clusters)


def perfect(images: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(0.0, 0.3, images), rng.uniform(0.7, 1.0, images)])


def good(images: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=2 * images) + np.repeat([-1.0, 1.0], images)
    return np.asarray(1 / (1 + np.exp(-logits)))


def test_a_perfect_detector_on_few_images_is_not_certain_to_be_perfect() -> None:
    found = scored(perfect(20))["adm"]

    low, high = found.interval("accuracy") or (0, 0)
    assert high == 1.0
    assert low < beta.ppf(0.05, 40, 1)  # the exact one-sided 95 % bound
    for measure in ("average_precision", "auc", "fake_accuracy", "real_accuracy", "brier"):
        low, high = found.interval(measure) or (0, 0)
        assert high - low > 0.01, measure
    assert 0.8 < (found.interval("auc") or (0, 0))[0] < 0.95
    low, high = found.interval("equal_error_rate") or (0, 0)
    assert low == 0.0
    assert 0.05 < high < 0.2
    assert mean_interval({"adm": found}, "auc") == found.interval("auc")


@pytest.mark.parametrize("scores", [perfect(4), good(4), np.full(8, 0.9), np.repeat([0.9, 0.1], 4)])
def test_no_interval_of_several_images_lacks_a_width(scores: np.ndarray) -> None:
    found = scored(scores)["adm"]

    for measure in MEASURES:
        reach = found.interval(measure)
        assert reach is None or reach.low < reach.high, measure
        assert reach is None or reach.low <= (found.values[measure] or 0.0) <= reach.high, measure


def test_more_images_narrow_the_bounds_of_a_perfect_detector() -> None:
    few, many = (scored(perfect(images))["adm"].interval("auc") for images in (20, 500))

    assert few is not None
    assert many is not None
    assert few.low < many.low < 1.0
    assert many.low > 0.99


def test_a_cluster_counts_as_one_unit_where_no_resample_differs() -> None:
    clusters = [f"scene {number // 10}" for number in range(200)]

    found = scored(perfect(100), clusters=clusters)["adm"]

    assert (found.real_units, found.fake_units, found.units) == (10, 10, 20)
    assert (found.interval("accuracy") or (0, 0))[0] < share_interval(20, 20).low


def test_one_cluster_has_no_interval() -> None:
    found = scored(good(20), clusters=["scene"] * 40)["adm"]

    assert all(found.interval(measure) is None for measure in MEASURES)


def test_the_interval_of_an_accuracy_is_wilsons_for_independent_images() -> None:
    scores = good(200)
    found = scored(scores)["adm"]

    low, high = found.interval("accuracy") or (0, 0)

    expected = share_interval(400 * (found.accuracy or 0), 400)
    assert (low, high) == pytest.approx(expected, abs=0.005)


def test_few_degrees_of_freedom_widen_an_interval_and_hardly_move_its_upper_end_beyond_one() -> None:
    replicates = 0.99 + 0.004 * np.random.default_rng(0).normal(size=1000)

    few, many = (interval_of("auc", 0.99, replicates, Basis(160, 80, freedom)) for freedom in (3.0, 158.0))

    assert few is not None
    assert many is not None
    assert few.low < many.low < 0.99 < many.high < few.high < 1


def test_a_detector_whose_errors_are_few_images_has_few_degrees_of_freedom() -> None:
    plain, one_error = good(80), perfect(80)
    one_error[0] = 0.9  # a real image among the fakes

    usual, few = (scored(scores)["adm"].freedom["auc"] for scores in (plain, one_error))

    assert few < 4
    assert usual > 20


def test_finds_at_a_rate_that_too_few_real_images_show_are_only_bounded_from_above() -> None:
    scores = good(80)
    blind, seeing = (scored(scores)["adm"].interval(measure) for measure in ("tpr_at_fpr_1", "tpr_at_fpr_5"))

    assert blind is not None
    assert seeing is not None
    assert blind.low == 0.0
    assert 0 < blind.high < 1
    assert seeing.low > 0


def test_finds_at_a_rate_have_no_difference_where_too_few_real_images_show_the_threshold() -> None:
    first, second = (scored(good(80, seed))["adm"] for seed in (0, 1))

    assert paired_interval([first], [second], "tpr_at_fpr_1") is None
    assert paired_interval([first], [second], "tpr_at_fpr_5") is not None


@pytest.mark.parametrize("measure", ["accuracy", "auc"])
def test_two_detectors_without_an_error_may_differ_on_other_images(measure: str) -> None:
    first, second = scored(perfect(40))["adm"], scored(perfect(40))["adm"]

    low, high = paired_interval([first], [second], measure) or (0, 0)

    assert -0.1 < low < -0.01
    assert 0.01 < high < 0.1


def test_a_difference_is_narrower_where_both_sides_err_on_the_same_images() -> None:
    scores = good(150)
    nearly, other = np.clip(scores + np.random.default_rng(5).normal(size=300) * 0.02, 0, 1), good(150, 1)
    first, alike, independent = (scored(one)["adm"] for one in (scores, nearly, other))

    paired, unpaired = (paired_interval([first], [second], "auc") for second in (alike, independent))

    assert paired is not None
    assert unpaired is not None
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3


def test_a_difference_agrees_with_the_normal_approximation_away_from_the_ends() -> None:
    rng = np.random.default_rng(0)
    first, second = 0.7 + 0.02 * rng.normal(size=(2, 4000))

    low, high = interval_of_difference("auc", (0.7, first), (0.7, second), Basis(1000, 500, 998)) or (0, 0)

    assert (low, high) == pytest.approx((-1.96 * 0.02 * 2**0.5, 1.96 * 0.02 * 2**0.5), rel=0.06)


def test_the_calibration_error_has_no_interval() -> None:
    found = scored(perfect(20))["adm"]

    assert found.interval("calibration_error") is None
    assert mean_interval({"adm": found}, "calibration_error") is None
