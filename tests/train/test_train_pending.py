"""Which evaluations a report finds missing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from distil_cache.commands.report import report
from distil_cache.errors import UsageError, UserError
from distil_cache.train.evaluation.pending import pending_evaluations
from run_folders import rows as scored
from run_folders import write_evaluation, write_run
from small_cache import make_cache, rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pending") / "cache"
    table = [*rows("train", 2, {"adm": 2}), *rows("test", 2, {"adm": 2})]
    make_cache(root, table, name="photos")
    make_cache(root, [*rows("val", 2, {"sd": 2})], name="other")
    return root


def run_of(cache: Path, folder: Path, *, trained: bool = True) -> Path:
    run = write_run(folder)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "cache": str(cache)}))
    if trained:
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.safetensors").write_bytes(b"weights")
    return run


def shown(run: Path, *on: str) -> tuple[list[tuple[str, str]], list[str]]:
    found, without = pending_evaluations([run], on)
    return [(one.dataset, one.split) for one in found], [one.why for one in without]


def test_the_test_part_of_a_runs_dataset_is_missing_until_its_best_student_has_scored_it(
    cache: Path, tmp_path: Path
) -> None:
    run = run_of(cache, tmp_path / "run")
    assert shown(run) == ([("photos", "test")], [])
    path = write_evaluation(run, scored({"adm": 1.0}, reals=3, fakes=3), transform="resize") / "evaluation.json"
    assert shown(run) == ([("photos", "test")], [])
    info = json.loads(path.read_text())
    info["checkpoint"]["sha256"] = hashlib.sha256(b"weights").hexdigest()
    path.write_text(json.dumps(info))
    assert shown(run) == ([], [])
    path.write_text(json.dumps({**info, "select": "generator=adm"}))
    assert shown(run) == ([("photos", "test")], [])


def test_further_datasets_are_evaluated_on_request(cache: Path, tmp_path: Path) -> None:
    run = run_of(cache, tmp_path / "run")
    assert shown(run, "other:val") == ([("photos", "test"), ("other", "val")], [])
    (why,) = shown(run, "other")[1]
    assert why.startswith("the dataset has no split test, only val; build it with --split-by 70/15/15")
    assert why.endswith("with --on other:val")
    with pytest.raises(UserError, match=r"--on other:test: .*the dataset has no split test"):
        report(tmp_path / "out", [run], on=["other"])
    with pytest.raises(UsageError, match="name a dataset of the cache"):
        pending_evaluations([run], [":test"])


def test_what_cannot_be_evaluated_says_why(cache: Path, tmp_path: Path) -> None:
    assert shown(run_of(cache, tmp_path / "new", trained=False)) == ([], ["the run has no checkpoint yet"])
    away = shown(run_of(tmp_path / "moved", tmp_path / "away"))
    assert away[0] == []
    assert "moved: is not a cache" in away[1][0]


def test_the_runs_of_a_sweep_are_looked_at_one_by_one(cache: Path, tmp_path: Path) -> None:
    for name in ("seed=0", "seed=1"):
        run_of(cache, tmp_path / "sweep" / name)
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"runs": ["seed=0", "seed=1", "seed=2"]}))
    found, _ = pending_evaluations([tmp_path / "sweep"])
    assert [one.run.name for one in found] == ["seed=0", "seed=1"]


def test_a_report_with_nothing_to_evaluate_loads_no_torch(cache: Path, tmp_path: Path) -> None:
    run = run_of(cache, tmp_path / "run", trained=False)
    write_evaluation(run, scored({"adm-a": 1.0}, reals=6, fakes=6))
    code = (
        "import sys\nfrom distil_cache.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "report", str(run), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not evaluated on photos, split test: the run has no checkpoint yet." in " ".join(done.stderr.split())


@pytest.mark.parametrize("record", ['{"others": ["x"]}', "[" * 100_000, '{"dataset": 7}', "\xff"])
def test_a_damaged_run_is_left_to_those_who_read_it(cache: Path, tmp_path: Path, record: str) -> None:
    run = run_of(cache, tmp_path / "run")
    whole = (run / "config.json").read_text()
    (run / "config.json").write_bytes(record.encode("latin-1"))
    assert shown(run) == ([], [])
    (run / "config.json").write_text(whole)
    evaluation = run / "evaluations" / "odd"
    evaluation.mkdir(parents=True)
    (evaluation / "evaluation.json").write_bytes(record.encode("latin-1"))
    assert shown(run) == ([("photos", "test")], [])
