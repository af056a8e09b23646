"""Bootstrap intervals: every resample has the measures of its repeated images, and resamples can be paired."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.metrics import bootstrap, measures, per_generator
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
    roc_curve,
)

THRESHOLD = 0.35


def some_scores(rows: int = 60, seed: int = 0, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """With one digit, many scores are equal."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.4).astype(np.int8)
    return labels, np.round(np.clip(0.3 + 0.25 * labels + 0.2 * rng.normal(size=rows), 0, 1), digits)


def all_rows(count: int) -> dict[str, np.ndarray]:
    return {"all": np.arange(count)}


def by_sklearn(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The measures that scikit-learn has, of weighted images."""
    called, wrong_rate = scores > 0.5, roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    balance = np.where(labels == 1, weights / weights[labels == 1].sum(), weights / weights[labels == 0].sum())
    return {
        "accuracy": accuracy_score(labels, called, sample_weight=weights),
        "average_precision": average_precision_score(labels, scores, sample_weight=weights),
        "auc": roc_auc_score(labels, scores, sample_weight=weights),
        "balanced_average_precision": average_precision_score(labels, scores, sample_weight=balance),
        "tpr_at_fpr_1": wrong_rate[1][wrong_rate[0] <= 0.01].max(),
        "tpr_at_fpr_5": wrong_rate[1][wrong_rate[0] <= 0.05].max(),
        "brier": brier_score_loss(labels, scores, sample_weight=weights),
        "real_accuracy": recall_score(labels, called, sample_weight=weights, pos_label=0),
        "fake_accuracy": recall_score(labels, called, sample_weight=weights),
        "calibrated_accuracy": accuracy_score(labels, scores > THRESHOLD, sample_weight=weights),
    }


@pytest.mark.parametrize("digits", [1, 8])
@pytest.mark.parametrize("clusters", [None, [f"scene {n // 4}" for n in range(60)]])
def test_every_resample_has_what_scikit_learn_says_of_its_weights(clusters, digits):
    labels, scores = some_scores(digits=digits)
    drawn = bootstrap.bootstrap(
        labels, scores, all_rows(60), clusters, calibrated_threshold=THRESHOLD, replicates=30, seed=5
    )["all"]

    times = np.concatenate(list(bootstrap.resamples(bootstrap.cluster_numbers(clusters, len(labels)), 30, 5)))
    assert len(times) == 30
    for replicate, counts in enumerate(times):
        weights, kept = fixed_ratio(labels, counts), counts > 0
        for name, expected in by_sklearn(labels[kept], scores[kept], weights[kept]).items():
            assert drawn[name][replicate] == pytest.approx(expected, abs=1e-12), name


def fixed_ratio(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weight the drawn images so that each class has the total that it has in the test set."""
    factors = [(labels == label).sum() / counts[labels == label].sum() for label in (0, 1)]
    return counts * np.where(labels == 1, factors[1], factors[0])


def test_every_resample_has_all_measures_of_its_repeated_images():
    labels, scores = some_scores()
    drawn = bootstrap.bootstrap(labels, scores, all_rows(60), calibrated_threshold=THRESHOLD, replicates=30)["all"]

    assert drawn.keys() == set(measures.MEASURES)
    compared = 0
    for replicate, weights in enumerate(np.concatenate(list(bootstrap.resamples(np.arange(60), 30, 0)))):
        rows = np.repeat(np.arange(60), weights.astype(int))
        if labels[rows].sum() != labels.sum():
            continue  # these keep the ratio of the classes by weights, as the test above says
        compared += 1
        for name, expected in measures.measures(labels[rows], scores[rows], THRESHOLD).items():
            assert drawn[name][replicate] == pytest.approx(expected, abs=1e-9), name
    assert compared > 1


def test_the_ratio_of_the_classes_is_not_drawn():
    labels, scores = np.repeat([0, 1], [10, 30]), np.full(40, 0.9)

    drawn = bootstrap.bootstrap(labels, scores, all_rows(40), replicates=200)["all"]

    np.testing.assert_allclose(drawn["accuracy"], 0.75)
    np.testing.assert_allclose(drawn["average_precision"], 0.75)


def test_without_resampling_the_measures_are_those_of_the_images():
    labels, scores = some_scores(500, digits=3)

    drawn = bootstrap._SortedScores(np.arange(500), labels, scores, THRESHOLD).measures(np.ones((1, 500)))

    assert {name: values[0] for name, values in drawn.items()} == pytest.approx(
        measures.measures(labels, scores, THRESHOLD)
    )


def test_resamples_without_both_classes_are_left_out_of_the_interval():
    drawn = bootstrap.bootstrap([0, 1], [0.2, 0.8], all_rows(2), replicates=100)["all"]

    assert np.isnan(drawn["average_precision"]).any()
    assert np.isnan(drawn["accuracy"]).any()
    assert not np.isnan(drawn["accuracy"]).all()
    assert bootstrap.interval(drawn["average_precision"]) == (1.0, 1.0)
    assert bootstrap.interval(drawn["calibrated_accuracy"]) is None


def test_an_interval_is_the_middle_of_the_replicates_and_leaves_out_undefined_ones():
    replicates = np.append(np.arange(1001.0), np.nan)

    assert bootstrap.interval(replicates) == pytest.approx((25.0, 975.0))
    assert bootstrap.interval(replicates, 0.8) == pytest.approx((100.0, 900.0))


def test_the_same_seed_gives_the_same_resamples_whatever_the_order_of_the_rows():
    labels, scores = some_scores()
    keys = np.array([f"{n:03d}" for n in range(len(labels))])
    other = np.random.default_rng(1).permutation(len(labels))

    first = bootstrap.bootstrap(labels, scores, all_rows(60), keys, replicates=50, seed=3)["all"]
    again = bootstrap.bootstrap(labels[other], scores[other], all_rows(60), keys[other], replicates=50, seed=3)["all"]

    for name in measures.MEASURES:
        np.testing.assert_allclose(first[name], again[name], atol=1e-12)


def test_resamples_do_not_depend_on_how_many_are_held_in_memory(monkeypatch):
    labels, scores = some_scores()
    at_once = bootstrap.bootstrap(labels, scores, all_rows(60), replicates=50)["all"]
    monkeypatch.setattr(bootstrap, "_ELEMENTS_AT_ONCE", 7 * 60)

    in_parts = bootstrap.bootstrap(labels, scores, all_rows(60), replicates=50)["all"]

    np.testing.assert_allclose(at_once["auc"], in_parts["auc"])


def test_reals_that_generators_share_are_drawn_alike_so_that_their_mean_has_an_interval():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 1], 100)
    names = np.repeat(["", "a", "b"], 100)
    reals = rng.random(100)
    scores = np.concatenate([reals, np.full(200, 0.99)])  # both generators are detected equally well
    found = per_generator.per_generator(labels, scores, names, ["g"] * 300, replicates=400)

    alone, mean = found["a"].interval("real_accuracy"), per_generator.mean_interval(found, "real_accuracy")

    np.testing.assert_array_equal(found["a"].replicates["real_accuracy"], found["b"].replicates["real_accuracy"])
    assert mean == alone


