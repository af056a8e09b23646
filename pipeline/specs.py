"""Specs: what decides the value of each feature. The fingerprint of a spec names the feature's folder in the cache.

Three groups: features that the ADM computes (eps, recon, dire, noise), features imported from files that other programs
computed, and the teacher's features of DIRE. The spec of the image is in :mod:`..images.spec`, beside its decoder. A
setting that changes only the speed (batch size, device, shard size, format) is in none of them.

**Imported features.** What made such a file cannot be proven, so its spec says whose scripts wrote it (``kind``) and
what the user knows about it (``origin``). It never equals the spec of a feature that was computed here: DistilDIRE's
scripts feed unrounded floats to the diffusion model, and their eps must not be joined with ours.

**Teacher.** A frozen backbone's last feature map of a DIRE image, for each view (DistilDIRE). The paper feeds DIRE in
[0, 1], normalised as the backbone's weights expect, at 224 pixels for images of 256; the official code feeds DIRE in
[-1, 1] at the image's own size. A spec holds these numbers, not the preset's name. Teacher(flip(x)) is not
flip(Teacher(x)), so the flipped view is stored beside the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from ..cache.spec import Spec, SpecPart
from ..choices import FloatStorage, ImportKind, NoiseReduction, Precision, Preset
from ..errors import IntegrityError
from ..images.spec import ImageSize, ImageSpec
from ..models.backbones import HALF, Triple, backbone_entry, per_channel, resize
from ..models.class_label import ClassLabel
from ..models.device import HALF_TYPES
from ..models.diffusion.unet import AdmConfig
from ..models.input_size import paper_size
from ..models.layout import memory_layout


class AdmIdentity(SpecPart):
    """Identity of a diffusion model: digest of its weights (SHA-256) and its flags, without path or file format.

    ``class_label`` says which class a class-conditional model is told for each image, see
    :class:`..models.class_label.ClassLabel`.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"class_label"})

    weights: str = Field(pattern="^[0-9a-f]{64}$")
    flags: dict[str, str | int | float | bool]
    class_label: str | None = Field(default=None, pattern="^(random:[0-9]+|[0-9]+)$")

    @classmethod
    def of(cls, digest: str, config: AdmConfig, class_label: str | None = None) -> AdmIdentity:
        """Return the identity of a model. Dropout is left out: it has no effect in evaluation mode."""
        label = None if class_label is None else ClassLabel.parse(class_label).text
        return cls(weights=digest, flags=config.model_dump(exclude={"dropout"}), class_label=label)


class EpsSpec(Spec):
    """The noise that the ADM predicts at the first inversion step, t = 0 (DistilDIRE, section 3.2).

    float16 or float32 of shape (3, S, S). It is the same for every respacing, so the spec has no number of steps.
    With a ``storage`` of int8 or int4 the rows are float16 that :mod:`..cache.shards.packed` has rounded.
    """

    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    image: ImageSpec
    adm: AdmIdentity
    clip: bool = True
    precision: Precision = "fp32"
    storage: FloatStorage = "float16"


class _InversionSpec(Spec):
    """Fields of all features that need the whole DDIM path."""

    image: ImageSpec
    adm: AdmIdentity
    steps: str = "ddim20"
    real_step: int = Field(default=0, ge=0)
    clip: bool = True
    precision: Precision = "fp32"


class ReconSpec(_InversionSpec):
    """The image after DDIM inversion and sampling, uint8 (3, S, S).

    ``algorithm`` 2 truncates, as DIRE's script does when it saves the file; 1 rounded.
    """

    feature: Literal["recon"] = "recon"
    algorithm: Literal[1, 2] = 2


class DireSpec(_InversionSpec):
    """DIRE of the cached image, uint8 (3, S, S) (Wang et al. 2023, eq. 6; truncated as in their code)."""

    feature: Literal["dire"] = "dire"
    algorithm: Literal[1] = 1


class NoiseSpec(_InversionSpec):
    """DNF: the noises along the inversion, reduced to one of shape (3, S, S) (Zhang and Xu 2023, section 3)."""

    feature: Literal["noise"] = "noise"
    algorithm: Literal[1] = 1
    reduction: NoiseReduction = "mean"
    storage: FloatStorage = "float16"


def one_call_features(specs: Mapping[str, Spec]) -> frozenset[str]:
    """Return the features that a single ADM call gives: eps, and DNF's noise if only its first step is kept."""
    return frozenset(
        feature
        for feature, spec in specs.items()
        if isinstance(spec, EpsSpec) or (isinstance(spec, NoiseSpec) and spec.reduction == "first")
    )


def with_image_algorithm(spec: Spec, algorithm: int) -> Spec:
    """Return the spec that a feature has if its images were decoded by the rules of this ``ImageSpec.algorithm``.

    Specs of imported features are returned as they are: their images are not part of them.
    """
    if isinstance(spec, ImageSpec):
        return spec.model_copy(update={"algorithm": algorithm})
    for name in ("image", "dire"):
        part = getattr(spec, name, None)
        if isinstance(part, Spec):
            return spec.model_copy(update={name: with_image_algorithm(part, algorithm)})
    return spec


ImportOrigin = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\A[ -~]+\z")]


