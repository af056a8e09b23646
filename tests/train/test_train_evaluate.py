"""Evaluation: every row is scored once, stored in the run, and read by the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import distil_cache as dc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.errors import UsageError, UserError
from distil_cache.report.inputs.runs import read_runs
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import evaluation_folder, run_evaluation
from distil_cache.train.evaluation.gallery import as_pixels, chosen_rows
from PIL import Image
from small_cache import make_cache, make_specs, rows, values_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(cache, run); the test split has one image twice, under two generators."""
    folder = tmp_path_factory.mktemp("trained")
    table = rows("train", 30, {"adm": 30}) + rows("test", 21, {"adm": 12, "sd": 9})
    table += [{**table[-1], "generator": "copy", "path": "again.png"}]
    cache, _ = make_cache(folder / "cache", table)
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=2, batch_size=16, lr=1e-3)
    run_training(config, cache.root, folder / "run")
    return cache.root, folder / "run"


def test_every_occurrence_is_scored_once_and_the_report_can_read_it(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    found = run_evaluation(run, cache, "pictures")
    scores = pq.read_table(run / "evaluations" / "pictures-test-crop" / "scores.parquet")
    assert found["counts"] == {"real": 21, "fake": 22}
    assert scores.num_rows == 43
    assert scores.column_names == ["key", "label", "generator", "family", "group", "score", "logit"]
    assert scores["generator"].to_pylist().count("copy") == 1
    np.testing.assert_allclose(scores["score"].to_numpy(), 1 / (1 + np.exp(-scores["logit"].to_numpy())), rtol=1e-5)
    evaluation = next(e for e in read_runs([run])[0].evaluations if e.name == "pictures-test-crop")
    assert len(evaluation.scores) == 43
    assert evaluation.seen == {"adm"}


def test_evaluating_again_changes_nothing(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    first = run_evaluation(run, cache, "pictures")
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    assert run_evaluation(run, cache, "pictures") == first
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == files


def test_the_python_function_takes_cache_and_dataset_from_the_run(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    scored = dc.evaluate(run)
    assert scored.json["defaults"] == {"cache": str(cache), "dataset": "pictures"}
    assert dc.evaluate(run, cache=cache, dataset="pictures").json == {**scored.json, "defaults": {}}
    assert scored.scores().num_rows == 43


@pytest.mark.parametrize("damage", ["cut", "column", "number"])
def test_stored_scores_that_are_damaged_are_one_sentence(
    trained: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    dc.evaluate(run)
    path = run / "evaluations" / "pictures-test-crop" / "scores.parquet"
    table = pq.read_table(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "column":
        pq.write_table(table.drop_columns(["group"]), path)
    else:
        scores = pa.array([float("nan"), *table["score"].to_pylist()[1:]], pa.float32())
        pq.write_table(table.set_column(table.column_names.index("score"), "score", scores), path)
    with pytest.raises(UserError, match=r"scores\.parquet: (unreadable|1 scores are not numbers)"):
        dc.evaluate(run)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"cache": "", "dataset": ""}, {}, r"names no data\. Give --cache and --dataset"),
        ({"cache": "", "dataset": ""}, {"cache": "c"}, r"names no data\. Give --dataset"),
        ({"others": [{"dataset": "more", "revision": "r", "build": "b"}]}, {}, "was trained on pictures, more"),
    ],
)
def test_a_run_that_does_not_say_what_to_score_is_refused(
    trained: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], given: dict[str, str], message: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained[1] / "config.json", run)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, **changes}))
    with pytest.raises(UsageError, match=message):
        dc.evaluate(run, **given)


def test_the_batch_size_changes_no_score(trained: tuple[Path, Path], tmp_path: Path) -> None:
    cache, run = trained
    run_evaluation(run, cache, "pictures", transform="resize", batch_size=5)
    path = run / "evaluations" / "pictures-test-resize" / "scores.parquet"
    small = pq.read_table(path)
    (path.parent / "evaluation.json").unlink()
    run_evaluation(run, cache, "pictures", transform="resize", batch_size=43)
    large = pq.read_table(path)
    assert small.select(["key", "generator"]) == large.select(["key", "generator"])
    np.testing.assert_allclose(small["logit"].to_numpy(), large["logit"].to_numpy(), rtol=1e-4, atol=1e-5)


