"""The report's templates, and what they need to lay out tables, figures and pictures as one page or as Markdown.

The page asks for nothing outside itself: its Content-Security-Policy allows pictures that it holds, its own styles, and
the one script whose hash it names (it sorts tables; everything reads without it).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..wording.labels import generator_title
from ..wording.sentences import slug
from .panels import DASHES, SERIES, png_panel, with_prefix

TEMPLATES = Path(__file__).parent / "templates"
HEAT_STEPS = 10
FEW_PIXELS = 128
"""Pictures up to this width are enlarged with their pixels' edges kept."""


def environment() -> jinja2.Environment:
    """The templates ``report.html.j2`` and ``report.md.j2`` with their filters; names and texts are escaped in the page."""
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(
        anchors=anchors,
        data_uri=lambda png: png_panel("", "", png).image,
        few_pixels=few_pixels,
        generator=generator_title,
        heat=heat,
        markdown=markdown,
        paragraphs=lambda text: [part.strip() for part in text.split("\n\n") if part.strip()],
        prefixed=with_prefix,
        pretty=pretty,
    )
    found.globals.update(series=SERIES, dashes=DASHES, script=script, script_hash=script_hash(script))
    return found


def anchors(titles: Sequence[str], kind: str) -> list[str]:
    """An identifier for each title, such as ``setting-photos-split-test``: the same in every report, and each once."""
    found: list[str] = []
    for title in titles:
        words = slug(title)
        name = f"{kind}-{words}" if words else kind
        times = sum(other == name or other.startswith(f"{name}--") for other in found)
        found.append(f"{name}--{times + 1}" if times else name)
    return found


def heat(shade: float | None) -> str:
    """Classes of a heat map's cell: ``shade`` from 0 (as the page) to 1 (the strongest colour), ``None`` for no value."""
    step = 0 if shade is None else round(HEAT_STEPS * min(1.0, max(0.0, shade)))
    return f"heat h{step}"


def few_pixels(png: bytes) -> bool:
    """Whether a PNG is so narrow that it is shown enlarged."""
    return int.from_bytes(png[16:20], "big") <= FEW_PIXELS


def pretty(value: Any) -> str:
    """A plain value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def script_hash(script: str) -> str:
    """What a Content-Security-Policy calls this very script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line (lines of a cell are separated by a break)."""
    shown = html.escape(text, quote=False)
    for sign in "\\`*_[]|":
        shown = shown.replace(sign, "\\" + sign)
    return shown.replace("\n", "<br>")
