"""A trained student on new images, and what each method costs. Only here and in the demo do both stages meet.

Others use :class:`Detector`, which is imported on first use since it loads torch; the command ``predict`` also uses
``predict`` and ``prediction``, and ``inference.bench`` is a subject of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .detector import Detector

__all__ = ["Detector"]


def __getattr__(name: str) -> object:
    if name != "Detector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .detector import Detector

    return Detector
