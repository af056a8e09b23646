"""Commands of stage two that are killed or find the disk full: the next run makes what an undisturbed one makes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
from fault_disk import can_mount
from fault_stages import campaign


@pytest.mark.parametrize(
    ("stage", "kills", "full"),
    [
        ("export", 5, 2),
        pytest.param("train", 3, 1, marks=pytest.mark.slow),
        pytest.param("checkpoint import", 3, 1, marks=pytest.mark.slow),
        pytest.param("checkpoint export", 4, 1, marks=pytest.mark.slow),
    ],
)
def test_a_disturbed_command_leaves_nothing_half_and_the_next_run_makes_the_same(
    fast_folder: Path, stage: str, kills: int, full: int
) -> None:
    results = list(campaign(fast_folder, [stage], kills, 0, full, seed=1))
    assert [result["wrong"] for result in results] == [[]] * (kills + full)
    assert sum(result["killed"] for result in results) == kills
    assert sum(result["power"] for result in results) == kills // 2


def test_a_command_on_a_disk_that_is_too_small_ends_with_a_sentence_and_is_done_on_a_larger_one(
    fast_folder: Path,
) -> None:
    if not can_mount(fast_folder):
        pytest.skip("this process may not mount a file system")
    (result,) = campaign(fast_folder, ["export"], 0, 0, 0, seed=1, disks=1)
    assert (result["ended"], result["wrong"]) == (1, [])
