"""The report's page in a real browser: no script errors, no requests, readable and not too wide, sortable tables."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from distil_cache.report import Addition, Section, Table, write_report
from patience import PATIENCE
from run_folders import rows, write_evaluation, write_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
CHECKS = Path(__file__).with_name("page_checks.js")
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
WIDTHS = (390, 1280, 1920)
SCHEMES = {"light": 1, "dark": 0}
MEASURED = [["size alone", "50.0"], ["mean <colour>", "−1.5"], ["bytes", "–"], ["Laplacian", "1,061.0 ± 2"]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs and two settings with everything that a report can have."""
    base = tmp_path_factory.mktemp("report")
    runs = [write_run(base / "kd05"), write_run(base / "kd00", kd_weight=0.0)]
    for seed, run in enumerate(runs):
        scored = rows({"adm-a": 2.0, "adm-b": 1.0, "a generator of a rather long name": 0.5}, seed=seed)
        write_evaluation(run, scored, dire=True, gallery=2)
        write_evaluation(run, scored, name="photos-test-resize", transform="resize")
    table = Table("Baselines.", ["baseline", "AP\nin percent"], [*MEASURED, ["mean", "47.0"]], "A note.", sums=1)
    write_report(runs, base / "out", additions=[Addition("controls", [Section("Controls", "Some text.", table)])])
    return base / "out/report.html"


def browse(tmp_path: Path, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open the page; with ``--dump-dom`` stdout is the document; stderr is the browser's log."""
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)


def title_of(opened: subprocess.CompletedProcess[str]) -> str:
    found = re.search("<title>(.*?)</title>", opened.stdout, re.DOTALL)
    return html.unescape(found[1]) if found else ""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Callable[[str, int], dict[str, Any]]:
    """What ``page_checks.js`` finds in the page, by colour scheme and width.

    A headless window cannot be as narrow as a phone; a frame can.
    """
    base = tmp_path_factory.mktemp("frames")
    frames = [f'<iframe style="width:{w}px;height:800px;border:0" src="{page.as_uri()}"></iframe>' for w in WIDTHS]
    wrapper = base / "wrapper.html"
    wrapper.write_text(
        f"{''.join(frames)}<script>{CHECKS.read_text()}</script><script>onload = () => {{"
        "document.title = JSON.stringify([...document.querySelectorAll('iframe')].map(f => checks(f.contentWindow))); }"
        "</script>"
    )
    kept: dict[str, list[dict[str, Any]]] = {}
    for name, setting in SCHEMES.items():
        scheme = f"--blink-settings=preferredColorScheme={setting}"
        arguments = ("--allow-file-access-from-files", "--dump-dom", "--window-size=2000,900", scheme)
        kept[name] = json.loads(title_of(browse(base, wrapper, *arguments)))
    return lambda scheme, width: kept[scheme][WIDTHS.index(width)]


def test_the_page_opens_without_a_console_message_and_holds_its_tables_and_figures(tmp_path, page):
    opened = browse(tmp_path, page, "--dump-dom")

    assert "CONSOLE" not in opened.stderr
    document = opened.stdout
    assert document.count("AP by training (rows) and test generator (columns)") >= 2
    assert len(re.findall(r'class="heat h\d+"', document)) == 2 * 2 * 4  # settings, runs, generators and their mean
    # of each setting 3 ROC, 3 precision-recall, 3 reliability, 2 histograms; 1 DIRE, 4 training curves; 2 of the verdict
    assert document.count('role="img" aria-label="') == 2 * 11 + 1 + 4 + 2
    assert document.count('<div class="triptych">') == 4
    assert "<button" in document


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window_but_tables_that_scroll_in_their_box(found, width):
    seen = found("light", width)

    assert (seen["window"], seen["width"], seen["wide"]) == (width, width, 0)
    assert seen["unreachable"] == 0


def test_wide_tables_scroll_in_their_box_and_on_a_phone_stand_in_lines_that_need_no_scrolling(found):
    assert found("light", 1280)["scrolling"] > 0
    assert found("light", 390)["scrolling"] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_opens_with_its_verdict_and_all_but_that_and_the_runs_is_folded(found, width):
    seen = found("light", width)["folded"]

    assert seen["closed"] == seen["folds"] > 8
    assert seen["answerEnds"] < 800
    assert seen["chartBegins"] < (800 if width > 390 else 1600)


def test_a_link_of_the_contents_opens_the_part_that_it_leads_to_and_what_holds_that(found):
    assert found("light", 1280)["folded"]["opened"] == ["photos, split test, centre crop", "Figures"]


def test_the_contents_stay_in_view_where_the_window_is_wide(found):
    assert [found("light", width)["folded"]["inView"] for width in WIDTHS] == [False, True, True]


