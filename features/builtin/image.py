"""The image itself: decoded by stage one, and never computed of anything else."""

from __future__ import annotations

from ...cache.records.about import Layout
from ...images.spec import ImageSpec
from ..contract import Feature


class Image(Feature[ImageSpec]):
    """The image that all other features are computed of, uint8 (3, S, S)."""

    spec_type = ImageSpec
    description = "the image, RGB, channels first; all other features derive from it"
    built = "always"

    def layout(self, spec: ImageSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((3, spec.size, spec.size), "uint8", "image")
