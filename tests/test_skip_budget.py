"""In CI a skip for a reason that is not listed fails the run, in one process and in workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skip_budget import unexpected

SUPPORT = Path(__file__).parent / "support"

SKIPPING = """
import pytest

def test_passes(): pass

def test_skips(): pytest.skip({reason!r})
"""


def run(folder: Path, reason: str, *arguments: str, ci: str = "true", module: str = "") -> tuple[int, str]:
    (folder / "test_one.py").write_text(SKIPPING.format(reason=reason))
    (folder / "test_two.py").write_text(module or "def test_passes(): pass\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(SUPPORT),
        "CI": ci,
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "skip_budget", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_an_unexpected_skip_fails_a_run_in_ci_and_no_other(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "the moon is full")
    assert code == 1
    assert "unexpected skip (tests/support/skip_budget.py): the moon is full" in printed
    assert run(tmp_path, "the moon is full", ci="")[0] == 0


def test_a_listed_reason_passes_and_a_module_that_a_worker_skips_is_found(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    whole = "import pytest\n\npytest.importorskip('no_such_library')\n"
    code, printed = run(tmp_path, "pdflatex is not installed", "-p", "xdist", "-n", "1", module=whole)
    assert code == 1
    assert "could not import 'no_such_library'" in printed
    assert "pdflatex" not in printed.partition("unexpected skip")[2]


def test_reasons_are_matched_as_a_whole() -> None:
    assert unexpected({"root may read everything", "this Pillow has no AVIF"}) == []
    assert unexpected({"root may read everything, or not"}) == ["root may read everything, or not"]
