"""Builds, compactions and collections killed with SIGKILL in every stage of what they write, with and without power."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_checks import folder_in_memory
from fault_injection import STAGES
from patience import PATIENCE

SUPPORT = Path(__file__).parents[1] / "support"
BUILD_STAGES = set(STAGES) - {"removal"}


@pytest.fixture(scope="module")
def fast_folder() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture(scope="module", params=["zarr", pytest.param("webdataset", marks=pytest.mark.slow)])
def kills(request: pytest.FixtureRequest, fast_folder: Path) -> list[dict[str, Any]]:
    folder = fast_folder / request.param
    folder.mkdir()
    command = [sys.executable, str(SUPPORT / "fault_kills.py"), str(folder), request.param, "1", "0", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_in_any_stage_leaves_a_sound_cache_and_the_next_run_makes_the_undisturbed_bytes(
    kills: list[dict[str, Any]],
) -> None:
    assert [kill for kill in kills if kill["wrong"]] == []


def test_every_stage_of_what_is_written_was_killed(kills: list[dict[str, Any]]) -> None:
    reached = Counter((kill["scenario"], kill["stage"]) for kill in kills if kill["killed"] and kill["at"])
    assert {stage for scenario, stage in reached if scenario == "first build"} == BUILD_STAGES
    assert {stage for scenario, stage in reached if scenario == "second build"} == BUILD_STAGES
    assert {stage for scenario, stage in reached if scenario == "compact"} >= {"lease", "data", "marker", "index"}
    assert {stage for scenario, stage in reached if scenario == "gc"} >= {"data", "marker", "dataset", "removal"}


def test_a_power_failure_lost_something_and_nothing_that_matters(kills: list[dict[str, Any]]) -> None:
    assert sum(kill["lost"] > 0 for kill in kills if kill["power"]) >= 5


def test_a_commit_that_flushes_nothing_is_found_out_by_the_power_failure(fast_folder: Path) -> None:
    """The check itself can fail: with flushing switched off, a power failure damages the cache."""
    code = (
        "import json, sys; from pathlib import Path; import distil_cache.storage.trees as trees\n"
        "trees.fsync_tree = trees.fsync_folder = lambda path: None\n"
        "from fault_kills import scenarios, kill; folder = Path(sys.argv[1]); folder.mkdir()\n"
        "print(json.dumps(kill(next(scenarios(folder, 'zarr')), folder / 'x', at='head:1', power=True)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(fast_folder / "unflushed")], capture_output=True, text=True, cwd=SUPPORT
    )
    assert done.returncode == 0, done.stderr
    assert any("after the kill" in what for what in json.loads(done.stdout)["wrong"])
