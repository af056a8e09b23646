"""The page on writing a feature: its package is written, installed, tested and taken the whole way."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from distil_cache.cli import app
from doc_commands import command_lines, shell_blocks
from markdown_it import MarkdownIt
from PIL import Image
from plugin_packages import packages_of, write_package
from typer.testing import CliRunner

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "features.md"
SHOWN = {"features": "contrast", "build": "contrast"}
"""Command -> what it must show."""


def write_files(folder: Path) -> None:
    """Write the files of the page, and the metadata that an installer would."""
    for block in MarkdownIt("commonmark").parse(PAGE.read_text("utf-8")):
        if found := re.search(r'title="(.+)"', block.info):
            (folder / found[1]).parent.mkdir(exist_ok=True)
            (folder / found[1]).write_text(block.content)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    write_package(folder, project["name"], project["version"], project["entry-points"], {})


def test_the_package_of_the_page_works_from_its_test_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for kind, grain in (("real", 40), ("fake", 10)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(20):
            pixels = (draw.integers(60, 200, 3) + draw.normal(0, grain, (64, 64, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{number}.png")
    write_files(tmp_path)
    with packages_of(tmp_path):
        tests: dict[str, object] = {}
        exec((tmp_path / "test_contrast.py").read_text(), tests)
        for _ in range(2):  # the first writes the golden rows
            tests["test_contrast_conforms"]()  # type: ignore[operator]
        (block,) = shell_blocks(PAGE, "bash")
        for line in command_lines(block):
            words = shlex.split(line)[1:]
            done = CliRunner().invoke(app, words, catch_exceptions=False)
            assert done.exit_code == 0, done.output
            assert SHOWN.get(words[0], "") in done.output
    assert "contrast in cells" in (tmp_path / "report" / "report.html").read_text()