class ImportedFiles(SpecPart):
    """Origin of imported values: whose scripts wrote the files, and what the user knows about them."""

    kind: ImportKind
    origin: ImportOrigin


class ImportedImageSpec(Spec):
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


class ImportedEpsSpec(Spec):
    """The noise in ``eps/*.pt``, (3, size, size), which DistilDIRE's script computes from the unrounded image."""

    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    storage: FloatStorage = "float16"


class _ImportedImage(Spec):
    """An image computed by the scripts, uint8 (3, size, size). ``lossy``: JPEG and WebP files are accepted too."""

    algorithm: Literal[1] = 1
    imported: ImportedFiles
    size: ImageSize
    lossy: bool = False


class ImportedReconSpec(_ImportedImage):
    """The reconstruction in ``recons/``."""

    feature: Literal["recon"] = "recon"


class ImportedDireSpec(_ImportedImage):
    """DIRE in ``dire/``."""

    feature: Literal["dire"] = "dire"


View = Literal["identity", "hflip"]
Positive = Annotated[float, Field(gt=0)]


class TeacherSpec(Spec):
    """Feature map of a frozen backbone, float16 (V, F, h, w), V in the order of ``views``.

    The backbone's input is DIRE / 255, resized to ``size`` (bilinear, antialiased; unchanged if it has that size),
    flipped according to the view, then normalised as (x - mean) / std.

    Attributes
    ----------
    dire
        Spec of the DIRE images.
    weights
        Digest (SHA-256) of the backbone's weights, without those of a classifier.
    size
        Side of the backbone's input in pixels.
    """

    feature: Literal["teacher"] = "teacher"
    algorithm: Literal[1] = 1
    dire: DireSpec | ImportedDireSpec
    backbone: str
    weights: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=1)
    filter: Literal["bilinear-antialias"] = "bilinear-antialias"
    mean: Triple
    std: tuple[Positive, Positive, Positive]
    views: tuple[View, ...] = Field(default=("identity", "hflip"), min_length=1)
    precision: Precision = "fp32"
    storage: Literal["float16"] = "float16"


def teacher_spec(
    dire: DireSpec | ImportedDireSpec,
    *,
    backbone: str,
    weights: str,
    preset: Preset,
    image_size: int,
    train_size: int | None,
    precision: Precision,
) -> TeacherSpec:
    """Return the spec of a teacher whose input is prepared as a preset defines it.

    Parameters
    ----------
    dire
        Spec of the DIRE images.
    backbone
        Name of the backbone.
    weights
        Digest of its weights.
    preset
        ``paper`` or ``official-code``: input size and normalisation.
    image_size
        Side of the DIRE images in pixels.
    train_size
        Side of the teacher's input; None for the preset's.
    precision
        Precision of the backbone.
    """
    mean, std = normalisation(backbone, preset)
    return TeacherSpec(
        dire=dire,
        backbone=backbone,
        weights=weights,
        size=train_size or default_train_size(image_size, preset),
        mean=mean,
        std=std,
        precision=precision,
    )


def default_train_size(image_size: int, preset: Preset) -> int:
    """Return the side of the networks' input: 7/8 of the image's for ``paper`` (224 of 256), else the image's."""
    return paper_size(image_size) if preset == "paper" else image_size


def normalisation(backbone: str, preset: Preset) -> tuple[Triple, Triple]:
    """Return mean and standard deviation for DIRE in [0, 1]: the backbone's own, or those that map it to [-1, 1]."""
    if preset == "official-code":
        return HALF, HALF
    entry = backbone_entry(backbone)
    return entry.mean, entry.std


def teacher_views(model: nn.Module, dire_u8: Tensor, spec: TeacherSpec) -> Tensor:
    """Run the backbone on every view of DIRE images, on their device.

    With bf16 and fp16, autocast selects the operations that run in that type. The call does not synchronise with the
    device, so the values are checked later by :func:`check_teacher`.

    Parameters
    ----------
    model
        Backbone.
    dire_u8
        uint8 DIRE of shape (B, 3, S, S), on the model's device.
    spec
        Input size, normalisation, views and precision.

    Returns
    -------
    float16 tensor of shape (B, V, F, h, w)
    """
    images = resize(dire_u8.float() / 255, spec.size)
    mean, std = per_channel(spec.mean, images), per_channel(spec.std, images)
    views = []
    half = HALF_TYPES.get(spec.precision)
    with torch.inference_mode(), torch.autocast(images.device.type, dtype=half, enabled=half is not None):
        for view in spec.views:
            flipped = images.flip(-1) if view == "hflip" else images
            x = ((flipped - mean) / std).contiguous(memory_format=memory_layout(images.device))
            views.append(model(x).half())
    return torch.stack(views, dim=1)


def check_teacher(features: NDArray[np.float16], spec: TeacherSpec) -> None:
    """Raise IntegrityError if features of :func:`teacher_views`, copied to the host, are not finite."""
    if not np.isfinite(features).all():
        raise IntegrityError(
            f"teacher {spec.backbone}: a feature is not a finite float16 number. "
            "Its weights are damaged, or do not fit this normalisation or precision. Try --precision fp32."
        )
