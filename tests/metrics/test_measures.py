"""Measures of scores, and the test set of a generator."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.metrics import bootstrap, measures, per_generator
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, brier_score_loss, roc_curve


def some_scores(rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.4).astype(np.int8)
    # one decimal, so that many scores are equal
    return labels, np.round(np.clip(0.3 + 0.25 * labels + 0.2 * rng.normal(size=rows), 0, 1), 1)


def test_average_precision_auc_and_accuracy_are_those_computed_by_hand():
    labels, scores = [1, 0, 1, 0], [0.9, 0.8, 0.6, 0.1]

    assert measures.average_precision(labels, scores) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert measures.auc(labels, scores) == pytest.approx(3 / 4)
    assert measures.accuracy(labels, scores) == pytest.approx(3 / 4)


def test_a_score_at_the_threshold_says_real():
    assert measures.accuracy([0], [0.5]) == 1.0
    assert measures.accuracy([1], [0.5]) == 0.0
    assert measures.accuracy([1], [0.5], threshold=0.2) == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_ap_and_auc_of_one_class_are_undefined_and_accuracy_is_not(labels):
    assert measures.average_precision(labels, [0.1, 0.9]) is None
    assert measures.auc(labels, [0.1, 0.9]) is None
    assert measures.accuracy(labels, [0.1, 0.9]) == 0.5


def test_nothing_is_defined_of_no_image():
    assert measures.accuracy([], []) is None
    assert measures.average_precision([], []) is None
    assert set(measures.measures([], [], 0.5).values()) == {None}
    assert bootstrap.bootstrap_mean([]) is None
    assert bootstrap.bootstrap([], [], {}, replicates=5) == {}


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        measures.accuracy([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="one length"):
        measures.accuracy([0, 1], [0.1])


def test_a_generators_test_set_takes_the_reals_of_its_own_folder():
    labels = [0, 0, 1, 1]
    generators = ["ldm", "adm", "adm", "ldm"]

    sets = measures.test_sets(labels, generators, ["bedroom"] * 4)

    assert {name: rows.tolist() for name, rows in sets.items()} == {"adm": [1, 2], "ldm": [0, 3]}


def test_a_generator_without_reals_of_its_own_takes_all_reals_of_its_source_groups():
    labels = [0, 0, 0, 1, 1]
    generators = ["", "ldm", "", "adm", "ldm"]
    groups = ["imagenet", "imagenet", "faces", "imagenet", "imagenet"]

    sets = measures.test_sets(labels, generators, groups)

    assert sets["adm"].tolist() == [0, 1, 3]
    assert sets["ldm"].tolist() == [1, 4]


def test_each_generator_is_measured_on_its_own_test_set():
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.7, 0.9, 0.2, 0.9]
    found = per_generator.per_generator(
        labels, scores, ["", "", "a", "a", "b"], ["g"] * 4 + ["elsewhere"], replicates=20
    )

    assert (found["a"].real, found["a"].fake) == (2, 2)
    assert found["a"].accuracy == 0.5
    assert (found["a"].values["real_accuracy"], found["a"].values["fake_accuracy"]) == (0.5, 0.5)
    assert (found["b"].real, found["b"].fake) == (0, 1)
    assert found["b"].average_precision is None
    assert found["b"].values["real_accuracy"] is None
    assert found["b"].interval("average_precision") is None


def test_the_mean_counts_every_generator_once_and_leaves_out_test_sets_of_one_class():
    labels = [0, 1, 0, 1, 1, 1, 1]
    scores = [0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9]
    names = ["a", "a", "b", "b", "b", "b", "lonely"]
    found = per_generator.per_generator(labels, scores, names, ["g"] * 6 + ["elsewhere"], replicates=5)

    assert found["a"].accuracy == 1.0
    assert found["b"].accuracy == 0.25
    assert per_generator.mean_over_generators(found, "accuracy") == pytest.approx((1.0 + 0.25) / 2)
    assert measures.unweighted_mean([None, 0.5, 1.0]) == 0.75
    assert measures.unweighted_mean([None]) is None


def test_the_balanced_ap_is_that_of_a_test_set_with_as_many_reals_as_fakes():
    labels, scores = some_scores()
    fakes, reals = scores[labels == 1], scores[labels == 0]
    truth = [1] * len(fakes) * len(reals) + [0] * len(fakes) * len(reals)
    balanced = [*np.repeat(fakes, len(reals)), *np.repeat(reals, len(fakes))]

    assert measures.balanced_average_precision(labels, scores) == pytest.approx(
        average_precision_score(truth, balanced)
    )


def test_what_is_found_at_a_false_positive_rate_is_what_some_threshold_finds_without_exceeding_it():
    labels = [0] * 20 + [1] * 4
    scores = [0.9, 0.6, *([0.1] * 18), 0.95, 0.7, 0.65, 0.2]

    assert measures.tpr_at_fpr(labels, scores, 0.01) == 0.25  # no real above the threshold
    assert measures.tpr_at_fpr(labels, scores, 0.05) == 0.75  # one real of twenty
    assert measures.tpr_at_fpr([0, 1], [0.9, 0.1], 0.05) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_the_equal_error_rate_is_where_the_roc_curve_meets_its_diagonal(seed: int):
    labels, scores = some_scores(seed=seed)
    false_positive, true_positive, _ = roc_curve(labels, scores)

    expected = brentq(lambda x: 1 - x - np.interp(x, false_positive, true_positive), 0, 1)

    assert measures.equal_error_rate(labels, scores) == pytest.approx(expected, abs=1e-6)
    assert measures.equal_error_rate([0, 1], [0.1, 0.9]) == 0.0
    assert measures.equal_error_rate([0, 1], [0.9, 0.1]) == 1.0


def test_brier_score_and_calibration_error_compare_scores_with_shares():
    labels, scores = some_scores(200)
    tenths = np.maximum(1, np.round(scores * 10))  # scores have one digit: a bin holds its upper end

    assert measures.brier(labels, scores) == pytest.approx(brier_score_loss(labels, scores))
    bins = [tenths == number for number in set(tenths)]
    expected = sum(rows.sum() * abs(scores[rows].mean() - labels[rows].mean()) for rows in bins) / 200
    assert measures.calibration_error(labels, scores) == pytest.approx(expected)
    assert measures.calibration_error([0, 1], [0.0, 1.0]) == 0.0
    assert measures.brier([1, 1], [0.5, 0.5]) == 0.25


def test_the_calibrated_accuracy_needs_a_threshold():
    labels, scores = [0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9]

    assert measures.measures(labels, scores)["calibrated_accuracy"] is None
    assert measures.measures(labels, scores, 0.65)["calibrated_accuracy"] == 1.0


def test_means_by_family_count_every_generator_of_the_family_once():
    labels, scores = [0, 1, 0, 1, 1, 0, 1], [0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9]
    names = ["a", "a", "b", "b", "b", "c", "c"]
    kinds = ["diffusion", "diffusion", "gan", "gan", "gan", "gan", "gan"]
    found = per_generator.per_generator(labels, scores, names, ["g"] * 7, families=kinds, replicates=5)

    families = per_generator.by_family(found)

    assert {family: list(of) for family, of in families.items()} == {"diffusion": ["a"], "gan": ["b", "c"]}
    assert per_generator.mean_over_generators(families["gan"], "accuracy") == pytest.approx((1 / 3 + 1) / 2)
    assert per_generator.by_family(
        per_generator.per_generator(labels, scores, names, ["g"] * 7, replicates=2)
    ).keys() == {"unknown"}
