"""A trained student in use, and what each method costs: the only place, beside the demo, where both stages meet.

The names below are imported when they are first used: they bring torch along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .detector import Detector
    from .prediction import Prediction

__all__ = ["Detector", "Prediction"]

_WHERE = {"Detector": ".detector", "Prediction": ".prediction"}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)
