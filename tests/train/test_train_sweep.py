"""A grid of trainings: one folder per run, finished runs are kept, interrupted ones are resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from distil_cache.errors import UsageError, UserError
from distil_cache.report import write_report
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.sweep import _note, parse_sweep, plan_sweep, run_sweep
from small_cache import make_cache, rows

SHARED = {"dataset": ("pictures",), "backbone": "small", "epochs": 1, "batch_size": 8, "lr": 1e-3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = [*rows("train", 10, {"adm": 10}), *rows("test", 4, {"adm": 4})]
    return make_cache(tmp_path_factory.mktemp("sweep") / "cache", table)[0].root


def test_a_grid_is_run_once_kept_and_continued_and_the_report_takes_its_folder(cache: Path, tmp_path: Path) -> None:
    grid = parse_sweep(["kd-weight=0,0.5", "seed=0,1"])
    interrupted = tmp_path / "sweep" / "kd_weight=0,seed=1"
    first = TrainConfig.checked(**SHARED, kd_weight=0, seed=1)
    run_training(first.model_copy(update={"epochs": 1}), cache, interrupted)
    state = json.loads((interrupted / "checkpoints" / "last.json").read_text())

    found = run_sweep({**SHARED, "epochs": 2}, grid, cache, tmp_path / "sweep")["runs"]
    assert [run["name"] for run in found] == [f"kd_weight={kd},seed={seed}" for kd in ("0", "0.5") for seed in (0, 1)]
    assert found[3]["settings"] == {"kd_weight": 0.5, "seed": 1}
    assert all(run["epochs"] == 2 for run in found)
    went_on = json.loads((interrupted / "checkpoints" / "last.json").read_text())["progress"]
    assert went_on["history"][0] == state["progress"]["history"][0]

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    assert run_sweep({**SHARED, "epochs": 2}, grid, cache, tmp_path / "sweep")["runs"] == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*") if path.is_file()} == files

    for run in found:
        run_evaluation(tmp_path / "sweep" / run["name"], cache, "pictures")
    report = write_report([tmp_path / "sweep"], tmp_path / "report")
    assert [run["name"] for run in report["runs"]] == [run["name"] for run in found]
    assert [len(one["runs"]) for one in report["comparisons"][0]["over_seeds"]] == [2, 2]


def test_what_a_killed_sweep_left_beside_its_list_is_deleted_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".tmp-sweep.json-0123456789abcdef").touch()
    _note(tmp_path, {"seed": ("0",)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.json", "sweep.lock"]


def test_a_run_with_another_configuration_is_not_overwritten(cache: Path, tmp_path: Path) -> None:
    run_sweep(SHARED, {"seed": ("0",)}, cache, tmp_path / "sweep")
    with pytest.raises(UserError, match=r"run 1 of 2, seed=0: .* holds a training with lr 0\.001, not 0\.01"):
        run_sweep({**SHARED, "lr": 1e-2}, {"seed": ("0", "1")}, cache, tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "seed=1").exists()


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["kd_weight"], "is not of the form setting=value,value"),
        (["kd_weight=0,,1"], "is not of the form setting=value,value"),
        (["momentum=0.9"], "unknown training setting 'momentum'"),
        (["seed=0", "seed=1"], "seed is given twice"),
        (["seed=0,0"], "a value is given twice"),
        (["lr=1,fast"], r"^lr: Input should be a valid number"),
        (["kd_weight=0,0.0"], "are the same training"),
        (["epochs=1,2"], "--epochs is given too"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_before_any_training(texts: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan_sweep(SHARED if texts[0].startswith("epochs") else {**SHARED, "lr": None}, parse_sweep(texts))