def test_a_selection_is_another_evaluation(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    found = run_evaluation(run, cache, "pictures", select="generator=sd")
    assert found["counts"] == {"real": 21, "fake": 9}
    assert found["select"] == "generator=sd"
    assert len(list((run / "evaluations").glob("pictures-test-crop-*/scores.parquet"))) == 1


def test_an_evaluation_of_training_images_says_so(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    assert any(
        "learned from these images" in note for note in run_evaluation(run, cache, "pictures", split="train")["notes"]
    )
    assert not any("these images" in note for note in run_evaluation(run, cache, "pictures")["notes"])


def test_mean_dire_and_example_images_are_stored_for_the_report(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    run_evaluation(run, cache, "pictures")
    folder = run / "evaluations" / "pictures-test-crop"
    means = pq.read_table(folder / "dire.parquet").to_pylist()
    assert len(means) == 43
    expected = values_of("dire", means[7]["key"], means[7]["label"], make_specs()).mean() / 255
    assert means[7]["mean_dire"] == pytest.approx(expected, rel=1e-5)
    entries = json.loads((folder / "gallery" / "gallery.json").read_text())
    assert len(entries) == 12
    assert len({entry["key"] for entry in entries}) == 12
    shown = np.asarray(Image.open(folder / "gallery" / entries[0]["image"]))
    stored = values_of("image", entries[0]["key"], entries[0]["label"], make_specs())
    np.testing.assert_array_equal(shown, stored.transpose(1, 2, 0))


def test_the_gallery_shows_the_surest_mistakes_first() -> None:
    keys = np.array([f"{n:032x}" for n in range(20)] + [f"{3:032x}"])
    label = np.array([0, 1] * 10 + [1])
    logits = np.where(label == 1, 2.0, -2.0)
    logits[4], logits[7], logits[11] = 1.5, -3.0, -0.5
    shown = chosen_rows(keys, label, logits)
    assert shown[:3].tolist() == [7, 4, 11]
    assert len(set(keys[shown])) == len(shown) == 12
    assert abs(int(label[shown[3:]].sum()) * 2 - 9) == 1
    assert as_pixels(np.array([-9.0, 0.0, 3.0], np.float16).reshape(3, 1, 1)).ravel().tolist() == [0, 128, 255]


def test_what_cannot_be_evaluated_is_refused_with_a_sentence(trained: tuple[Path, Path], tmp_path: Path) -> None:
    cache, run = trained
    with pytest.raises(UserError, match="pictures: has no split 'val', only test, train"):
        run_evaluation(run, cache, "pictures", split="val")
    make_cache(cache, [*rows("train", 4, {"adm": 4}), *rows("val", 4, {"adm": 4})], name="no-test")
    with pytest.raises(UserError, match=r"no-test: has no split 'test', only train, val\. .*--split val"):
        run_evaluation(run, cache, "no-test")
    with pytest.raises(UserError, match="is not a run"):
        run_evaluation(tmp_path, cache, "pictures")
    make_cache(cache, rows("test", 4, {"adm": 4}), name="other-adm", adm="c")
    with pytest.raises(UserError, match="were built with other settings than those of the training"):
        run_evaluation(run, cache, "other-adm")


def test_a_student_of_raw_images_is_told_how_it_can_be_tested_on_one_history(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    make_cache(cache, rows("test", 4, {"adm": 4}), name="alike", harmonize="jpeg:95")
    with pytest.raises(UserError) as refused:
        run_evaluation(run, cache, "alike")
    said = str(refused.value)
    assert "built with --harmonize jpeg:95, unlike those of the training" in said
    assert "distil-cache audit --swap RUN --harmonize jpeg:95" in said
    assert f"build --cache {cache} --from-cache --dataset DATASET --perturb jpeg:95" in said
    assert "a folder with the files of alike saved again as JPEG" in said


def test_another_dataset_with_the_same_features_is_evaluated(trained: tuple[Path, Path]) -> None:
    cache, run = trained
    make_cache(cache, rows("test", 6, {"new": 5}, group="other"), name="unseen")
    found = run_evaluation(run, cache, "unseen")
    assert found["counts"] == {"real": 6, "fake": 5}
    assert found["seen_generators"] == ["adm"]


def setting(dataset: str, split: str, select: str | None = None) -> dict[str, Any]:
    return {"dataset": dataset, "split": split, "transform": "crop", "select": select}


def test_no_two_settings_share_the_folder_of_an_evaluation(tmp_path: Path) -> None:
    settings = [
        setting("a-b", "c"),
        setting("a", "b-c"),
        setting("a", "b/c"),
        setting("a", "b"),
        setting("a", "b", "generator=x"),
    ]
    assert len({evaluation_folder(tmp_path, **one) for one in settings}) == len(settings)
    assert evaluation_folder(tmp_path, **setting("photos-2", "test")).name == "photos-2-test-crop"
    assert evaluation_folder(tmp_path, **setting("a", "x" * 300)).name.startswith("a-crop~")


def test_a_folder_that_an_earlier_version_named_stays_that_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "a-b-c-crop").mkdir()
    stored = {**setting("a", "b-c"), "revision": "r", "build": "b"}
    (tmp_path / "a-b-c-crop" / "evaluation.json").write_text(json.dumps(stored))
    assert evaluation_folder(tmp_path, **setting("a", "b-c")).name == "a-b-c-crop"
    assert evaluation_folder(tmp_path, **setting("a-b", "c")).name != "a-b-c-crop"
