"""What the summary of a build says of rejected files."""

from __future__ import annotations

import pytest
from distil_cache.commands.show.build import show_rejects
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
