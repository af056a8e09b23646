"""Commands of stage two that are killed or find the disk full: the next run makes what an undisturbed one makes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
from fault_stages import campaign


@pytest.mark.parametrize(
    ("stage", "kills", "full"), [("export", 5, 2), pytest.param("train", 3, 1, marks=pytest.mark.slow)]
)
def test_a_disturbed_command_leaves_nothing_half_and_the_next_run_makes_the_same(
    fast_folder: Path, stage: str, kills: int, full: int
) -> None:
    results = list(campaign(fast_folder, [stage], kills, 0, full, seed=1))
    assert [result["wrong"] for result in results] == [[]] * (kills + full)
    assert sum(result["killed"] for result in results) == kills
