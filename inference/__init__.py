"""A trained student in use, and what each method costs: the only place, beside the demo, where both stages meet.

:class:`Detector` is imported when it is first used, since it brings torch along.
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