def test_images_that_are_resampled_together_give_a_wider_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    scenes = np.repeat([f"scene {n}" for n in range(20)], 10)

    by_image, by_scene = bootstrap.bootstrap_mean(values), bootstrap.bootstrap_mean(values, scenes)

    assert by_scene.high - by_scene.low > 2 * (by_image.high - by_image.low)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_for_many_values():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap.bootstrap_mean(values)
    error = values.std() / np.sqrt(len(values))

    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_about_95_of_100_intervals_hold_the_true_auc():
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.arange(200) % 2
        low, high = bootstrap.interval(
            bootstrap.bootstrap(labels, _uniform(labels, rng), all_rows(200), replicates=200)["all"]["auc"]
        )
        held += low <= 0.75 + 1e-9 and high >= 0.75
    assert 50 <= held <= 60


def _uniform(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reals uniform over 0..1; half the fakes also, the others above all reals: an AUC of 0.75."""
    return np.where((labels == 1) & (rng.random(len(labels)) < 0.5), 1.0, rng.random(len(labels)) * 0.999)


def test_clusters_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one name per row"):
        bootstrap.bootstrap([0, 1], [0.1, 0.9], all_rows(2), ["a"])


def test_a_thousand_resamples_are_measured_many_at_a_time_after_one_sorting_of_the_scores(monkeypatch):
    labels, scores = some_scores(2_000, digits=8)
    sort, measure = np.argsort, bootstrap._SortedScores.measures
    sorted_, measured = [], []
    monkeypatch.setattr(np, "argsort", lambda values, **how: (sorted_.append(len(values)), sort(values, **how))[1])
    monkeypatch.setattr(
        bootstrap._SortedScores, "measures", lambda self, drawn: (measured.append(len(drawn)), measure(self, drawn))[1]
    )

    bootstrap.bootstrap(labels, scores, all_rows(2_000), calibrated_threshold=THRESHOLD)

    assert sorted_ == [2_000]
    assert sum(measured) == 1000
    assert min(measured) == max(measured) == bootstrap._ELEMENTS_AT_ONCE // 2_000
