"""`distil-cache audit` from the shell: its summary, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audit_pictures import EACH, picture, write
from distil_cache.cli import app
from image_bytes import saved
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(EACH):
        write(folder, "0_real", number, saved(picture(number, 32), "JPEG"), "jpg")
        write(folder, "1_fake", number, saved(picture(1000 + number, 32)))
    write(folder, "1_fake", 500, b"no picture")
    return folder


def audit(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout


def test_a_finding_warns_in_words_and_ends_with_5_only_if_strict(mixed: Path) -> None:
    code, shown = audit(mixed, "--sample", "0")
    assert code == 0
    assert "format: real jpeg 100 %, generated png 100 %" in shown
    assert "The label is given away" in shown
    assert "500.png: not-an-image" in shown
    assert audit(mixed, "--sample", "0", "--strict")[0] == 5


def test_nothing_found_ends_with_0_although_strict(mixed: Path, tmp_path: Path) -> None:
    for number in range(EACH):
        write(tmp_path, "0_real", number, saved(picture(number, 32)))
        write(tmp_path, "1_fake", number, saved(picture(1000 + number, 32)))
    code, shown = audit(tmp_path, "--strict")
    assert code == 0
    assert "No sign in 2 checks that the label is given away by what was checked." in shown
    assert "Not checked:" in shown
    assert "Flaws of few images" in shown
    assert "Subject matter: a linear classifier of" in shown


def test_json_holds_checks_duplicates_and_what_was_rejected(mixed: Path) -> None:
    code, shown = audit(mixed, "--json", "--sample", "25")
    result = json.loads(shown)
    assert code == 0
    assert {"sources", "files", "found", "checks", "told", "pixels", "duplicates", "set_aside"} <= result.keys()
    assert {"images", "content", "removed", "not_checked"} <= result.keys()
    assert [check["features"] for check in result["checks"]] == ["headers", "pixels"]
    assert result["pixels"]["measured"] == 50
    assert result["set_aside"][0]["reason"] == "not-an-image"
