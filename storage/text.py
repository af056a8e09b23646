"""Foreign text made visible and harmless: names of files, folders, generators and datasets before they are shown.

A name may hold escape sequences that move the cursor, line ends that fake a line, marks that turn the reading
direction, or a formula that a spreadsheet would run. Terminals, reports and tables show such signs escaped.
"""

from __future__ import annotations

import json
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PLAIN = frozenset("\n ")


def visible(text: str) -> str:
    r"""Return a text with every control, formatting and invalid character escaped, line ends too: ``\x1b``, ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def harmless(value: Any) -> Any:
    """Return a nested result of dicts, lists and plain values with all its texts made :func:`visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {harmless(key): harmless(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [harmless(item) for item in value]
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    r"""Return a value as JSON that a terminal can show: the same value, control and invalid characters as ``\uXXXX``."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in _PLAIN else json.dumps(letter)[1:-1] for letter in text)


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file: texts visible, and with a quote in front if a spreadsheet would run them."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(_FORMULA) else visible(value)