def test_the_page_loads_nothing_from_elsewhere(found, page):
    assert found("light", 1280)["asked"] == []
    text = page.read_text()
    assert re.findall(r'(?:src|href|action|data)="(?!#|data:)', text) == []
    assert re.findall(r"@import|url\((?!#)", text) == []


def test_the_policy_refuses_other_scripts_and_images_from_elsewhere(tmp_path, page):
    spoilt = tmp_path / "spoilt.html"
    foreign = (
        '<script>document.title = "taken over"</script><img src="https://example.org/p.png" onerror="document.title=1">'
    )
    spoilt.write_text(page.read_text().replace("<main>", f"<main>{foreign}"))

    opened = browse(tmp_path, spoilt, "--dump-dom")

    assert title_of(opened) == "Detectors of generated images: report"
    assert "example.org" in opened.stderr
    assert "Content Security Policy" in opened.stderr


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_follows_the_readers_light_or_dark_setting_and_all_text_is_readable(found, scheme):
    seen = found(scheme, 1280)

    assert (seen["page"] > 200) if scheme == "light" else (seen["page"] < 15)
    assert seen["faint"]["found"] == []
    assert 4.5 <= seen["faint"]["lowest"] < 10
    assert seen["faintSeries"] == []


def test_headings_landmarks_names_and_tables_serve_screen_readers(found):
    seen = found("light", 1280)

    assert seen["outline"] == {"tops": 1, "jumps": []}
    assert seen["landmarks"] == [1, 1, 1]
    assert seen["loose"] == ["a"]  # the link that skips the contents
    assert seen["images"] > 20
    assert seen["unnamed"] == 0
    assert seen["tables"] == seen["captions"] > 4
    assert (seen["unscoped"], seen["headless"]) == (0, 0)


def test_the_contents_name_every_setting_and_its_parts_and_every_link_has_a_target(found):
    seen = found("light", 390)

    assert "#setting-photos-split-test-centre-crop" in seen["anchors"]
    assert "#setting-photos-split-test-centre-crop-gallery" in seen["anchors"]
    assert "#setting-photos-split-test-resized-figures" in seen["anchors"]
    assert "#setting-photos-split-test-resized-gallery" not in seen["anchors"]
    assert (seen["repeated"], seen["dangling"]) == ([], [])


def test_buttons_in_the_heads_sort_a_table_and_say_how_and_leave_its_sums_below(found):
    seen = found("light", 1280)["sorting"]

    assert (seen["buttons"], seen["focused"]) == (2, 2)
    given = [name for name, _ in MEASURED]
    assert seen["orders"] == [
        [["none", "descending"], ["Laplacian", "size alone", "mean <colour>", "bytes", "mean"]],
        [["none", "ascending"], ["mean <colour>", "size alone", "Laplacian", "bytes", "mean"]],
        [["none", "none"], [*given, "mean"]],
        [["ascending", "none"], ["bytes", "Laplacian", "mean <colour>", "size alone", "mean"]],
        [["descending", "none"], ["size alone", "mean <colour>", "Laplacian", "bytes", "mean"]],
    ]


def test_what_is_folded_away_is_printed(tmp_path, page):
    printed = tmp_path / "page.pdf"

    browse(tmp_path, page, "--blink-settings=preferredColorScheme=0", f"--print-to-pdf={printed}")

    shorter, kept = tmp_path / "shorter.html", tmp_path / "shorter.pdf"
    shorter.write_text(re.sub("<details>.*?</details>", "", page.read_text(), flags=re.DOTALL))
    browse(tmp_path, shorter, f"--print-to-pdf={kept}")
    pages = [len(re.findall(rb"/Type /Page\b", file.read_bytes())) for file in (kept, printed)]
    assert 0 < pages[0] < pages[1]


def test_axe_finds_nothing_to_complain_of(tmp_path, page):
    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    opened = "document.querySelectorAll('details').forEach(d => d.open = true)"
    # contrast it cannot judge behind what scrolls or in drawings; page_checks.js does
    told = "[...r.violations, ...r.incomplete.filter(v => v.id != 'color-contrast')].map(v => v.id + ': ' + v.nodes[0].html)"
    script = f"{opened}; axe.run().then(r => document.title = JSON.stringify([r.passes.length, ...{told}]))"
    copy = tmp_path / "with-axe.html"
    copy.write_text(text.replace("</body>", f"<script>{axe}</script><script>{script}</script></body>"))

    passed, *complaints = json.loads(title_of(browse(tmp_path, copy, "--dump-dom", "--virtual-time-budget=60000")))

    assert passed > 30
    assert complaints == []
