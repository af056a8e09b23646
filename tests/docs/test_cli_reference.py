"""The page of the command line is what the program says of itself."""

from __future__ import annotations

import pytest
from tool_module import load_tool

typer = pytest.importorskip("typer", minversion="0.29")  # earlier ones word types otherwise


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    tool = load_tool("cli_reference")
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run: python tools/cli_reference.py"


def test_the_page_has_a_section_with_examples_for_every_command() -> None:
    tool = load_tool("cli_reference")
    page = tool.page()
    assert page.count("**Examples**") == sum(1 for _ in tool.commands()) > 15
    assert "| `--kd-weight X` |" in page
