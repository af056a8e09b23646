"""What other modules add to the report: parts of the page, and values for report.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .panels import Figure
from .tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the page that follows the comparisons: paragraphs (separated by blank lines), a table, figures; each may lack."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Addition:
    """One subject that is added to the report.

    name : where ``content`` stands under ``extra`` in report.json; no two additions share one.
    sections : what the page and the Markdown show, in this order.
    content : the same as plain values (mappings, sequences, numbers, text); ``None`` adds nothing to report.json.
    """

    name: str
    sections: Sequence[Section]
    content: Any = None
