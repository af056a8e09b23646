"""Image networks and weights files: what both stages need of torch modules. It knows neither the cache nor a stage."""

from .backbones import BACKBONES, LoadedTeacher, backbone_entry, build_backbone, load_teacher
from .download import WeightsFile, download
from .weights import file_sha256, read_metadata, read_state_dict, weights_digest

__all__ = [
    "BACKBONES",
    "LoadedTeacher",
    "WeightsFile",
    "backbone_entry",
    "build_backbone",
    "download",
    "file_sha256",
    "load_teacher",
    "read_metadata",
    "read_state_dict",
    "weights_digest",
]
