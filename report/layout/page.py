"""The sections of a page, and the templates that lay out tables, figures and images as HTML or Markdown.

The page loads nothing: its Content-Security-Policy allows embedded images, its own styles, and the one script whose
hash it names (the script sorts tables and opens folded parts; the page is complete without it).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..wording import generator_title, slug, with_command
from .panels import DASHES, SERIES, Figure, png_panel, with_prefix
from .tables import Table

TEMPLATES = Path(__file__).parent / "templates"
HEAT_STEPS = 10
FEW_PIXELS = 128
"""Images up to this width in pixels are enlarged without smoothing."""


@dataclass(frozen=True)
class Section:
    """A part of the page after the comparisons.

    Attributes
    ----------
    title : str
    text : str
        Paragraphs, separated by blank lines; may be empty.
    table : Table or None
    figures : sequence of Figure
    """

    title: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Addition:
    """One subject added to the report.

    Attributes
    ----------
    name : str
        Key of ``content`` under ``extra`` in report.json; unique in a report.
    sections : sequence of Section
        What the page and the Markdown show, in this order.
    content : optional
        The same as plain values (mappings, sequences, numbers, strings). None adds nothing to report.json.
    """

    name: str
    sections: Sequence[Section]
    content: Any = None


def environment() -> jinja2.Environment:
    """Load the templates ``report.html.j2`` and ``report.md.j2`` with their filters. HTML is escaped automatically."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
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
        with_command=with_command,
        pretty=pretty,
    )
    found.globals.update(series=SERIES, dashes=DASHES, script=script, script_hash=script_hash(script))
    return found


def anchors(titles: Sequence[str], kind: str) -> list[str]:
    """Return an HTML id for each title, such as ``setting-photos-split-test``: unique, and the same in every report."""
    found: list[str] = []
    for title in titles:
        ending = slug(title)
        name = f"{kind}-{ending}" if ending else kind
        times = sum(other == name or other.startswith(f"{name}--") for other in found)
        found.append(f"{name}--{times + 1}" if times else name)
    return found


def heat(shade: float | None) -> str:
    """Return the CSS classes of a heat map's cell; ``shade`` is in 0..1, None for no value."""
    step = 0 if shade is None else round(HEAT_STEPS * min(1.0, max(0.0, shade)))
    return f"heat h{step}"


def few_pixels(png: bytes) -> bool:
    """Return whether a PNG is narrow enough to be shown enlarged."""
    return int.from_bytes(png[16:20], "big") <= FEW_PIXELS


def pretty(value: Any) -> str:
    """Format a plain value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def script_hash(script: str) -> str:
    """Return the hash by which a Content-Security-Policy allows this script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def markdown(text: str) -> str:
    """Escape text for Markdown; line ends become ``<br>``."""
    shown = html.escape(text, quote=False)
    for sign in "\\`*_[]|":
        shown = shown.replace(sign, "\\" + sign)
    return shown.replace("\n", "<br>")
