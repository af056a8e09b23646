"""The program in locales whose encoding is not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_bytes import noise, saved
from patience import PATIENCE

PROGRAM = [sys.executable, "-c", "from distil_cache.cli import main; main()"]
LOCALES = {
    "C": {"LC_ALL": "C"},
    "POSIX, no UTF-8 mode": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1 output": {"PYTHONIOENCODING": "latin-1"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
}


def run(locale: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **LOCALES[locale]}
    return subprocess.run([*PROGRAM, *arguments], env=environment, check=False, capture_output=True, timeout=PATIENCE)


@pytest.mark.parametrize("locale", LOCALES)
def test_help_is_printed(locale: str) -> None:
    done = run(locale, "build", "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--dataset" in done.stdout


@pytest.mark.parametrize("locale", LOCALES)
def test_names_in_utf8_are_read_and_their_json_is_valid(locale: str, tmp_path: Path) -> None:
    for label, name in enumerate(("real", "fake")):
        place = tmp_path / "Bilder äöü 日本 🖼" / name
        place.mkdir(parents=True)
        for number in range(2):
            (place / f"é{number}.png").write_bytes(saved(noise(20, 24, seed=10 * label + number)))
    source = str(tmp_path / "Bilder äöü 日本 🖼")
    done = run(locale, "audit", source, "--json")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "Bilder äöü 日本 🖼" in json.dumps(
        json.loads(done.stdout.decode("latin-1" if "latin" in locale else "utf-8")), ensure_ascii=False
    )
    assert b"rejected" not in done.stderr
