"""Names of files, folders and generators that would move the cursor, fake lines or run formulas are shown harmless."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from distil_cache import cli
from distil_cache.storage.atomic import _note_once
from distil_cache.storage.text import csv_cell, harmless, json_text, visible
from image_bytes import noise, saved
from small_models import STEPS, write_adm

GENERATORS = [
    "=HYPERLINK(1)",
    "[red]x[/red]\x1b[31m",
    "two\nlines",
    "\u202egpj.exe",
    "<script>alert(1)</script>",
    "a|b_c",
]
BAD_FILE = "\x1b]0;title\x07\nFAKE LINE [bold]x.png"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run the program and return all that it printed."""
    try:
        cli.app(list(map(str, arguments)), standalone_mode=False)
    except Exception as error:  # what ``main`` prints
        print(f"distil-cache: {visible(str(error))}")
    printed = capsys.readouterr()
    return printed.out + printed.err


def tampered(text: str) -> list[str]:
    """Return the characters of a text that a terminal would obey."""
    return [sign for sign in text if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign != "\n"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "images"
    for number, generator in enumerate(GENERATORS):
        for split, count in (("train", 4), ("test", 2)):
            for label, name in enumerate(("0_real", "1_fake")):
                folder = root / split / generator.replace("/", "\u2215") / name
                folder.mkdir(parents=True)
                for index in range(count):
                    seed = 1000 * number + 100 * label + 10 * index + (split == "test")
                    (folder / f"\x1b[2J{index}\n.png").write_bytes(saved(noise(20, 20, seed=seed)))
    (root / "train" / GENERATORS[0] / "0_real" / BAD_FILE).write_bytes(b"")
    return root


def test_no_command_prints_or_writes_a_sign_that_a_terminal_or_a_spreadsheet_obeys(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    cache, runs, out, compared = (tmp_path / name for name in ("cache", "run", "out", "compared"))
    twin = tmp_path / "=twin [red]\x1b[31m\nFAKE LINE\u202e|<script>alert(1)"
    adm = write_adm(tmp_path / "adm.safetensors")
    images = sorted(source.glob("test/*/*/*.png"))
    common = ("--cache", cache, "--dataset", "d")
    commands: dict[str, tuple[str | Path, ...]] = {
        "audit": ("audit", source),
        "plan": ("build", source, *common, "--adm", adm, "--steps", STEPS, "--features", "image,eps", "--dry-run"),
        "build": ("build", source, *common, "--adm", adm, "--steps", STEPS, "--features", "image,eps,dire"),
        "ls": ("cache", "ls", cache),
        "verify": ("cache", "verify", cache),
        "gc": ("cache", "gc", cache),
        "train": ("train", *common, "--run", runs, "--method", "eps", "--backbone", "small", "--epochs", "1"),
        "evaluate": ("evaluate", runs, *common),
        "report": ("report", runs, "--out", out),
        "compare": ("report", "--compare", runs, twin, "--out", compared),
        "swap": ("audit", "--swap", runs, "--adm", adm),
        "sources": ("cache", "verify", cache, "--sources", source),
        "recipe": ("build", source, *common, "--write-recipe", tmp_path / "\x1b[31mrecipe\u202e.toml"),
        "profile": ("build", source, *common, "--profile", "small", "--dry-run"),
        "predict": ("predict", "--run", runs, "--adm", adm, *images[:3], source / "train" / GENERATORS[0] / "0_real"),
        "predict csv": ("predict", "--run", runs, "--adm", adm, "--format", "csv", *images[:2], source / BAD_FILE),
        "predict json": ("predict", "--run", runs, "--adm", adm, "--json", *images[:2]),
        "export": ("cache", "export", cache, "--dataset", "d", "--out", tmp_path / "\x1b[31mexport"),
        "an absent source": ("build", source / "\x1b[31m\nabsent", *common),
        "another run": ("evaluate", tmp_path / "\x1b[31m\nabsent", *common),
    }
    for name, command in commands.items():
        if name == "compare":
            shutil.copytree(runs, twin)
        text = run(capsys, *command)
        assert tampered(text) == [], f"{name}: {text!r}"
        assert "\nFAKE LINE" not in text, name
        assert "\nlines" not in text, name
        if name == "predict json":
            result, _ = json.JSONDecoder().raw_decode(text)
            assert [row["path"] for row in result["predictions"]] == list(map(str, images[:2]))
    assert "=HYPERLINK(1)" in run(capsys, "evaluate", runs, *common)
    assert "[red]x[" in run(capsys, "evaluate", runs, *common)
    for path in (*out.rglob("*"), *compared.rglob("*")):
        if path.suffix in (".html", ".md", ".tex", ".csv", ".json"):
            text = path.read_text()
            assert set(tampered(text)) <= {"\t"} if path.suffix == ".html" else tampered(text) == [], path.name
            assert "\nlines" not in text, path.name
            assert "<script>alert" not in text or path.suffix in (".json", ".csv", ".tex"), path.name
    for path in (*out.glob("tables/*.csv"), *compared.glob("tables/*.csv")):
        cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "@")], path.name
    assert "'=HYPERLINK(1)" in (out / "tables" / "results.csv").read_text()


