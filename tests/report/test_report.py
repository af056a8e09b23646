"""The report of run folders: its content, the errors, and that it is reproducible."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.errors import UsageError, UserError
from distil_cache.report import SCHEMA_VERSION, Addition, Figure, Section, Table, png_panel, write_report
from run_folders import rows, write_evaluation, write_run

FAKES = {"adm-a": 2.5, "adm-b": 0.8}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One run with one evaluation."""
    folder = write_run(tmp_path / "kd05")
    write_evaluation(folder, rows(FAKES))
    return folder


def known_rows(correct_reals: int, correct_fakes: int, *, generator: str = "adm-a") -> list[dict]:
    """Ten real and ten generated images, with these numbers of correct scores."""
    found = rows({generator: 0.0}, reals=10, fakes=10)
    for number, row in enumerate(found):
        right = number < correct_reals if row["label"] == 0 else number - 10 < correct_fakes
        row["score"] = 0.9 if right == (row["label"] == 1) else 0.1
    return found


def result_of(content: dict, generator: str, *, comparison: int = 0, result: int = 0) -> dict:
    found = content["comparisons"][comparison]["results"][result]["generators"]
    return next(entry for entry in found if entry["generator"] == generator)


def page_of(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_report_holds_accuracy_ap_and_counts_of_each_test_generator(tmp_path):
    folder = write_run(tmp_path / "kd05")
    write_evaluation(folder, known_rows(9, 7))

    content = write_report([folder], tmp_path / "out")

    found = result_of(content, "adm-a")
    assert (found["real"], found["fake"]) == (10, 10)
    assert found["accuracy"] == pytest.approx(0.8)
    assert (found["real_accuracy"], found["fake_accuracy"]) == (pytest.approx(0.9), pytest.approx(0.7))
    # 7 fakes and 1 real share the upper score, the rest the lower
    assert found["average_precision"] == pytest.approx(0.7 * 7 / 8 + 0.3 * 10 / 20)
    assert found["accuracy_interval"][0] < 0.8 < found["accuracy_interval"][1]
    assert content == json.loads((tmp_path / "out/report.json").read_text())
    assert content["schema_version"] == SCHEMA_VERSION
    assert "80.0 / 76.2" in page_of(tmp_path / "out")
    assert "80.0 / 76.2" in (tmp_path / "out/report.md").read_text()


def test_the_mean_is_unweighted_over_generators(run, tmp_path):
    content = write_report([run], tmp_path / "out")

    result = content["comparisons"][0]["results"][0]
    by_generator = [entry["average_precision"] for entry in result["generators"]]
    assert len(by_generator) == 2
    assert result["mean"]["average_precision"] == pytest.approx(np.mean(by_generator))


def test_generators_seen_in_training_are_marked_with_a_star(run, tmp_path):
    write_report([run], tmp_path / "out")

    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', page_of(tmp_path / "out"))
    assert "adm-a*" in heads
    assert "adm-b" in heads


def test_a_generator_that_only_some_runs_saw_is_marked_in_their_cells(run, tmp_path):
    other = write_run(tmp_path / "both", seen=["adm-a", "adm-b"])
    write_evaluation(other, rows(FAKES, seed=1))

    write_report([run, other], tmp_path / "out")

    page = page_of(tmp_path / "out").partition('<section id="setting-')[2]
    assert "adm-b*" not in page
    assert len(re.findall(r"\d \*|\d\*<", page)) == 1


def test_runs_that_share_all_but_the_seed_are_summarised(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(3)]
    for seed, folder in enumerate(runs):
        write_evaluation(folder, rows(FAKES, seed=seed))
    other = write_run(tmp_path / "eps", method="eps")
    write_evaluation(other, rows(FAKES, seed=9))

    content = write_report([*runs, other], tmp_path / "out")

    (summary,) = content["comparisons"][0]["over_seeds"]
    accuracies = [result_of(content, "adm-b", result=index)["accuracy"] for index in range(3)]
    assert summary["seeds"] == [0, 1, 2]
    assert summary["generators"]["adm-b"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["generators"]["adm-b"]["accuracy"]["spread"] == pytest.approx(np.std(accuracies, ddof=1))


def test_the_effect_of_the_distillation_loss_is_the_difference_of_runs_that_share_the_rest(tmp_path):
    without, with_loss = write_run(tmp_path / "kd00", kd_weight=0.0), write_run(tmp_path / "kd05")
    write_evaluation(without, known_rows(9, 6))
    write_evaluation(with_loss, known_rows(9, 8))

    content = write_report([without, with_loss], tmp_path / "out")

    (effect,) = content["comparisons"][0]["distillation"]
    found = effect["generators"]["adm-a"]["accuracy"]
    assert (effect["without"], effect["with"]) == (["kd00"], ["kd05"])
    assert found["difference"] == pytest.approx(0.1)
    # paired: only two of 20 images changed sides, and as few might change back on other images
    assert -0.1 < found["interval"][0] < 0.1 < found["interval"][1]
    assert "+10.0" in page_of(tmp_path / "out")


def test_runs_that_differ_in_more_than_the_distillation_weight_are_not_compared(tmp_path):
    without, with_loss = write_run(tmp_path / "kd00", kd_weight=0.0), write_run(tmp_path / "kd05")
    record = json.loads((without / "config.json").read_text())
    record["config"]["epochs"] = 30
    (without / "config.json").write_text(json.dumps(record))
    for folder in (without, with_loss):
        write_evaluation(folder, rows(FAKES))

    assert write_report([without, with_loss], tmp_path / "out")["comparisons"][0]["distillation"] == []


def test_a_difference_between_other_images_has_no_paired_interval(tmp_path):
    without, with_loss = write_run(tmp_path / "kd00", kd_weight=0.0), write_run(tmp_path / "kd05")
    write_evaluation(without, rows(FAKES))
    write_evaluation(with_loss, rows(FAKES, reals=20))

    content = write_report([without, with_loss], tmp_path / "out")

    assert content["comparisons"][0]["distillation"][0]["generators"]["adm-a"]["accuracy"]["interval"] is None
    assert any("scored on different images" in note for note in content["notes"])


def test_each_evaluation_setting_has_its_own_tables(run, tmp_path):
    write_evaluation(run, rows(FAKES, seed=4), name="photos-test-resize", transform="resize")

    content = write_report([run], tmp_path / "out")

    assert [c["title"] for c in content["comparisons"]] == [
        "photos, split test, centre crop",
        "photos, split test, resized",
    ]
    assert page_of(tmp_path / "out").count("<caption>Accuracy and AP by test generator") == 2


def test_a_crop_that_cropped_nothing_is_noted(tmp_path):
    folder = write_run(tmp_path / "kd05")
    write_evaluation(folder, rows(FAKES), transform="crop", applied="resize")

    notes = write_report([folder], tmp_path / "out")["notes"]

    assert sum("instead of cropped" in note for note in notes) == 1


def test_files_that_the_build_rejected_are_counted_by_reason(tmp_path):
    folder = write_run(tmp_path / "kd05")
    write_evaluation(folder, rows(FAKES), set_aside={"leaked": 2, "label-conflict": 1})

    notes = write_report([folder], tmp_path / "out")["notes"]

    assert sum("1 label-conflict, 2 leaked" in note for note in notes) == 1
    assert sum("fewer than 80 images of a class" in note for note in notes) == 1
    assert sum("finds at 1 % false positives have an upper bound alone" in note for note in notes) == 1


def test_intervals_resample_whole_clusters_where_they_are_given(run, tmp_path):
    scored = rows(FAKES)
    scenes = {row["key"]: f"scene {number % 5}" for number, row in enumerate(scored)}

    by_image = result_of(write_report([run], tmp_path / "a"), "adm-b")
    content = write_report([run], tmp_path / "b", clusters=scenes)
    by_scene = result_of(content, "adm-b")

    assert by_scene["average_precision"] == by_image["average_precision"]
    assert by_scene["average_precision_interval"] != by_image["average_precision_interval"]
    assert content["intervals"]["resampled"] == "cluster"


def test_source_groups_are_clusters_by_default_where_there_are_many(tmp_path):
    run = write_run(tmp_path / "run")
    write_evaluation(run, [row | {"group": f"scene {number % 12}"} for number, row in enumerate(rows({"adm-b": 1.0}))])

    by_group = write_report([run], tmp_path / "a")
    by_image = write_report([run], tmp_path / "b", cluster="image")

    assert [one["column"] for one in by_group["intervals"]["clusters"]] == ["group"]
    assert by_group["intervals"]["resampled"] == "cluster"
    assert any("whole clusters by `group`, 12 of the class" in note for note in by_group["notes"])
    assert by_image["intervals"]["resampled"] == "image"
    first, second = (result_of(one, "adm-b")["auc_interval"] for one in (by_group, by_image))
    assert first != second


def test_a_cluster_column_that_does_not_divide_the_images_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    write_evaluation(run, [row | {"group": "photos"} for row in rows(FAKES)])

    with pytest.raises(UsageError, match="all images have the same group"):
        write_report([run], tmp_path / "out", cluster="group")


def test_a_generator_without_real_images_has_no_ap_and_stays_out_of_the_mean(tmp_path):
    folder = write_run(tmp_path / "kd05")
    lonely = [row | {"group": "elsewhere"} for row in rows({"lonely": 1.0}) if row["label"] == 1]
    write_evaluation(folder, known_rows(9, 7) + lonely)

    content = write_report([folder], tmp_path / "out")

    assert result_of(content, "lonely")["average_precision"] is None
    assert content["comparisons"][0]["results"][0]["mean"]["accuracy"] == pytest.approx(0.8)
    assert any("lonely" in note and "no real images" in note for note in content["notes"])


def test_a_run_without_an_evaluation_is_named_and_its_training_still_shown(run, tmp_path):
    bare = write_run(tmp_path / "bare", seed=1)

    content = write_report([run, bare], tmp_path / "out")

    assert any(note.startswith("Run bare has no evaluation") for note in content["notes"])
    assert "bare ends at" in page_of(tmp_path / "out")


def test_a_report_without_any_evaluation_is_refused(tmp_path):
    bare = write_run(tmp_path / "bare")

    with pytest.raises(UserError, match=r"no evaluation.*distil-cache evaluate"):
        write_report([bare], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_runs_are_refused_with_a_sentence(run, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(UsageError, match="no run was given"):
        write_report([], tmp_path / "out")
    with pytest.raises(UsageError, match="given twice"):
        write_report([run, run / ".." / run.name], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        write_report([run], tmp_path / "file")


def test_damaged_evaluations_are_refused_with_what_to_do(run, tmp_path):
    folder = run / "evaluations/photos-test-crop"
    scores = (folder / "scores.parquet").read_bytes()

    (folder / "scores.parquet").write_bytes(scores[:200])
    with pytest.raises(UserError, match="evaluate again"):
        write_report([run], tmp_path / "out")

    (folder / "scores.parquet").write_bytes(scores)
    (folder / "evaluation.json").write_text('{"dataset": "photos"}')
    with pytest.raises(UserError, match=r"revision: field required\)\. Delete .* and evaluate again"):
        write_report([run], tmp_path / "out")


DAMAGE: dict[str, bytes] = {
    "deep": b"[" * 100_000,
    "deep in a field": b'{"config": {"method": "eps", "dataset": "d", "x": ' + b"[" * 100_000,
    "not UTF-8": b'{"config": {"method": "\xff"}}',
    "a lone surrogate": b'{"config": {"method": "\\ud800", "dataset": "d"}}',
    "a list": b"[]",
    "a number": b"7",
    "empty": b"",
    "null": b"null",
    "a text in the place of a number": b'{"config": {"method": "eps", "dataset": "d", "seed": "one"}, "version": "x"}',
    "an object in the place of a text": b'{"config": {"method": {}, "dataset": "d"}, "dataset": {}, "runs": [{}]}',
    "numbers that are not finite": b'{"config": {"method": "eps", "dataset": "d", "kd_weight": NaN}, "threshold": NaN}',
    "a missing key": b"{}",
    "other lists": b'{"config": {"method": "eps", "dataset": "d"}, "others": [1], "fingerprints": [], "samples": 3}',
}


FILES = [
    "config.json",
    "metrics.jsonl",
    "calibration.json",
    "swap.json",
    "evaluations/photos-test-crop/evaluation.json",
    "evaluations/photos-test-crop/audit.json",
    "evaluations/photos-test-crop/gallery/gallery.json",
    "evaluations/photos-test-crop/scores.parquet",
    "evaluations/photos-test-crop/dire.parquet",
]
DAMAGED = [
    (name, damage) for name in FILES for damage in DAMAGE if not (name.endswith("gallery.json") and damage == "a list")
]
"""An empty gallery is a list."""


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_a_damaged_file_of_a_run_is_a_sentence_that_names_it(run: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(DAMAGE[damage] + (b"}\n" if name == "metrics.jsonl" else b""))
    with pytest.raises(UserError) as refused:
        write_report([run], tmp_path / "out")
    assert path.name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", ["config.json", "evaluations/photos-test-crop/evaluation.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError):
        write_report([run], tmp_path / "out")


def test_a_line_that_a_kill_cut_off_is_left_out(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "lo')
    assert write_report([run], tmp_path / "out")["runs"]


def test_a_table_of_a_few_bytes_that_decodes_to_gigabytes_is_not_read(run: Path, tmp_path: Path) -> None:
    table = pa.table({"key": pa.array(["x" * 2**20]).take(pa.array([0] * 2000))})
    pq.write_table(table, run / "evaluations/photos-test-crop/scores.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"scores\.parquet: unreadable \(its [\d,]+ bytes decode to"):
        write_report([run], tmp_path / "out")


def test_scores_of_a_diverged_training_are_refused(tmp_path):
    folder = write_run(tmp_path / "diverged")
    write_evaluation(folder, [row | {"score": float("nan")} for row in rows(FAKES)])

    with pytest.raises(UserError, match="diverged"):
        write_report([folder], tmp_path / "out")


def test_a_gallery_cannot_show_a_file_from_elsewhere(run, tmp_path):
    (run / "config.png").write_bytes(b"secret")
    gallery = run / "evaluations/photos-test-crop/gallery"
    gallery.mkdir()
    entry = {"key": "0", "label": 0, "generator": "", "score": 0.1, "image": "../../../config.png"}
    (gallery / "gallery.json").write_text(json.dumps([entry]))

    with pytest.raises(UserError, match="not in the folder"):
        write_report([run], tmp_path / "out")


def test_a_last_line_of_metrics_that_was_cut_off_is_left_out(run, tmp_path):
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 4, "bce": 0.')

    content = write_report([run], tmp_path / "out")

    assert [line["epoch"] for line in content["runs"][0]["history"]] == [1, 2, 3]


def test_runs_of_one_name_are_distinguished_by_their_parents(tmp_path):
    runs = [write_run(tmp_path / parent / "kd05") for parent in ("a", "b")]
    for folder in runs:
        write_evaluation(folder, rows(FAKES))

    content = write_report(runs, tmp_path / "out")

    assert [entry["name"] for entry in content["runs"]] == ["a/kd05", "b/kd05"]


def test_a_second_report_differs_only_in_its_date(run, tmp_path):
    write_evaluation(run, rows(FAKES), name="photos-test-resize", transform="resize", dire=True, gallery=2)

    first = write_report([run], tmp_path / "one")
    second = write_report([run], tmp_path / "two")

    for name in ("report.html", "report.md", "report.json"):
        one = (tmp_path / "one" / name).read_text().replace(first["created"], "DATE")
        two = (tmp_path / "two" / name).read_text().replace(second["created"], "DATE")
        assert one == two, name


def test_names_from_files_cannot_become_markup(tmp_path):
    name = '<script>alert("x")</script> $a_b$ | *'
    folder = write_run(tmp_path / "kd05", seen=[name])
    write_evaluation(folder, rows({name: 1.0}), dire=True, gallery=1)

    write_report([folder], tmp_path / "out")

    assert page_of(tmp_path / "out").count("<script") == 1  # the page's own
    assert "<script>alert" not in page_of(tmp_path / "out")
    assert "&lt;script&gt;" in page_of(tmp_path / "out")
    table_rows = [line for line in (tmp_path / "out/report.md").read_text().splitlines() if line.startswith("|")]
    assert "<script" not in "".join(table_rows)
    assert len({line.count("|") - line.count("\\|") for line in table_rows[:3]}) == 1


def test_the_mean_dire_of_each_class_is_shown_with_its_interval(run, tmp_path):
    write_evaluation(run, rows(FAKES), name="photos-test-resize", transform="resize", dire=True)

    content = write_report([run], tmp_path / "out")

    classes = content["comparisons"][1]["mean_dire"]
    assert [(entry["label"], entry["generator"], entry["images"]) for entry in classes] == [
        (0, "", 40),
        (1, "adm-a", 30),
        (1, "adm-b", 30),
    ]
    assert classes[0]["interval"][0] < classes[0]["mean"] < classes[0]["interval"][1]
    assert classes[0]["mean"] > classes[1]["mean"]


def test_a_caller_can_add_sections_with_text_table_and_figures(run, tmp_path):
    table = Table("Baselines.", ["baseline", "AP"], [["Laplacian energy", "61.0"]], note="By scene.")
    figure = Figure("Samples.", (png_panel("Samples", "a grid of samples", b"png"),))
    section = Section("Controls", "First & foremost.\n\nSecond.", table, [figure])

    content = write_report([run], tmp_path / "out", additions=[Addition("controls", [section], {"AP": 0.61})])

    page = page_of(tmp_path / "out")
    assert "<p>First &amp; foremost.</p>" in page
    assert '<th scope="row">Laplacian energy</th>' in page
    assert 'alt="a grid of samples"' in page
    assert "Laplacian energy" in (tmp_path / "out/report.md").read_text()
    assert content["sections"][0]["table"]["rows"] == [["Laplacian energy", "61.0"]]
    assert content["extra"] == {"controls": {"AP": 0.61}}


def test_ids_on_the_page_are_unique_and_every_reference_resolves(run, tmp_path):
    write_evaluation(run, rows(FAKES), name="photos-test-resize", transform="resize", dire=True)

    write_report([run], tmp_path / "out")

    page = page_of(tmp_path / "out")
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(identifiers)
