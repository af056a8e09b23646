"""The spec of the feature ``image``: the uint8 image from which all other features are computed.

Two optional parts change every pixel: the same JPEG compression for all images (``harmonize``), and a perturbation of
the result, for measuring the robustness of a detector (``perturb``).
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..cache.spec import Spec, SpecPart
from ..choices import StoredPreset
from ..errors import UsageError

PerturbationKind = Literal["jpeg", "resize", "blur", "noise", "crop"]
MIN_SIZE, MAX_SIZE = 16, 1024
ImageSize = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]
"""Side in pixels of cached images, or of a network's input."""

RANGES: dict[PerturbationKind, tuple[float, float]] = {
    "jpeg": (1, 100),
    "resize": (0.05, 0.95),
    "blur": (0.1, 32),
    "noise": (0.1, 128),
    "crop": (0.05, 0.95),
}
"""Smallest and largest strength of each kind. JPEG quality is an integer."""

EXAMPLES = "jpeg:75, resize:0.5, blur:1, noise:5 or crop:0.8"
_STRENGTH = re.compile(r"\d{1,3}(\.\d{1,4})?", re.ASCII)


class Harmonization(SpecPart):
    """JPEG compression of every decoded image before it is resized; see :func:`.perturb.recompress_jpeg`."""

    algorithm: Literal[1] = 1
    codec: Literal["jpeg"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)]


class Perturbation(SpecPart):
    """A perturbation of the decoded uint8 image; :mod:`.perturb` defines each kind to the pixel.

    Attributes
    ----------
    kind
        Kind of perturbation.
    strength
        Quality for ``jpeg``; share of the side for ``resize`` and ``crop``; sigma in pixels for ``blur`` and in grey
        levels for ``noise``.
    """

    algorithm: Literal[1] = 1
    kind: PerturbationKind
    strength: float

    def __str__(self) -> str:
        """Return it as written on the command line, such as ``jpeg:75``."""
        return f"{self.kind}:{self.strength:.10g}"


class ImageSpec(Spec):
    """How a file becomes a uint8 image of shape (3, size, size); :mod:`.decode` lists the steps.

    Which files are refused, orientation, colour conversion and rounding are the same for all presets. A change to any
    of them increments ``algorithm``. Only the newest rules are in the program: an old spec names the cached rows that
    were made by the old ones, and :func:`.decode.decode` follows today's whatever the spec's number is.

    Attributes
    ----------
    algorithm
        2: a damaged file is refused whole, and 16-bit, transparent and turned images are read as :mod:`.decode` says.
        1: the rules before.
    size
        Side of the image in pixels, 16..1024; the ADM's image size.
    preset
        Preprocessing: resize filter, antialiasing, and the order of resize and crop. ``dire`` is the option's
        ``dire-v1``, see :data:`..choices.STORED_PRESETS`.
    harmonize
        JPEG compression of the decoded image before the resize, if any.
    perturb
        Perturbation of the resized image, if any.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"harmonize", "perturb"})

    feature: Literal["image"] = "image"
    algorithm: Literal[1, 2] = 2
    size: ImageSize
    preset: StoredPreset = "distildire"
    harmonize: Harmonization | None = None
    perturb: Perturbation | None = None

    @property
    def unperturbed(self) -> ImageSpec:
        """The spec of the image before its perturbation."""
        return self.model_copy(update={"perturb": None})


def parse_perturbation(text: str) -> Perturbation:
    """Parse a perturbation such as ``blur:1.0``. Raises UsageError for an unknown kind or a strength out of range."""
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
        raise UsageError(f"--perturb {text}: the strength of {kind} must be {least:g} to {most:g}.")
    if kind == "jpeg" and not strength.is_integer():
        raise UsageError(f"--perturb {text}: the quality of JPEG must be an integer.")
    return Perturbation(kind=kind, strength=strength)


def parse_harmonization(text: str | None) -> Harmonization | None:
    """Parse ``jpeg:QUALITY``. Raises UsageError for anything else."""
    if text is None:
        return None
    if text == "png":
        raise UsageError(
            "--harmonize png: was removed because it changed no pixel. Leave it out; the features stay the same. "
            "To compress all images alike, write jpeg:QUALITY, such as jpeg:95."
        )
    codec, _, quality = text.partition(":")
    if codec != "jpeg" or not re.fullmatch(r"[1-9]\d?|100", quality, re.ASCII):
        raise UsageError(f"--harmonize {text}: write jpeg:QUALITY with a quality from 1 to 100, such as jpeg:95.")
    return Harmonization(quality=int(quality))
