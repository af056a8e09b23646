"""What the demo says at its end, on a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

import pytest
from distil_cache.commands.show.demo import show_demo


def measures(accuracy: float, ap: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "average_precision": ap, "average_precision_interval": (ap - 0.05, 1.0)}


def result() -> dict[str, Any]:
    titles = ("twins by demo (seen generator)", "twins by demo-b (held-out generator of the same family)")
    tests = [
        {
            "title": title, "seen_in_training": number == 0, "real": 80, "fake": 80, "baseline": measures(0.6, 0.606),
            "runs": {"kd-0.5": measures(0.944, 0.981), "kd-0": measures(0.962, 0.999)},
        }
        for number, title in enumerate(titles)
    ]  # fmt: skip
    paths = ("all steps inverted", "only the first 5 steps inverted")
    classes = [{"images": "filtered real crops", "mean": 0.07, "interval": (0.06, 0.08)}]
    return {
        "images": {"train": 264, "test": 480, "made": True},
        "adm_calls": {"images": 1, "features": 2, "again": 0},
        "features": {"computed": 3, "reused": 0},
        "again": {"computed": 0, "reused": 3, "decoded": 0},
        "cache_bytes": 1,
        "test_sets": tests,
        "dire": [{"path": path, "classes": classes, "conclusion": "No difference."} for path in paths],
        "metadata_auc": 0.5,
        "report": "out/report.html",
        "next": "distil-cache build FOLDER --cache cache --dataset mine --split-by 70/15/15 --profile small",
        "stages": [{"stage": "images", "seconds": 1.0, "cpu_seconds": 1.0}],
        "seconds": 1.0,
        "peak_memory_bytes": 1,
    }


def test_no_table_of_the_demo_breaks_at_80_columns_and_its_end_says_what_it_shows_and_what_comes_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_demo(result())
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["student", "kd-0.5", "94.4", "98.1", "(93", "to", "100)"] in rows
    assert ["filtered", "real", "crops", *["7.00", "(6.00", "to", "8.00)"] * 2] in rows
    said = " ".join(shown.split())
    assert "held-out generator of the same family) the students reach an AP of 98 % and 100 %" in said
    assert "smoothness and saturation alone 61 %" in said
    assert "says nothing about the paper's figures." in said
    last = shown.splitlines()[-1]
    assert last.startswith("Next, your own images: distil-cache build FOLDER")
