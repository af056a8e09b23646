"""The report's page in a real browser: no script error, no request, nothing missing, nothing too wide."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from distil_cache.train.report import Section, Table, write_report
from PIL import Image
from run_folders import rows, write_evaluation, write_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over two runs with everything that a report can have."""
    base = tmp_path_factory.mktemp("report")
    runs = [write_run(base / "kd05"), write_run(base / "kd00", kd_weight=0.0)]
    for seed, run in enumerate(runs):
        scored = rows({"adm-a": 2.0, "adm-b": 1.0, "a generator of a rather long name": 0.5}, seed=seed)
        write_evaluation(run, scored, dire=True, gallery=2)
    extra = Section("Controls", "Some text.", Table("Baselines.", ["baseline", "AP"], [["size alone", "50.0"]]))
    write_report(runs, base / "out", extra=[extra])
    return base / "out/report.html"


def browse(tmp_path: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open the page; stdout is the document where ``--dump-dom`` asks for it, stderr the browser's log."""
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_page_opens_without_a_console_message_and_holds_its_tables_and_figures(tmp_path, page):
    opened = browse(tmp_path, page, "--dump-dom")

    assert "CONSOLE" not in opened.stderr
    document = opened.stdout
    assert document.count("<table>") == document.count("<caption>") == 4
    assert document.count('<th scope="row">') >= 8
    # 3 ROC, 3 precision-recall, 2 histograms, 1 DIRE, 4 training curves
    assert document.count('role="img" aria-label="') == 13
    assert document.count('<div class="triptych">') == 4
    assert "Figure" in document
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', document))


def framed(tmp_path: Path, page: Path, width: int, measure: str) -> str:
    """What the script ``measure`` finds in the page (its window is ``w``) in a frame of the given width.

    A headless window cannot be as narrow as a phone; a frame can.
    """
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<iframe id="f" style="width:{width}px;height:800px;border:0" src="{page.as_uri()}"></iframe>'
        "<script>onload = () => { const w = document.getElementById('f').contentWindow;"
        f"document.title = {measure}; }}</script>"
    )
    opened = browse(tmp_path, wrapper, "--allow-file-access-from-files", "--dump-dom", "--window-size=1400,900")
    found = re.search("<title>(.*?)</title>", opened.stdout)
    return found[1] if found else ""


def test_the_page_asks_for_nothing_outside_itself(tmp_path, page):
    asked = "w.performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert framed(tmp_path, page, 1280, f"'asked for ' + {asked}.length") == "asked for 0"

    text = page.read_text()
    assert re.findall(r'(?:src|href|action|data)="(?!#|data:)', text) == []
    assert re.findall(r"@import|url\((?!#)", text) == []
    assert "default-src 'none'" in text


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(tmp_path, page, width):
    root = "w.document.documentElement"
    assert framed(tmp_path, page, width, f"{root}.scrollWidth + ' of ' + {root}.clientWidth") == f"{width} of {width}"


@pytest.mark.parametrize(("scheme", "bright"), [(1, True), (0, False)])
def test_the_page_follows_the_readers_light_or_dark_setting(tmp_path, page, scheme, bright):
    shot = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={scheme}"
    browse(tmp_path, page, setting, "--window-size=1280,900", f"--screenshot={shot}")

    with Image.open(shot) as picture:
        corner = picture.convert("L").getpixel((3, 3))
    assert (corner > 200) if bright else (corner < 60)
