"""Findings in words: what a feature is among the real images, and what among the generated ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

Value = str | float | None

_MOST_VALUES = 3
_LONGEST = 48


def describe_check(name: str, real: Sequence[Value], generated: Sequence[Value]) -> str:
    """Return a sentence such as ``JPEG quality: real 54 to 96 (median 96), generated none``. Neither may be empty."""
    return f"{name}: real {_described(real)}, generated {_described(generated)}"


def _described(values: Sequence[Value]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "none"
    numbers = [float(value) for value in there if not isinstance(value, str)]
    text = _numbers(numbers) if len(numbers) == len(there) else _words([str(value) for value in there])
    missing = len(values) - len(there)
    return f"{text} [none in {missing:,} of {len(values):,}]" if missing else text


def _numbers(values: Sequence[float]) -> str:
    low, median, high = (_number(value) for value in np.quantile(values, [0, 0.5, 1]))
    return low if low == high else f"{low} to {high} (median {median})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


def _words(values: Sequence[str]) -> str:
    counts = Counter(values)
    shown = [
        f"{_shortened(value)} {100 * count / len(values):.0f} %" for value, count in counts.most_common(_MOST_VALUES)
    ]
    others = len(counts) - len(shown)
    return "; ".join(shown) + (f"; {others:,} others" if others > 0 else "")


def _shortened(value: str) -> str:
    if not value:
        return "(nothing)"
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
