"""Every command in README, CONTRIBUTING and the documentation is one that the program takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_commands import check, command_lines, shell_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = {
    page.relative_to(ROOT).as_posix(): found
    for page in PAGES
    if (found := [line for block in shell_blocks(page) for line in command_lines(block)])
}


@pytest.mark.parametrize("page", COMMANDS)
def test_every_command_on_a_page_has_the_options_that_it_uses(page: str) -> None:
    for line in COMMANDS[page]:
        check(line)


def test_an_option_that_does_not_exist_is_found() -> None:
    check("distil-cache cache gc CACHE --yes")
    with pytest.raises(AssertionError, match="gc has no --now"):
        check("distil-cache cache gc CACHE --now ...")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_script_and_target_that_a_page_names_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in shell_blocks(page):
        for script in re.findall(r"\b(?:python3?|bash) ((?:tools|benchmarks|\.ci)/\S+)", block):
            assert (ROOT / script).is_file(), script
        for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE):
            assert target in targets
