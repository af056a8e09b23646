"""Numbers of the report: families, further measures, validated thresholds, methods, the paper's figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from distil_cache.metrics.measures import MEASURES, measures
from distil_cache.metrics.per_generator import per_generator
from distil_cache.report import write_report
from distil_cache.report.inputs.paper import paper, paper_costs
from run_folders import Rows, rows, write_evaluation, write_run

FAKES = {"adm": 2.5, "sdv1": 0.8}
CALIBRATED = {
    "threshold": 0.2,
    "split": "val",
    "transform": "crop",
    "real": 12,
    "fake": 12,
    "checkpoint_sha256": "4" * 64,  # of the checkpoint that write_evaluation names
    "accuracy": 0.9,
    "balanced_accuracy": 0.9,
}


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def trained_as_in_the_paper(
    folder: Path, *, source: str = "ImageNet", method: str = "distildire", kd: float = 0.5
) -> Path:
    """A run of the paper's method and training set, not yet evaluated."""
    run = write_run(folder, method=method, kd_weight=kd, seen=["ADM"] if source == "ImageNet" else ["SD-v2"])
    change(run / "config.json", groups=[source])
    return run


def of_family(scored: Rows, family: str, *generators: str) -> Rows:
    return [row | {"family": family} if row["generator"] in generators else row for row in scored]


def of_group(scored: Rows, group: str) -> Rows:
    return [row | {"group": group} for row in scored]


def results_of(content: dict, index: int = 0) -> dict:
    return content["comparisons"][0]["results"][index]


def generator_of(content: dict, name: str, index: int = 0) -> dict:
    return next(one for one in results_of(content, index)["generators"] if one["generator"] == name)


def markdown_of(out: Path) -> str:
    return (out / "report.md").read_text(encoding="utf-8")


def test_every_measure_has_its_value_and_its_interval(tmp_path):
    run = write_run(tmp_path / "run")
    scored = rows(FAKES)
    write_evaluation(run, scored)
    (run / "calibration.json").write_text(json.dumps(CALIBRATED))

    found = generator_of(write_report([run], tmp_path / "out"), "sdv1")

    own = [row for row in scored if row["label"] == 0 or row["generator"] == "sdv1"]
    expected = measures([row["label"] for row in own], np.float32([row["score"] for row in own]), 0.2)
    assert {name: found[name] for name in MEASURES} == pytest.approx(expected)
    without = {"calibration_error"}  # no interval is known to hold
    assert all(found[f"{name}_interval"] is None for name in without)
    for name in set(MEASURES) - without:
        low, high = found[f"{name}_interval"]
        assert low < high, name
        assert found[name] == pytest.approx(np.clip(found[name], low - 0.06, high + 0.06)), name
    assert found["tpr_at_fpr_1_interval"][0] == 0  # 40 reals do not show where the threshold of 1 % is
    images = CALIBRATED["real"] + CALIBRATED["fake"]
    assert f"validated threshold 0.200, by {images} images of val" in markdown_of(tmp_path / "out")


def test_the_validated_threshold_of_another_checkpoint_is_not_used(tmp_path):
    run = write_run(tmp_path / "run")
    write_evaluation(run, rows(FAKES))
    (run / "calibration.json").write_text(json.dumps(CALIBRATED | {"checkpoint_sha256": "5" * 64}))

    content = write_report([run], tmp_path / "out")

    assert results_of(content)["calibrated_threshold"] is None
    assert generator_of(content, "adm")["calibrated_accuracy"] is None
    assert generator_of(content, "adm")["calibrated_accuracy_interval"] is None
    assert content["runs"][0]["calibration"]["threshold"] == 0.2
    assert "no validated threshold" in markdown_of(tmp_path / "out")


def test_averages_by_family_are_shown_beside_the_mean_over_all_generators(tmp_path):
    run = write_run(tmp_path / "run")
    write_evaluation(run, of_family(rows(FAKES | {"stylegan": 0.3, "progan": 2.0}), "gan", "stylegan", "progan"))

    content = write_report([run], tmp_path / "out")

    families = results_of(content)["families"]
    assert {name: found["generators"] for name, found in families.items()} == {
        "diffusion": ["adm", "sdv1"],
        "gan": ["progan", "stylegan"],
    }
    gans = [generator_of(content, name)["average_precision"] for name in ("progan", "stylegan")]
    assert families["gan"]["mean"]["average_precision"] == pytest.approx(np.mean(gans))
    low, high = families["gan"]["mean_interval"]["average_precision"]
    assert low < np.mean(gans) < high
    assert "mean of diffusion models | mean of GANs" in markdown_of(tmp_path / "out")


