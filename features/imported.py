"""Specs of features imported from files that other programs computed.

What made such a file cannot be proven, so its spec says whose scripts wrote it (``kind``) and what the user knows about
it (``origin``). It never equals the spec of a feature that was computed here: DistilDIRE's scripts feed unrounded floats
to the diffusion model, and their eps must not be joined with ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..cache.records.about import Layout
from ..cache.spec import Spec, SpecPart
from ..choices import FloatStorage, ImportKind
from ..images.spec import ImageSize
from .rounding import float_pixels

ImportOrigin = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\A[ -~]+\z")]


class ImportedFiles(SpecPart):
    """Origin of imported values: whose scripts wrote the files, and what the user knows about them."""

    kind: ImportKind
    origin: ImportOrigin


class ImportedSpec(Spec):
    """Spec of imported rows, which are square."""

    size: ImageSize

    @property
    def layout(self) -> Layout:
        """What a row is."""
        return Layout((3, self.size, self.size), "uint8", "pixels")


class ImportedImageSpec(ImportedSpec):
    """The image file beside the features, uint8 (3, size, size); the diffusion model may have seen it resized.

    Attributes
    ----------
    algorithm
        As in :class:`..images.spec.ImageSpec`: the same decoder reads the files.
    resize
        ``none``, or how images of other sizes are resized: ``distildire`` as by DistilDIRE's script,
        ``dire-center-crop`` as by DIRE's.
    """

    feature: Literal["image"] = "image"
    algorithm: Literal[1, 2] = 2
    imported: ImportedFiles
    size: ImageSize
    resize: Literal["none", "distildire", "dire-center-crop"] = "none"

    @property
    def layout(self) -> Layout:
        """What a row is."""
        return Layout((3, self.size, self.size), "uint8", "image")


class ImportedEpsSpec(ImportedSpec):
    """The noise in ``eps/*.pt``, (3, size, size), which DistilDIRE's script computes from the unrounded image."""

    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    storage: FloatStorage = "float16"

    @property
    def layout(self) -> Layout:
        """What a row is."""
        return float_pixels(self.size, self.storage)


class _ImportedImage(ImportedSpec):
    """An image computed by the scripts, uint8 (3, size, size). ``lossy``: JPEG and WebP files are accepted too."""

    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    lossy: bool = False


class ImportedReconSpec(_ImportedImage):
    """The reconstruction in ``recons/``."""

    feature: Literal["recon"] = "recon"

    @property
    def layout(self) -> Layout:
        """What a row is."""
        return Layout((3, self.size, self.size), "uint8", "image")


class ImportedDireSpec(_ImportedImage):
    """DIRE in ``dire/``."""

    feature: Literal["dire"] = "dire"
