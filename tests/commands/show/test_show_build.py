"""What the summary of a build says, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from distil_cache.commands.show.build import show_build, show_builds, show_estimate, show_rejects
from rich.console import Console


@pytest.mark.parametrize(("rejects_file", "said"), [(None, "listed with --json"), ("c/d.jsonl", "listed in c/d.jsonl")])
def test_the_place_of_further_rejects_is_said_only_if_there_is_one(
    capsys: pytest.CaptureFixture[str], rejects_file: str | None, said: str
) -> None:
    rejects = [{"path": f"{number}.png", "reason": "damaged", "detail": "PNG"} for number in range(7)]
    show_rejects(Console(width=120), {"rejects": rejects, "rejects_file": rejects_file})
    shown = capsys.readouterr().out
    assert shown.count("rejected") == 5
    assert f"and 2 more, {said}" in shown
    assert "None" not in shown


def test_only_files_that_are_left_out_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show_build(_result(rejected=0, label_conflicts=0, leaked=0))
    assert "48 samples.\n" in capsys.readouterr().out
    show_build(_result(rejected=3, label_conflicts=2, leaked=1))
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 files rejected (2 of them identical files with both labels). 1 file left out of a split" in shown


def test_notes_on_the_sources_come_before_the_counts_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    show_build(_result(notes=["Labels are from `label`."]))
    shown = capsys.readouterr().out
    assert shown.index("Note: Labels are from") < shown.index("Images") < shown.index("Plan for d")


def test_a_plan_with_nothing_to_compute_has_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    device = {
        "device": "CPU",
        "device_hours": 0.0,
        "hours": 0.0,
        "cost": None,
        "adm_calls_per_second": 9.0,
        "source": "b",
    }
    show_build(_result(estimate=_estimate(0, device)))
    shown = capsys.readouterr().out
    assert "Nothing to compute" in shown
    assert "New data" not in shown
    assert "CPU" not in shown
    assert "at most" not in shown


def test_images_alone_need_no_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"missing": 48, "computed": 0, "may_be_taken_over": 0, "reused": 0, "bytes": 4096, "fingerprint": "ab"}
    show_build(_result(decoded=48, features={"image": row}, estimate=_estimate(4096)))
    shown = capsys.readouterr().out
    assert "New data: at most 4.0 KiB" in shown
    assert "throughput" not in shown


def test_less_than_a_minute_is_shown_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    device = {
        "device": "CPU",
        "device_hours": 0.005,
        "hours": 0.005,
        "cost": None,
        "adm_calls_per_second": 9.0,
        "source": "b",
    }
    show_estimate(Console(width=120), _estimate(4096, device))
    assert "CPU: 18.0 seconds on one device" in capsys.readouterr().out


def _estimate(size: int, *devices: dict[str, Any]) -> dict[str, Any]:
    return {
        "bytes": size,
        "price_per_hour": None,
        "processes": 1,
        "feeding": None,
        "memory": None,
        "devices": list(devices),
    }


def _result(**changed: Any) -> dict[str, Any]:
    row = {"missing": 0, "computed": 0, "may_be_taken_over": 0, "reused": 48, "bytes": 0, "fingerprint": "ab"}
    counts = [{"split": "train", "label": label, "generator": "g", "images": 24} for label in (0, 1)]
    return {
        "dataset": "d", "dry_run": True, "features": {"image": row}, "sources": [], "warnings": [], "notes": [],
        "counts": counts, "untested": None, "samples": 48, "rejected": 0, "label_conflicts": 0, "leaked": 0, "adm_calls": 0,
        "adm_calls_at_least": 0, "decoded": 0, "audit": None, "rejects": [], "rejects_file": None,
        "estimate": _estimate(0), **changed,
    }  # fmt: skip


def test_a_data_set_without_test_images_says_how_to_have_some(capsys: pytest.CaptureFixture[str]) -> None:
    show_build(_result(untested="Divide them with --split-by 70/15/15."))
    assert "Note: Divide them with --split-by 70/15/15." in capsys.readouterr().out
    show_build(_result())
    assert "--split-by" not in capsys.readouterr().out


def test_the_values_of_a_profile_and_the_next_command_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    profile = {"name": "small", "settings": {"adm": "demo", "train-size": 96}}
    show_builds(_result(profile=profile, next="distil-cache train --cache c"))
    shown = capsys.readouterr().out
    assert shown.startswith("Profile small: --adm demo, --train-size 96.\n")
    assert shown.endswith("Next: distil-cache train --cache c\n")
