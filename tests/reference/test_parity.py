"""The program against vectors that the papers' code made, and docs/measurements/parity.md against what the program does."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from distil_cache.train.methods.registry import METHODS
from tool_module import load_tool

pytest.importorskip("torch")  # for the tool
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/parity.py as a module."""
    return load_tool("parity")


@pytest.fixture(scope="module")
def measured(tool: ModuleType) -> list[Any]:
    found: list[Any] = tool.rows()
    return found


def test_every_deviation_from_the_papers_code_is_within_its_bound(measured: list[Any]) -> None:
    assert {row.item: row.largest for row in measured if not row.holds} == {}


def test_the_page_holds_what_the_command_prints(tool: ModuleType, measured: list[Any]) -> None:
    page = (ROOT / "docs" / "measurements" / "parity.md").read_text(encoding="utf-8")
    printed = tool.table(measured).splitlines()
    written = page.split(tool.BEGIN)[1].split(tool.END)[0].strip().splitlines()
    assert written[:2] == printed[:2]
    for row, line, on_page in zip(measured, printed[2:], written[2:], strict=True):
        # the last digits of floating point depend on the processor, the rest of the line does not
        assert on_page == line if row.exact else _without_numbers(on_page) == _without_numbers(line)


def _without_numbers(line: str) -> list[str]:
    cells = line.split("|")
    return cells[:3] + cells[5:]


def test_a_deviation_beyond_its_bound_is_found_and_marked(tool: ModuleType) -> None:
    zeros = np.zeros((2, 5), np.uint8)
    far = tool.levels("x", "DIRE", zeros, np.array([[0, 0, 0, 0, 3], [0] * 5], np.uint8), bound=2)
    assert (far.largest, far.share, far.holds) == (3, 0.1, False)
    assert far.cells()[2:] == ("3 levels", "10 %", "2 levels", "**beyond its bound**")
    often = tool.levels("x", "DIRE", zeros, np.array([[0, 0, 0, 0, 1], [0] * 5], np.uint8), bound=1, most=0.01)
    assert (often.holds, often.cells()[4]) == (False, "1 level, 1 %")


def test_another_plateau_is_counted_as_errors(tool: ModuleType) -> None:
    trace = json.loads((tool.VECTORS / "plateau.json").read_text())[1]
    assert tool.plateau_errors(trace) == 0
    assert tool.plateau_errors({**trace, "saved": trace["saved"][:-1]}) == 1
    assert tool.plateau_errors({**trace, "rates": [*trace["rates"][:-1], 1.0]}) == 1
    assert tool.plateau_errors({**trace, "stopped": not trace["stopped"]}) == 1


def test_validation_of_cnndet_uses_the_numbers_of_its_code(tool: ModuleType) -> None:
    degradation = METHODS["cnndet"].degradation
    assert degradation is not None
    settings = degradation.of_validation()
    assert settings is not None
    sigma, quality = tool.vectors("cnndet")["validation.sigma_quality"]
    assert (settings.blur, settings.jpeg) == ((sigma, sigma), (quality, quality))
