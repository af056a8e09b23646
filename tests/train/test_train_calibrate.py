"""The threshold chosen on validation: what it maximises, and the files that a training writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distil_cache.errors import UserError
from distil_cache.metrics.calibration import best_threshold, calibrate
from distil_cache.models.weights import file_digest
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.runs.folder import RunFolder
from run_state import as_of_before, best, best_file
from sklearn.metrics import balanced_accuracy_score
from small_cache import make_cache, rows


def test_the_threshold_is_the_middle_of_the_gap_that_tells_all_apart():
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)


def test_of_equally_good_gaps_the_one_nearest_to_a_half_is_taken():
    # one real among the fakes: below it and above the fake at 0.7, three quarters are right on either side
    labels, scores = [0, 1, 0, 1], [0.2, 0.3, 0.9, 0.95]

    assert best_threshold(labels, scores) == pytest.approx(0.25)
    assert best_threshold(labels, [0.01, 0.02, 0.6, 0.95]) == pytest.approx(0.775)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_reaches_a_higher_balanced_accuracy(seed: int):
    rng = np.random.default_rng(seed)
    labels = (rng.random(50) < 0.3).astype(int)
    scores = np.round(np.clip(0.3 + 0.3 * labels + 0.2 * rng.normal(size=50), 0, 1), 2)
    chosen = best_threshold(labels, scores)

    reached = balanced_accuracy_score(labels, scores > chosen)

    others = [balanced_accuracy_score(labels, scores > threshold) for threshold in np.linspace(0, 1, 401)]
    assert reached == pytest.approx(max(others))


def test_the_number_of_images_of_a_class_does_not_move_the_threshold():
    labels, scores = [0, 0, 0, 1, 1], [0.1, 0.2, 0.7, 0.6, 0.9]

    assert best_threshold(labels * 1 + [0] * 30, scores + [0.1, 0.2, 0.7] * 10) == best_threshold(labels, scores)


def test_without_both_classes_there_is_no_threshold():
    assert best_threshold([1, 1], [0.2, 0.9]) is None
    assert calibrate([0, 0], [0.2, 0.9], split="val", transform="crop", checkpoint_sha256="a") is None


def test_scores_that_say_nothing_leave_the_threshold_in_the_middle():
    assert best_threshold([0, 1], [0.0, 0.0]) == 0.5
    assert best_threshold([0, 1], [1.0, 1.0]) == 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training whose dataset has no validation split, so that some of ``train`` is held out."""
    folder = tmp_path_factory.mktemp("calibrated")
    cache, _ = make_cache(folder / "cache", rows("train", 40, {"adm": 40}) + rows("test", 4, {"adm": 4}))
    config = TrainConfig.checked(
        dataset="pictures", backbone="small", epochs=3, batch_size=16, lr=1e-3, val_fraction=0.3
    )
    run_training(config, cache.root, folder / "run")
    return folder / "run"


def test_a_training_leaves_the_validation_scores_and_the_threshold_of_its_best_student(run: Path):
    found, scores_file = best(run).calibration, best(run).scores
    assert found == RunFolder(run).load_student().calibration
    kept = pq.read_table(run / "checkpoints" / scores_file.name)

    assert kept.column_names == ["key", "label", "generator", "family", "group", "score"]
    assert kept.num_rows == RunFolder(run).read().samples["val"] == found.real + found.fake
    labels, scores = kept["label"].to_numpy(), kept["score"].to_numpy()
    assert found.threshold == best_threshold(labels, scores)
    assert found.accuracy == pytest.approx(np.mean((scores > found.threshold) == labels))
    assert found.checkpoint_sha256 == file_digest(best_file(run))
    line = max((json.loads(line) for line in (run / "metrics.jsonl").open()), key=lambda line: line["val_ap"])
    assert line["val_acc"] == pytest.approx(np.mean((scores > 0.5) == labels))


def test_the_threshold_of_another_student_is_not_used(run: Path, tmp_path: Path):
    again = Path(shutil.copytree(run, tmp_path / "run"))
    as_of_before(again)
    assert RunFolder(again).load_student().calibration == best(run).calibration
    of_another = best(run).calibration.model_copy(update={"checkpoint_sha256": "another"})
    (again / "calibration.json").write_text(of_another.model_dump_json())

    assert RunFolder(again).load_student().calibration is None
    (again / "calibration.json").unlink()
    assert RunFolder(again).load_student().calibration is None


def test_a_damaged_calibration_is_refused_with_a_sentence(run: Path, tmp_path: Path):
    again = Path(shutil.copytree(run, tmp_path / "run"))
    as_of_before(again)
    (again / "calibration.json").write_text('{"threshold": 7}')

    with pytest.raises(UserError, match=r"calibration\.json: is not .* \(threshold: .*\)\. It is damaged: delete it"):
        RunFolder(again).load_student()
