"""What the summary of an evaluation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.commands.show.train import show_evaluation

pytest.importorskip("torch")
from distil_cache.metrics.calibration import Calibration
from distil_cache.metrics.per_generator import per_generator
from distil_cache.train.evaluation.summary import summarise


def evaluated(tmp_path: Path, scores: list[tuple[int, str, float]], threshold: float | None) -> dict[str, Any]:
    found = None
    if threshold is not None:
        found = Calibration(
            threshold=threshold, split="10% of train, by key", transform="crop", real=9, fake=9, checkpoint_sha256="a", accuracy=1.0,
            balanced_accuracy=1.0,
        )  # fmt: skip
    names = ("label", "generator", "score")
    rows = [
        {**dict(zip(names, row, strict=True)), "group": "g", "family": "", "key": f"{i:02}"}
        for i, row in enumerate(scores)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    counts = {name: sum(row[0] == label for row in scores) for label, name in enumerate(("real", "fake"))}
    info = {"dataset": "d", "split": "test", "transform": "crop", "counts": counts, "checkpoint": {"sha256": "a"}}
    return {**info, "summary": summarise(info, tmp_path / "scores.parquet", found), "next": "distil-cache report r"}


def test_accuracy_stands_at_a_half_and_at_the_validated_threshold_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [*((0, "", 0.1) for _ in range(10)), *((1, "adm", 0.4) for _ in range(10))]
    result = evaluated(tmp_path, scores, 0.25)
    (row,) = result["summary"]["rows"]
    assert [row[name][0] for name in ("at_half", "at_threshold", "ap")] == [0.5, 1.0, 1.0]
    show_evaluation(result)
    shown = capsys.readouterr().out
    head, line = (
        next(one for one in shown.splitlines() if one.startswith(start)).split() for start in ("generator", "adm")
    )
    assert head == ["generator", "real", "generated", "at", "0.5", "at", "0.250", "AP"]
    assert line[:4] == ["adm", "10", "10", "50.0"]
    assert line[-4:] == ["100.0", "(82-100)", "100.0", "(82-100)"]
    assert result["summary"]["validated_on"] == "18 images of 10% of train, by key"
    assert "0.250 is the threshold that the run's validation chose, on 18 images of 10% of train, by key." in shown
    assert shown.splitlines()[-1] == "Next: distil-cache report r"


def test_the_summary_has_the_intervals_of_the_report(tmp_path: Path) -> None:
    scores = [(0, "", 0.1 * (i % 4)) for i in range(12)] + [(1, "adm", 0.2 + 0.05 * (i % 12)) for i in range(15)]
    (row,) = evaluated(tmp_path, scores, 0.25)["summary"]["rows"]
    labels, names, values = zip(*scores, strict=True)
    report = per_generator(
        labels, values, names, ["g"] * len(scores), clusters=[f"{i:02}" for i in range(len(scores))],
        calibrated_threshold=0.25,
    )["adm"]  # fmt: skip
    for cell, measure in {
        "at_half": "accuracy", "at_threshold": "calibrated_accuracy", "ap": "average_precision",
    }.items():  # fmt: skip
        interval = report.interval(measure)
        assert interval is not None
        assert row[cell] == [report.values[measure], interval.low, interval.high]


def test_one_class_gets_a_sentence_and_no_threshold_is_invented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_evaluation(evaluated(tmp_path, [(0, "", 0.1), (0, "", 0.9)], None))
    shown = " ".join(capsys.readouterr().out.split())
    assert "Only real images: accuracy is the share recognised as real." in shown
    assert "The run has no validated threshold" in shown