HOSTILE = "\x1b[31mX\nFAKE LINE\u202e\u2028"


@pytest.mark.parametrize(
    "arguments",
    [
        (f"--{HOSTILE}",), (HOSTILE,), ("cache", HOSTILE), ("cache", f"--{HOSTILE}"), ("cache", "ls", "CACHE", HOSTILE),
        ("cache", "ls", f"--{HOSTILE}"), ("train", "--epochs", HOSTILE), ("train", "--profile", HOSTILE), ("evaluate", HOSTILE),
        ("build", f"{HOSTILE}.toml"), ("checkpoint", f"--{HOSTILE}"), ("cache", "gc", "CACHE", "--grace", HOSTILE),
    ],
)  # fmt: skip
def test_a_name_that_is_taken_for_an_option_is_quoted_harmless(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["distil-cache", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert said
    assert tampered(said) == []
    assert "\nFAKE LINE" not in said


def test_what_is_logged_of_a_folder_is_harmless(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        _note_once("test", file.fileno(), f"{HOSTILE}: this file system cannot flush folders")
    assert tampered(caplog.records[-1].getMessage()) == []


def test_a_report_is_written_into_an_empty_folder_or_over_a_report_and_nowhere_else(tmp_path: Path) -> None:
    from distil_cache.errors import UsageError
    from distil_cache.report.output.files import put_files

    files = {"report.md": "mine", "report.json": '{"program": {"name": "distil-cache"}}'}
    put_files(tmp_path / "new", files)
    put_files(tmp_path / "new", {**files, "report.md": "again"})
    assert (tmp_path / "new" / "report.md").read_text() == "again"
    for name, content in (("report.md", "# My thesis"), ("report.json", '{"mine": 1}'), ("notes.txt", "")):
        (folder := tmp_path / name).mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UsageError, match=rf"has files that no report wrote \({name}\)"):
            put_files(folder, files)
        assert [path.read_text() for path in folder.iterdir()] == [content]


def test_texts_become_visible_and_json_keeps_their_value() -> None:
    hostile = "é \x1b[31m\n\u202e\x85\udcff\u2028"
    assert visible(hostile) == "é \\x1b[31m\\n\\u202e\\x85\\udcff\\u2028"
    assert harmless({"a\n": [hostile, 1, None, ("\t",)]}) == {"a\\n": [visible(hostile), 1, None, ["\\t"]]}
    text = json_text({"name": hostile}, indent=1)
    assert tampered(text) == []
    assert json.loads(text) == {"name": hostile}
    assert [csv_cell(value) for value in ("=1", "+1", "-1", "@x", "a", -1.5, None)] == [
        *("'=1", "'+1", "'-1", "'@x", "a"), -1.5, None
    ]  # fmt: skip
