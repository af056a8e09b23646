"""Image networks and weights files: what both stages need of torch modules. It knows neither the cache nor a stage.

The names below are imported when they are first used: some modules here need no torch, and who uses those alone should not
wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import BACKBONES, LoadedTeacher, backbone_entry, build_backbone, load_teacher
    from .download import WeightsFile
    from .weights import file_sha256, read_metadata, read_state_dict, weights_digest

__all__ = [
    "BACKBONES",
    "LoadedTeacher",
    "WeightsFile",
    "backbone_entry",
    "build_backbone",
    "file_sha256",
    "load_teacher",
    "read_metadata",
    "read_state_dict",
    "weights_digest",
]

_HOMES = {
    "BACKBONES": "backbones",
    "LoadedTeacher": "backbones",
    "WeightsFile": "download",
    "backbone_entry": "backbones",
    "build_backbone": "backbones",
    "file_sha256": "weights",
    "load_teacher": "backbones",
    "read_metadata": "weights",
    "read_state_dict": "weights",
    "weights_digest": "weights",
}


def __getattr__(name: str) -> Any:
    """Import one of the public names."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
