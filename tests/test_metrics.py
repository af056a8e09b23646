"""Accuracy, AP, AUC, test sets and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.train import metrics
from sklearn.metrics import average_precision_score


def some_scores(rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.4).astype(np.int8)
    # one decimal, so that many scores are equal
    return labels, np.round(np.clip(0.3 + 0.25 * labels + 0.2 * rng.normal(size=rows), 0, 1), 1)


def test_average_precision_auc_and_accuracy_are_those_computed_by_hand():
    labels, scores = [1, 0, 1, 0], [0.9, 0.8, 0.6, 0.1]

    assert metrics.average_precision(labels, scores) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert metrics.auc(labels, scores) == pytest.approx(3 / 4)
    assert metrics.accuracy(labels, scores) == pytest.approx(3 / 4)


def test_a_score_at_the_threshold_says_real():
    assert metrics.accuracy([0], [0.5]) == 1.0
    assert metrics.accuracy([1], [0.5]) == 0.0
    assert metrics.accuracy([1], [0.5], threshold=0.2) == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_ap_and_auc_of_one_class_are_undefined_and_accuracy_is_not(labels):
    assert metrics.average_precision(labels, [0.1, 0.9]) is None
    assert metrics.auc(labels, [0.1, 0.9]) is None
    assert metrics.accuracy(labels, [0.1, 0.9]) == 0.5


def test_nothing_is_defined_of_no_image():
    assert metrics.accuracy([], []) is None
    assert metrics.average_precision([], []) is None
    assert metrics.bootstrap_mean([]) is None
    assert metrics.interval(metrics.bootstrap([], [], replicates=5).accuracy) is None


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        metrics.accuracy([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="one length"):
        metrics.accuracy([0, 1], [0.1])


def test_a_generators_test_set_takes_the_reals_of_its_own_folder():
    labels = [0, 0, 1, 1]
    generators = ["ldm", "adm", "adm", "ldm"]

    sets = metrics.test_sets(labels, generators, ["bedroom"] * 4)

    assert {name: rows.tolist() for name, rows in sets.items()} == {"adm": [1, 2], "ldm": [0, 3]}


def test_a_generator_without_reals_of_its_own_takes_all_reals_of_its_source_groups():
    labels = [0, 0, 0, 1, 1]
    generators = ["", "ldm", "", "adm", "ldm"]
    groups = ["imagenet", "imagenet", "faces", "imagenet", "imagenet"]

    sets = metrics.test_sets(labels, generators, groups)

    assert sets["adm"].tolist() == [0, 1, 3]
    assert sets["ldm"].tolist() == [1, 4]


def test_each_generator_is_measured_on_its_own_test_set():
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.7, 0.9, 0.2, 0.9]
    found = metrics.per_generator(labels, scores, ["", "", "a", "a", "b"], ["g"] * 4 + ["elsewhere"], replicates=20)

    assert (found["a"].real, found["a"].fake) == (2, 2)
    assert found["a"].accuracy == 0.5
    assert (found["a"].real_accuracy, found["a"].fake_accuracy) == (0.5, 0.5)
    assert (found["b"].real, found["b"].fake) == (0, 1)
    assert found["b"].average_precision is None
    assert found["b"].real_accuracy is None


def test_the_mean_counts_every_generator_once_and_leaves_out_test_sets_of_one_class():
    labels = [0, 1, 0, 1, 1, 1, 1]
    scores = [0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9]
    generators = ["a", "a", "b", "b", "b", "b", "lonely"]
    found = metrics.per_generator(labels, scores, generators, ["g"] * 6 + ["elsewhere"], replicates=5)

    assert found["a"].accuracy == 1.0
    assert found["b"].accuracy == 0.25
    assert metrics.mean_over_generators(found, "accuracy") == pytest.approx((1.0 + 0.25) / 2)
    assert metrics.unweighted_mean([None, 0.5, 1.0]) == 0.75
    assert metrics.unweighted_mean([None]) is None


@pytest.mark.parametrize("clusters", [None, [f"scene {n // 4}" for n in range(60)]])
def test_every_resample_has_the_ap_and_accuracy_of_its_repeated_rows(clusters):
    labels, scores = some_scores()
    drawn = metrics.bootstrap(labels, scores, clusters, replicates=30, seed=5)

    numbers = metrics._cluster_numbers(clusters, len(labels))
    order = np.argsort(-scores, kind="stable")
    times = np.concatenate(list(metrics._draws(numbers[order], 30, 5)))
    for replicate, repeats in enumerate(times):
        rows = np.repeat(order, repeats)
        assert drawn.average_precision[replicate] == pytest.approx(average_precision_score(labels[rows], scores[rows]))
        assert drawn.accuracy[replicate] == pytest.approx(np.mean((scores[rows] > 0.5) == labels[rows]))


def test_resamples_without_both_classes_are_left_out_of_the_interval():
    drawn = metrics.bootstrap([0, 1], [0.2, 0.8], replicates=100)

    assert np.isnan(drawn.average_precision).any()
    assert metrics.interval(drawn.average_precision) == (1.0, 1.0)


def test_the_same_seed_gives_the_same_resamples_whatever_the_order_of_the_rows():
    labels, scores = some_scores()
    keys = np.array([f"{n:03d}" for n in range(len(labels))])
    other = np.random.default_rng(1).permutation(len(labels))

    first = metrics.bootstrap(labels, scores, keys, replicates=50, seed=3)
    again = metrics.bootstrap(labels[other], scores[other], keys[other], replicates=50, seed=3)

    np.testing.assert_allclose(first.average_precision, again.average_precision)
    np.testing.assert_allclose(first.accuracy, again.accuracy)


def test_images_that_are_resampled_together_give_a_wider_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    scenes = np.repeat([f"scene {n}" for n in range(20)], 10)

    by_image, by_scene = metrics.bootstrap_mean(values), metrics.bootstrap_mean(values, scenes)

    assert by_scene.high - by_scene.low > 2 * (by_image.high - by_image.low)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_for_many_values():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = metrics.bootstrap_mean(values)
    error = values.std() / np.sqrt(len(values))

    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_clusters_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one cluster a row"):
        metrics.bootstrap([0, 1], [0.1, 0.9], ["a"])