def test_a_single_family_has_no_column_of_its_own(tmp_path):
    run = write_run(tmp_path / "run")
    write_evaluation(run, rows(FAKES))

    write_report([run], tmp_path / "out")

    assert "mean of" not in markdown_of(tmp_path / "out")


def test_the_mean_has_an_interval_that_is_narrower_than_those_of_its_generators(tmp_path):
    run = write_run(tmp_path / "run")
    write_evaluation(run, rows({f"g{n}": 1.0 for n in range(5)}))

    content = write_report([run], tmp_path / "out")

    low, high = results_of(content)["mean_interval"]["fake_accuracy"]
    widths = [np.ptp(one["fake_accuracy_interval"]) for one in results_of(content)["generators"]]
    assert 0 < high - low < 0.75 * min(widths)


def test_seeds_have_mean_and_spread_of_every_measure(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(3)]
    for seed, run in enumerate(runs):
        write_evaluation(run, rows(FAKES, seed=seed))

    content = write_report(runs, tmp_path / "out")

    (summary,) = content["comparisons"][0]["over_seeds"]
    values = [generator_of(content, "adm", index)["equal_error_rate"] for index in range(3)]
    found = summary["generators"]["adm"]["equal_error_rate"]
    assert found == {"mean": pytest.approx(np.mean(values)), "spread": pytest.approx(np.std(values, ddof=1))}
    assert summary["families"]["diffusion"]["auc"] == summary["mean"]["auc"]


def test_methods_are_compared_on_the_same_images_by_a_paired_bootstrap(tmp_path):
    one, other = write_run(tmp_path / "kd"), write_run(tmp_path / "cnn", method="cnndet")
    scored = rows(FAKES)
    write_evaluation(one, scored)
    better = [row | {"score": min(1.0, row["score"] + 0.02 * row["label"])} for row in scored]
    write_evaluation(other, better)

    content = write_report([one, other], tmp_path / "out")

    (pair,) = content["comparisons"][0]["methods"]
    assert (pair["first"], pair["second"]) == (["kd"], ["cnn"])
    auc = pair["mean"]["auc"]
    sides = [results_of(content, index)["mean"]["auc"] for index in range(2)]
    assert auc["difference"] == pytest.approx(sides[1] - sides[0])
    low, high = auc["interval"]
    # every resample gains: paired, the interval of the difference lies above zero while those of the sides overlap
    assert 0 <= low <= auc["difference"] <= high
    first = results_of(content)["mean_interval"]["auc"]
    assert high - low < 0.5 * (first[1] - first[0])
    assert "cnndet (cnn)<br>minus distildire" in markdown_of(tmp_path / "out")


def test_configurations_of_one_method_are_not_called_methods(tmp_path):
    runs = [write_run(tmp_path / "kd00", kd_weight=0.0), write_run(tmp_path / "kd05")]
    for run in runs:
        write_evaluation(run, rows(FAKES))

    assert write_report(runs, tmp_path / "out")["comparisons"][0]["methods"] == []


def test_the_mean_difference_of_the_distillation_loss_has_a_paired_interval(tmp_path):
    runs = [write_run(tmp_path / "kd00", kd_weight=0.0), write_run(tmp_path / "kd05")]
    for seed, run in enumerate(runs):
        write_evaluation(run, rows(FAKES, seed=seed))

    (effect,) = write_report(runs, tmp_path / "out")["comparisons"][0]["distillation"]

    found = effect["mean"]["average_precision"]
    assert found["difference"] == pytest.approx(found["with_loss"] - found["without"])
    assert found["interval"][0] < found["difference"] < found["interval"][1]


def test_the_papers_figures_are_shown_only_in_cells_that_it_has(tmp_path):
    run = trained_as_in_the_paper(tmp_path / "run")
    write_evaluation(run, of_group(rows(FAKES | {"pndm": 1.0}), "imagenet"))

    content = write_report([run], tmp_path / "out")

    assert generator_of(content, "adm")["paper"] == {"accuracy": 0.984, "average_precision": 0.995, "table": "1 and 3"}
    assert generator_of(content, "sdv1")["paper"] == {"accuracy": 0.99, "average_precision": 0.997, "table": "1 and 3"}
    assert generator_of(content, "pndm")["paper"] is None
    assert results_of(content)["paper_mean"] is None
    text = markdown_of(tmp_path / "out")
    assert text.count("paper: 98.4 / 99.5") == 1
    assert "are from arXiv 2406.00856" in text


