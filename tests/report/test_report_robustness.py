"""Robustness in the report: which evaluations make a curve, changes and their intervals, missing evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_cache.errors import UserError
from distil_cache.report.inputs.runs import read_runs
from distil_cache.report.sections.robustness import robustness, robustness_curves
from distil_cache.report.write import write_report
from run_folders import rows, write_evaluation, write_run
from sklearn.metrics import average_precision_score


def scored(sharpness: float, *, seed: int = 0) -> list[dict[str, Any]]:
    return rows({"adm-a": sharpness, "adm-b": sharpness + 0.5}, seed=seed)


def add(run: Path, perturbation: str, sharpness: float, **changes: Any) -> Path:
    """An evaluation of the run on photos, perturbed."""
    name = f"photos@{perturbation.replace(':', '-')}"
    folder = write_evaluation(run, scored(sharpness), name=f"{name}-test-crop")
    path = folder / "evaluation.json"
    origin = {"dataset": "photos", "revision": "abcdef0123456789", "perturbation": perturbation}
    info = json.loads(path.read_text()) | {"dataset": name, "origin": origin} | changes
    path.write_text(json.dumps(info))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs; the first on four perturbations and none, the second on two of them and none."""
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    for run in (first, second):
        write_evaluation(run, scored(4.0))
    for perturbation, sharpness in {"jpeg:75": 3.0, "jpeg:90": 3.5, "blur:0.5": 2.5, "blur:2": 1.0}.items():
        add(first, perturbation, sharpness)
    add(second, "jpeg:75", 3.5)
    add(second, "blur:2", 0.5)
    return [first, second]


def test_points_are_ordered_by_kind_and_damage_with_the_unperturbed_first(runs: list[Path]) -> None:
    ((way, curves),) = robustness_curves(read_runs(runs), None).items()
    assert way == ("photos", "test", "crop", "")
    assert [[p.perturbation.text if p.perturbation else None for p in one.points] for one in curves] == [
        [None, "jpeg:90", "jpeg:75", "blur:0.5", "blur:2"],
        [None, "jpeg:75", "blur:2"],
    ]
    assert [severity for severity, _ in curves[0].of("jpeg")] == [0, 11, 26]
    assert [severity for severity, _ in curves[0].of("blur")] == [0, 0.5, 2]


def test_values_are_means_over_generators_and_changes_are_against_the_same_images(runs: list[Path]) -> None:
    addition = robustness(read_runs(runs), None)
    assert addition is not None
    (group,) = addition.content
    points = {point["perturbation"]: point for point in group["runs"][0]["points"]}

    def mean_ap(sharpness: float) -> float:
        table = scored(sharpness)
        of = [[r for r in table if r["generator"] in ("", name)] for name in ("adm-a", "adm-b")]
        return float(np.mean([average_precision_score([r["label"] for r in t], [r["score"] for r in t]) for t in of]))

    found = points["blur:2"]["mean"]["average_precision"]
    assert found["value"] == pytest.approx(mean_ap(1.0), abs=1e-6)
    assert found["change"] == pytest.approx(mean_ap(1.0) - mean_ap(4.0), abs=1e-6)
    low, high = found["change_interval"]
    assert low < found["change"] < high < 0
    assert points[None]["mean"]["average_precision"]["change"] is None
    assert points["jpeg:75"]["images"] == 100


def test_the_interval_of_a_change_is_paired(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    write_evaluation(run, scored(2.0))
    add(run, "jpeg:99", 2.0)
    (curves,) = robustness_curves(read_runs([run]), None)[("photos", "test", "crop", "")]
    point = curves.of("jpeg")[1][1]
    assert point.change("accuracy") == 0
    low, high = point.change_interval("accuracy") or (0, 0)
    assert low == pytest.approx(-high)  # on other images they might differ, in less than this share of them
    assert 0 < high < 0.1


def test_report_shows_table_and_figures_and_keeps_perturbed_evaluations_out_of_the_comparisons(
    runs: list[Path], tmp_path: Path
) -> None:
    content = write_report(runs, tmp_path / "out")
    assert {comparison["setting"]["dataset"] for comparison in content["comparisons"]} == {"photos"}
    (section,) = [one for one in content["sections"] if one["title"].startswith("Robustness")]
    table = section["table"]
    assert table["columns"] == ["perturbation", "a", "b"]
    assert [row[0] for row in table["rows"]] == ["none", "jpeg 90", "jpeg 75", "blur 0.5", "blur 2"]
    assert [row[2] for row in table["rows"]][1] == "–"
    assert content["extra"]["robustness"][0]["runs"][1]["points"][2]["perturbation"] == "blur:2"
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("Robustness: photos, split test, centre crop", "Gaussian blur", "AP under perturbation"):
        assert words in page
    assert "Under perturbation: photos" in (tmp_path / "out" / "report.md").read_text()


def test_the_axis_names_the_settings_themselves(runs: list[Path]) -> None:
    addition = robustness(read_runs(runs), None)
    assert addition is not None
    figure, other = addition.sections[0].figures
    assert [panel.title for panel in figure.panels] == ["JPEG", "Gaussian blur"]
    assert figure.caption.startswith("Accuracy under perturbation")
    assert other.caption.startswith("AP under perturbation")
    assert figure.legend == ("a", "b")
    for text in (">none<", ">90<", ">75<", ">quality<"):
        assert text in figure.panels[0].svg
    assert "a goes from" in figure.panels[0].alt


def test_without_the_same_images_unperturbed_the_change_is_unknown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    write_evaluation(run, scored(4.0)[:-1])
    add(run, "noise:5", 3.0)
    addition = robustness(read_runs([run]), None)
    assert addition is not None
    assert "a: no evaluation on the same images unperturbed" in addition.sections[0].text
    (point,) = addition.content[0]["runs"][0]["points"]
    assert point["mean"]["accuracy"]["change"] is None
    assert addition.sections[0].table is not None
    assert [row[0] for row in addition.sections[0].table.rows] == ["noise 5"]


def test_each_protocol_has_its_own_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    write_evaluation(run, scored(4.0))
    add(run, "jpeg:75", 3.0)
    add(run, "jpeg:50", 3.0, transform="resize")
    assert set(robustness_curves(read_runs([run]), None)) == {
        ("photos", "test", "crop", ""),
        ("photos", "test", "resize", ""),
    }


def test_a_report_over_perturbed_evaluations_alone_and_over_none_is_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    add(run, "crop:0.8", 3.0)
    content = write_report([run], tmp_path / "out")
    assert content["comparisons"] == []
    assert content["extra"]["robustness"][0]["runs"][0]["points"][0]["severity"] == 0.2
    plain = write_run(tmp_path / "b")
    write_evaluation(plain, scored(4.0))
    assert "robustness" not in write_report([plain], tmp_path / "other")["extra"]


@pytest.mark.parametrize(
    "origin", ["jpeg:75", {"dataset": "photos"}, {"dataset": "photos", "perturbation": "jpeg:nan"}]
)
def test_an_origin_that_cannot_be_read_is_a_sentence(tmp_path: Path, origin: object) -> None:
    run = write_run(tmp_path / "a")
    add(run, "jpeg:75", 3.0, origin=origin)
    with pytest.raises(UserError, match="evaluate again"):
        robustness(read_runs([run]), None)


def test_a_second_report_is_the_same(runs: list[Path], tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        created = write_report(runs, tmp_path / name)["created"]
        pages.append((tmp_path / name / "report.html").read_text().replace(created, ""))
    assert pages[0] == pages[1]
