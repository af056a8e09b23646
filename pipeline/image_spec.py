"""The spec of the feature ``image``: the uint8 picture that everything else derives from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..cache.spec import Spec

ImagePreset = Literal["distildire", "dire", "dnf"]


class ImageSpec(Spec):
    """How a file becomes a uint8 picture of shape (3, size, size); :mod:`.decode` says what each preset does.

    size : side of the picture in pixels, 16..1024; the ADM's image size.
    preset : whose preprocessing: resize filter, antialiasing, and the order of resize and crop.

    EXIF orientation, colour conversion and rounding are the same for all presets; a change of any of them raises
    ``algorithm``.
    """

    feature: Literal["image"] = "image"
    algorithm: Literal[1] = 1
    size: Annotated[int, Field(ge=16, le=1024)]
    preset: ImagePreset = "distildire"
