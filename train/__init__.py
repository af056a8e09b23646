"""Stage two: train students from cached features, evaluate and compare them. Opens no source image, loads no ADM.

The names below are imported when they are first used, since the processes that read batches need none of them and would
take seconds to load what they bring along.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TrainConfig
    from .evaluate import run_evaluation
    from .loop import run_training
    from .sweep import run_sweep

__all__ = ["TrainConfig", "run_evaluation", "run_sweep", "run_training"]

_HOMES = {
    "TrainConfig": "config",
    "run_evaluation": "evaluate",
    "run_sweep": "sweep",
    "run_training": "loop",
}


def __getattr__(name: str) -> Any:
    """Import one of the public names."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