@pytest.mark.parametrize(
    "different",
    [
        "other source",
        "other generator seen",
        "other weight",
        "other group",
        "no groups known",
        "other split",
        "eps alone",
    ],
)
def test_a_cell_that_differs_from_the_papers_shows_nothing_of_it(tmp_path, different):
    method = "eps" if different == "eps alone" else "distildire"
    run = trained_as_in_the_paper(tmp_path / "run", method=method, kd=0.3 if different == "other weight" else 0.5)
    if different == "other source":
        change(run / "config.json", groups=["ImageNet", "lsun"])
    if different == "no groups known":
        change(run / "config.json", groups=[])
    if different == "other generator seen":
        change(run / "config.json", seen_generators=["ADM", "LDM"])
    scored = of_group(rows(FAKES), "celebahq" if different == "other group" else "imagenet")
    folder = write_evaluation(run, scored)
    if different == "other split":
        change(folder / "evaluation.json", split="val")

    content = write_report([run], tmp_path / "out")

    assert [one["paper"] for one in results_of(content)["generators"]] == [None, None]
    assert "paper:" not in markdown_of(tmp_path / "out")
    assert "2406.00856" not in markdown_of(tmp_path / "out")


def test_the_papers_average_is_shown_if_all_its_generators_were_tested(tmp_path):
    run = trained_as_in_the_paper(tmp_path / "run", source="CelebA-HQ", method="dire")
    faces = of_group(rows({"IF": 1.0, "dalle2": 1.0, "sd_v2": 1.0, "midjourney": 1.0}), "celebahq")
    write_evaluation(run, of_group(rows(FAKES), "imagenet") + faces)

    content = write_report([run], tmp_path / "out")

    assert results_of(content)["paper_mean"] == {"accuracy": 0.9, "average_precision": 0.944, "table": "1"}
    assert all(one["paper"] for one in results_of(content)["generators"])


def test_the_papers_ablation_is_shown_below_the_effect_of_the_distillation_loss(tmp_path):
    runs = [trained_as_in_the_paper(tmp_path / "kd00", kd=0.0), trained_as_in_the_paper(tmp_path / "kd05")]
    for seed, run in enumerate(runs):
        write_evaluation(run, of_group(rows(FAKES, seed=seed), "imagenet"))

    write_report(runs, tmp_path / "out")

    text = markdown_of(tmp_path / "out")
    (row,) = [line for line in text.splitlines() if line.startswith("| sdv1 | ") and line.count("paper: ") == 6]
    cells = [cell.split("paper: ")[1].strip() for cell in row.strip("| ").split(" | ")[1:]]
    assert cells == ["96.6", "99.0", "+2.4", "99.5", "99.7", "+0.2"]


def test_the_papers_averages_follow_from_the_cells_that_are_stored():
    content = paper()
    for row in content["detection"]:
        cells = list(row["cells"].values())
        assert set(row["cells"]) == set(content["generators"])
        np.testing.assert_allclose(np.mean(cells, axis=0), row["average"], atol=0.0501, err_msg=str(row))
    rows_of = {
        (r["kd_weight"], r["trained_on"]): r["average"] for r in content["detection"] if r["method"] == "distildire"
    }
    gains = [np.subtract(rows_of[0.5, source], rows_of[0.0, source]) for source in content["training"]]
    np.testing.assert_allclose(np.mean(gains, axis=0), content["distillation_difference"], atol=0.0501)


def test_the_papers_costs_agree_with_what_it_says_of_them():
    costs = {one.method: one for one in paper_costs()}

    assert costs["dire"].seconds / costs["distildire"].seconds == pytest.approx(
        paper()["costs"]["speed_against_dire"], abs=0.05
    )
    assert 1 - costs["distildire"].tflop / costs["dire"].tflop == pytest.approx(0.97, abs=0.005)


def test_a_generator_of_two_families_has_that_of_most_of_its_images():
    found = per_generator(
        [0, 1, 1, 1], [0.1, 0.9, 0.8, 0.7], ["", "x", "x", "x"], ["g"] * 4, families=["real", "gan", "diffusion", "gan"],
        replicates=2,
    )  # fmt: skip

    assert found["x"].family == "gan"
