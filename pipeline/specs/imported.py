"""The specs of features that others computed and that were imported from loose files.

Nobody can prove what made such a file, so a spec says whose scripts wrote it (``kind``) and what the user knows about it
(``origin``). It never equals the spec of a feature that was computed here: DistilDIRE's scripts feed the diffusion model
unrounded floats, and their eps must not be joined with ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...cache.spec import Spec, SpecPart
from ...choices import FloatStorage, ImportKind
from ...images.spec import ImageSize

ImportOrigin = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\A[ -~]+\z")]


class ImportedFiles(SpecPart):
    """Where imported values come from: whose scripts wrote the files, and what is known of model, steps and precision."""

    kind: ImportKind
    origin: ImportOrigin


class ImportedImageSpec(Spec):
    """The picture file beside the features, uint8 (3, size, size); not always what the diffusion model saw.

    resize : ``none``, or ``distildire`` where pictures of other sizes are resized as DistilDIRE's script does.
    """

    feature: Literal["image"] = "image"
    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    resize: Literal["none", "distildire"] = "none"


class ImportedEpsSpec(Spec):
    """The noise in ``eps/*.pt``, (3, size, size): of the unrounded picture, as DistilDIRE's script computes it."""

    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    storage: FloatStorage = "float16"


class _ImportedPicture(Spec):
    """A picture that the scripts computed, uint8 (3, size, size). lossy : JPEG and WebP were taken too."""

    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    lossy: bool = False


class ImportedReconSpec(_ImportedPicture):
    """The reconstruction in ``recons/``."""

    feature: Literal["recon"] = "recon"


class ImportedDireSpec(_ImportedPicture):
    """DIRE in ``dire/``."""

    feature: Literal["dire"] = "dire"
