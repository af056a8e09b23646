"""Parts of the report's page: the matrix of trainings and tests, reliability, gallery, anchors, security policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from distil_cache.metrics.calibration import reliability, share_interval
from distil_cache.report import Table, write_report
from distil_cache.report.inputs.measured import measure
from distil_cache.report.inputs.runs import read_runs
from distil_cache.report.layout.figures import reliability_figures
from distil_cache.report.layout.matrix import NARROWEST, heat_scale, matrices
from distil_cache.report.layout.page import anchors, few_pixels, heat
from distil_cache.train.evaluation.gallery import chosen_rows
from run_folders import rows, write_evaluation, write_run

FAKES = {"adm-a": 2.5, "adm-b": 0.8}


def matrices_of(*runs: Path) -> list[Table]:
    return matrices(measure(read_runs(runs), None))


def first_lines(cells: list[str]) -> list[str]:
    return [cell.split("\n")[0] for cell in cells]


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_the_matrix_has_a_row_per_configuration_and_a_column_per_generator_of_every_dataset(tmp_path):
    kd, eps = write_run(tmp_path / "kd"), write_run(tmp_path / "eps", method="eps", seen=["adm-b"])
    for run in (kd, eps):
        write_evaluation(run, rows(FAKES))
        other = write_evaluation(run, rows({"sd": 1.0}), name="art-test-crop")
        change(other / "evaluation.json", dataset="art", revision="9" * 16)

    (matrix,) = matrices_of(kd, eps)

    assert first_lines(matrix.columns) == ["run", "adm-a", "adm-b", "sd", "mean"]
    assert [column.partition("\n")[2] for column in matrix.columns[1:4]] == ["photos", "photos", "art"]
    assert first_lines([row[0] for row in matrix.rows]) == ["kd", "eps"]
    assert [[cell.split("\n")[0].endswith("*") for cell in row[1:4]] for row in matrix.rows] == [
        [True, False, False],
        [False, True, False],
    ]


def test_the_matrix_shows_ap_and_accuracy_shades_by_ap_and_takes_the_mean_over_seeds(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        write_evaluation(run, rows(FAKES, seed=seed))
    content = write_report(runs, tmp_path / "out")
    scores = [result["generators"] for result in content["comparisons"][0]["results"]]
    ap = [np.mean([one[index]["average_precision"] for one in scores]) for index in (0, 1)]
    accuracy = [np.mean([one[index]["accuracy"] for one in scores]) for index in (0, 1)]

    (matrix,) = matrices_of(*runs)

    spread = [np.std([one[index]["average_precision"] for one in scores], ddof=1) for index in (0, 1)]
    (row,), (shades,) = matrix.rows, matrix.shades
    assert row[0].startswith("distildire, distillation weight 0.5\nmean of 2 runs\n")
    assert row[1:3] == [
        f"{100 * ap[0]:.1f} ± {100 * spread[0]:.1f}*\n{100 * accuracy[0]:.1f}",
        f"{100 * ap[1]:.1f} ± {100 * spread[1]:.1f}\n{100 * accuracy[1]:.1f}",
    ]
    assert ap[0] - ap[1] > NARROWEST
    assert shades == pytest.approx([1.0, 0.1, 0.55])
    assert matrix.scale == (f"{100 * ap[1]:.1f}", f"{100 * ap[0]:.1f}")


def test_a_heat_map_of_nearly_equal_values_stays_in_one_colour():
    assert heat_scale([0.9, None, 0.91]) == pytest.approx((0.88, 0.93))
    assert heat_scale([0.5, 0.9]) == (0.5, 0.9)
    assert heat_scale([None]) == (0.5, 1.0)


def test_a_row_with_a_missing_cell_has_no_mean(tmp_path):
    full, part = write_run(tmp_path / "full"), write_run(tmp_path / "part", method="eps")
    write_evaluation(full, rows(FAKES))
    write_evaluation(part, rows({"adm-a": 1.0}))

    (matrix,) = matrices_of(full, part)

    assert matrix.columns == ["run", "adm-a", "adm-b", "mean"]
    assert first_lines(matrix.rows[1])[2:] == ["–", "–"]
    assert matrix.rows[0][3] != "–"


def test_each_protocol_has_a_matrix_and_a_single_cell_has_none(tmp_path):
    run = write_run(tmp_path / "kd")
    write_evaluation(run, rows(FAKES))
    write_evaluation(run, rows(FAKES), name="photos-test-resize", transform="resize")
    lone = write_run(tmp_path / "lone")
    write_evaluation(lone, rows({"adm-a": 1.0}))

    assert [matrix.caption.partition(": ")[2] for matrix in matrices_of(run)] == [
        "split test, centre crop.",
        "split test, resized.",
    ]
    assert matrices_of(lone) == []


def test_bins_hold_the_mean_score_and_the_share_of_generated_images():
    scores = np.array([0.05] * 10 + [0.1] * 10 + [0.95] * 8 + [0.5] * 4)
    labels = np.array([0] * 20 + [1] * 6 + [0] * 2 + [1] * 4)

    low, high = reliability(labels, scores)  # the four at 0.5 are too few

    assert (low.images, low.mean_score, low.share) == (20, pytest.approx(0.075), 0.0)
    assert (high.images, high.mean_score, high.share) == (8, pytest.approx(0.95), 0.75)
    assert high.interval == share_interval(6, 8)
    assert [one.images for one in reliability(np.zeros(6), np.array([0.0] * 5 + [1.0]))] == [5]


def test_the_interval_of_a_share_is_wilsons():
    assert share_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


def test_reliability_is_drawn_for_generators_with_reals_and_says_what_it_shows(tmp_path):
    run = write_run(tmp_path / "kd")
    lonely = [row | {"group": "elsewhere"} for row in rows({"lonely": 1.0}) if row["label"] == 1]
    write_evaluation(run, rows(FAKES) + lonely)
    (results,) = measure(read_runs([run]), None).values()

    (figure,) = reliability_figures("photos", results)

    assert [panel.title for panel in figure.panels] == ["adm-a", "adm-b"]
    assert re.search(r"kd: \d+ % generated where the mean score is 0\.\d\d", figure.panels[0].alt)


def test_the_gallery_takes_mistakes_of_both_classes_however_sure_one_of_them_is():
    keys = np.array([f"{n:032x}" for n in range(60)])
    label = np.array([0] * 30 + [1] * 30)
    logits = np.where(label == 1, 1.0, -1.0)
    logits[:20] = 5.0 + np.arange(20) / 10  # twenty reals taken for generated, with great certainty
    logits[30:33] = -0.5, -0.6, -0.7  # and three generated images taken for real

    shown = chosen_rows(keys, label, logits)

    assert shown[:8].tolist() == [19, 18, 17, 16, 15, 32, 31, 30]
    assert label[shown[8:]].tolist().count(1) == 2


def test_the_page_shows_mistakes_first_and_says_what_they_were_taken_for(tmp_path):
    run = write_run(tmp_path / "kd")
    folder = write_evaluation(run, rows(FAKES), gallery=2)
    gallery = folder / "gallery/gallery.json"
    entries = json.loads(gallery.read_text())
    for entry, score in zip(entries, (0.2, 0.97, 0.9, 0.03), strict=True):
        entry["score"] = score
    gallery.write_text(json.dumps(entries))

    write_report([run], tmp_path / "out")

    text = (tmp_path / "out/report.html").read_text()
    assert text.index("<h4>Mistakes</h4>") < text.index("real, called generated, score 0.970")
    assert text.index("generated by adm-b, called real, score 0.030") < text.index("<h4>Correct</h4>")
    assert text.index("<h4>Correct</h4>") < text.index("real, score 0.200")


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_are_not():
    def png(width: int) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + width.to_bytes(4, "big")

    assert few_pixels(png(32))
    assert not few_pixels(png(256))


def test_shades_become_steps_and_a_missing_value_has_none():
    assert [heat(shade) for shade in (None, 0.0, 0.52, 1.0, 1.3, -0.4)] == [
        "heat h0",
        "heat h0",
        "heat h5",
        "heat h10",
        "heat h10",
        "heat h0",
    ]


def test_anchors_follow_the_titles_and_are_unique():
    titles = ["photos, split test", "Photos: split <test>", "写真", "絵"]

    assert anchors(titles, "setting") == [
        "setting-photos-split-test",
        "setting-photos-split-test--2",
        "setting",
        "setting--2",
    ]


def test_each_run_says_which_features_and_software_made_it(tmp_path):
    run, bare = write_run(tmp_path / "kd"), write_run(tmp_path / "bare")
    write_evaluation(run, rows(FAKES))
    change(bare / "config.json", fingerprints=None, versions=None)

    write_report([run, bare], tmp_path / "out")

    text = (tmp_path / "out/report.html").read_text()
    assert f"<dd>eps {'2' * 16}, image {'1' * 16}, teacher {'3' * 16}</dd>" in text
    assert "<dt>software</dt><dd>torch 2.0</dd>" in text
    assert text.count("<dd>not recorded</dd>") == 2


def test_the_policy_names_the_hash_of_the_pages_only_script(tmp_path):
    run = write_run(tmp_path / "kd")
    write_evaluation(run, rows(FAKES))

    write_report([run], tmp_path / "out")

    text = (tmp_path / "out/report.html").read_text()
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    policy = re.findall('Content-Security-Policy" content="([^"]*)"', text)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy.replace("&#39;", "'").replace("&#43;", "+")
    assert "<button" not in text  # the script makes them: without it the heads are plain words
