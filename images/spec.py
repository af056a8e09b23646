"""The spec of the feature ``image``: the uint8 picture that everything else derives from.

Two parts of it are asked for seldom and then decide every pixel: one JPEG history for all pictures (``harmonize``), and a
perturbation of the finished picture, for measuring how robust a detector is (``perturb``).
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..cache.spec import Spec, SpecPart
from ..choices import ImagePreset
from ..errors import UsageError

PerturbationKind = Literal["jpeg", "resize", "blur", "noise", "crop"]
MIN_SIZE, MAX_SIZE = 16, 1024
ImageSize = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]
"""Side in pixels of the pictures that a cache holds, or of what a network sees of them."""

RANGES: dict[PerturbationKind, tuple[float, float]] = {
    "jpeg": (1, 100),
    "resize": (0.05, 0.95),
    "blur": (0.1, 32),
    "noise": (0.1, 128),
    "crop": (0.05, 0.95),
}
"""Least and largest strength of each kind; a quality of JPEG is a whole number."""

EXAMPLES = "jpeg:75, resize:0.5, blur:1, noise:5 or crop:0.8"
_STRENGTH = re.compile(r"\d{1,3}(\.\d{1,4})?", re.ASCII)


class Harmonization(SpecPart):
    """Each decoded picture goes through JPEG of this quality before it is resized; see :func:`.perturb.recompress_jpeg`."""

    algorithm: Literal[1] = 1
    codec: Literal["jpeg"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)]


class Perturbation(SpecPart):
    """What is done to the finished uint8 picture; :mod:`.perturb` says what each kind does, to the pixel.

    strength : quality of ``jpeg``; share of the side for ``resize`` and ``crop``; sigma of ``blur`` in pixels and of
    ``noise`` in grey levels.
    """

    algorithm: Literal[1] = 1
    kind: PerturbationKind
    strength: float

    def __str__(self) -> str:
        """Return the form in which it is asked for, such as ``jpeg:75``."""
        return f"{self.kind}:{self.strength:.10g}"


class ImageSpec(Spec):
    """How a file becomes a uint8 picture of shape (3, size, size); :mod:`.decode` says what each preset does.

    size : side of the picture in pixels, 16..1024; the ADM's image size.
    preset : whose preprocessing: resize filter, antialiasing, and the order of resize and crop.
    harmonize : what the whole decoded picture goes through before that, if anything.
    perturb : what the finished picture goes through, if anything.

    EXIF orientation, colour conversion and rounding are the same for all presets; a change of any of them raises
    ``algorithm``.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"harmonize", "perturb"})

    feature: Literal["image"] = "image"
    algorithm: Literal[1] = 1
    size: ImageSize
    preset: ImagePreset = "distildire"
    harmonize: Harmonization | None = None
    perturb: Perturbation | None = None

    @property
    def unperturbed(self) -> ImageSpec:
        """The spec of the picture that is perturbed."""
        return self.model_copy(update={"perturb": None})


def parse_perturbation(text: str) -> Perturbation:
    """``blur:1.0`` -> Perturbation. UsageError for an unknown kind, or a strength that it cannot have."""
    kind, colon, number = text.strip().partition(":")
    if kind not in RANGES:
        raise UsageError(f"--perturb {text}: there is no such perturbation. Write, for example, {EXAMPLES}.")
    if not colon or not _STRENGTH.fullmatch(number):
        raise UsageError(
            f"--perturb {text}: needs a strength, with at most four decimals. Write, for example, {EXAMPLES}."
        )
    least, most = RANGES[kind]
    strength = float(number)
    if not least <= strength <= most:
        raise UsageError(f"--perturb {text}: the strength of {kind} lies in {least:g} to {most:g}.")
    if kind == "jpeg" and not strength.is_integer():
        raise UsageError(f"--perturb {text}: the quality of JPEG is a whole number.")
    return Perturbation(kind=kind, strength=strength)


def parse_harmonization(text: str | None) -> Harmonization | None:
    """``jpeg:95`` -> Harmonization. UsageError for anything else."""
    if text is None:
        return None
    if text == "png":
        raise UsageError(
            "--harmonize png: is gone, since it changed no pixel: leave it out and the features stay the same. "
            "For one compression over all pictures, write jpeg:QUALITY, such as jpeg:95."
        )
    codec, _, quality = text.partition(":")
    if codec != "jpeg" or not re.fullmatch(r"[1-9]\d?|100", quality, re.ASCII):
        raise UsageError(f"--harmonize {text}: write jpeg:QUALITY with a quality from 1 to 100, such as jpeg:95.")
    return Harmonization(quality=int(quality))
