"""The benchmark of a GPU runs from end to end without one, and its table has every row that it promises."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEASURES = (
    "images/s of eps, DIRE and teacher, plain",
    "images in a batch",
    "images x ADM calls a second, eager",
    "TFLOP/s of a matrix product, after eager",
    "ADM over the matrix product's rate, eager",
    "images/s of eps, DIRE and teacher, build, compiled",
    "build over plain at PyTorch's defaults, eager",
    "build over plain in the same precision, compiled",
    "time without a kernel, eager",
    "relative error of eps against float32",
    "DIRE values off by more than 1",
    "two processes give the same bytes",
    "rows of eps that are equal in batches of 2, 4, 3",
    "batch that memory does not suffice for",
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    yield module
    for name in {"gpu", "gpu_work", "adm_call", "compare"} - before:
        sys.modules.pop(name, None)


def test_one_command_fills_the_table_and_writes_it_for_programs_and_for_the_page(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")  # no git, nor any other program
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu.work, "BATCHES", 2)
    monkeypatch.setattr(gpu.work, "PLAIN_IMAGES", 1)
    gpu.main(["--self-test", "--precision", "bf16", "--minutes", "1000"])
    files = tmp_path / "gpu.json", tmp_path / "gpu.md"
    found, text = json.loads(files[0].read_text()), files[1].read_text()
    assert set(MEASURES) <= set(found["rows"])
    values = {measure: row["bf16"] for measure, row in found["rows"].items()}
    assert all(isinstance(values[measure], int | float) for measure in MEASURES[:-1]), values
    assert values["two processes give the same bytes"] is True
    assert values["batch that memory does not suffice for"] == "8 became 4, with that batch's bytes"
    assert 0 < values["relative error of eps against float32"] < 0.2
    assert all(f"| {measure} |" in text for measure in MEASURES)
    assert text in capsys.readouterr().out
    assert found["conditions"]["torch"]


def test_what_the_minutes_do_not_suffice_for_or_the_device_refuses_is_marked_and_ends_nothing(gpu: ModuleType) -> None:
    table = gpu.Table(minutes=1)

    def refused() -> float:
        raise RuntimeError("CUDA error: no kernel image\nmore")

    assert table.add("refused", "bf16", refused) is None
    table.minutes = 0
    assert table.add("late", "bf16", lambda: 1.0) is None
    assert table.rows == {"refused": {"bf16": "failed: CUDA error: no kernel image"}, "late": {"bf16": "not measured"}}
    table.minutes = 1
    table.add_ratio("ratio", "bf16", None, 2.0)
    assert "| ratio | not measured |  |" in table.markdown({"measured on": "nothing"})


def test_the_idle_time_is_what_no_kernel_covers(gpu: ModuleType) -> None:
    assert gpu.work.idle_of([(0, 4), (1, 2), (3, 5), (9, 10)]) == pytest.approx(0.4)
    assert gpu.work.idle_of([(5, 6), (0, 5)]) == 0
    assert gpu.work.idle_of([]) is None
