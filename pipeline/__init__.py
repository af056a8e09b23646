"""Stage one: from images to cached features.

``run_build`` brings torch with it and is imported when it is first asked for: the plan, the scan and the sources do
without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..progress import Progress, Silent
    from .build import run_build, run_builds
    from .cluster.placement import Placement
    from .config import BuildConfig, build_requests
    from .rates import Quote

__all__ = ["BuildConfig", "Placement", "Progress", "Quote", "Silent", "build_requests", "run_build", "run_builds"]

_WHERE = {
    "BuildConfig": ".config",
    "Placement": ".cluster.placement",
    "Progress": "..progress",
    "Quote": ".rates",
    "Silent": "..progress",
    "build_requests": ".config",
    "run_build": ".build",
    "run_builds": ".build",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)
