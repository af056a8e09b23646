"""Builders that race, maintenance beside them, clocks that jump, and files that change while they are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.store import Cache
from fault_builder import write_images
from fault_checks import told_by

SUPPORT = Path(__file__).parents[1] / "support"
FORMS = pytest.mark.parametrize("form", ["zarr", pytest.param("webdataset", marks=pytest.mark.slow)])


def run(what: str, folder: Path, form: str = "zarr") -> list[dict[str, Any]]:
    return told_by("fault_races.py", what, folder, form)


@FORMS
def test_builders_of_one_dataset_at_once_make_what_one_makes_and_leave_no_litter(fast_folder: Path, form: str) -> None:
    for race in run("same", fast_folder, form):
        assert race == {"ended": ["done"] * 3, "wrong": [], "litter": []}


@FORMS
def test_builders_of_overlapping_datasets_at_once_both_hold_the_rows_that_each_makes_alone(
    fast_folder: Path, form: str
) -> None:
    for race in run("overlapping", fast_folder, form):
        assert race == {"ended": ["done"] * 2, "wrong": [], "litter": []}


def test_builders_of_one_dataset_from_different_sources_both_get_a_revision_that_a_build_serves(
    fast_folder: Path,
) -> None:
    for race in run("heads", fast_folder):
        assert (race["ended"], race["wrong"]) == (["done"] * 2, [])
        assert len(race["revisions"]) == 2
        assert race["served"] == race["revisions"]
        assert race["head"] in race["revisions"]


def test_a_build_beside_a_compaction_and_a_collection_loses_no_row(fast_folder: Path) -> None:
    for race in run("maintenance", fast_folder):
        assert (race["wrong"], race["lost"]) == ([], [])
        assert [ended for ended in race["ended"] if "unexpected" in ended] == []


def test_a_clock_that_jumps_and_files_of_any_time_change_nothing(fast_folder: Path) -> None:
    *builds, last = run("clock", fast_folder)
    assert [build["killed"] for build in builds] == [True, False, False]
    assert [build["opened"] for build in builds[1:]] == [0, 0]
    assert last["wrong"] == []


def test_a_lease_that_looks_dead_after_a_jump_of_the_clock_costs_at_most_another_build(fast_folder: Path) -> None:
    (race,) = run("lease", fast_folder)
    assert (race["wrong"], race["lost"]) == ([], [])
    assert [ended for ended in race["ended"] if "unexpected" in ended] == []


def test_a_file_that_is_rewritten_while_it_is_read_ends_up_with_what_it_finally_holds(fast_folder: Path) -> None:
    (found,) = run("changing", fast_folder)
    assert found == {"wrong": [], "lost": [], "same table": True, "is there": True}


def test_the_plan_the_scan_and_the_cache_need_no_torch() -> None:
    code = (
        "import sys; import distil_cache.pipeline.planning.plan, distil_cache.pipeline.scan.scan, distil_cache.pipeline.sources.discover\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_fake_builder_runs_as_a_program_and_dies_where_it_is_told(fast_folder: Path) -> None:
    images = write_images(fast_folder / "images", {"train": 4})
    command = [sys.executable, str(SUPPORT / "fault_builder.py"), str(fast_folder / "cache"), "--source", str(images)]
    assert subprocess.run([*command, "--at", "marker:3"], capture_output=True).returncode == -9
    refused = subprocess.run([*command, "--nan-in", "eps"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "hold NaN or Inf" in refused.stderr
    assert "Traceback" not in refused.stderr
    there = {store.feature: len(store.index()) for store in Cache.open(fast_folder / "cache").features()}
    assert there["image"] > 0
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    computed = json.loads(done.stdout)["computed"]
    rows = Cache.open(fast_folder / "cache").datasets().read("d").num_rows
    assert {feature: there.get(feature, 0) + count for feature, count in computed.items()} == dict.fromkeys(
        computed, rows
    )
