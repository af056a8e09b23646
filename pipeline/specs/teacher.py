"""The teacher's features of a DIRE image: a frozen backbone's last feature map for each view (DistilDIRE).

The paper feeds DIRE in [0, 1], normalised as the backbone's weights expect, at 224 pixels for images of 256; the
official code feeds DIRE in [-1, 1] at the image's own size. A spec holds the numbers themselves, not the preset's
name. Teacher(flip(x)) is not flip(Teacher(x)), so the flipped view is stored beside the plain one.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from ...cache.spec import Spec
from ...choices import Precision, Preset
from ...errors import IntegrityError
from ...models.backbones import HALF, Triple, backbone_entry, resize
from ...models.device import HALF_TYPES
from ...models.input_size import paper_size
from .adm_features import DireSpec
from .imported import ImportedDireSpec

View = Literal["identity", "hflip"]
Positive = Annotated[float, Field(gt=0)]


class TeacherSpec(Spec):
    """Feature map of a frozen backbone, (V, F, h, w) float16, V in the order of ``views``.

    DIRE / 255, resized to ``size`` (bilinear, antialiased; nothing where it has that size), then the view, then (x -
    mean) / std.
    weights : digest of the backbone's weights, without a classifier's.
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
    """Return the spec of a teacher by what a preset says of its input, for DIRE images of ``image_size`` pixels.

    train_size : side that the teacher sees; by default the preset's.
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
    """Return the side that teacher and student see: 7/8 of the image's in the paper (224 of 256), all in the code."""
    return paper_size(image_size) if preset == "paper" else image_size


def normalisation(backbone: str, preset: Preset) -> tuple[Triple, Triple]:
    """Return mean and standard deviation for DIRE in [0, 1]: the backbone's own, or those that lead to [-1, 1]."""
    if preset == "official-code":
        return HALF, HALF
    entry = backbone_entry(backbone)
    return entry.mean, entry.std


def teacher_views(model: nn.Module, dire_u8: Tensor, spec: TeacherSpec) -> Tensor:
    """Run the backbone on every view of DIRE images, on the device where both are.

    dire_u8 : (B, 3, S, S) uint8. Returns (B, V, F, h, w) float16. With bf16 and fp16, autocast chooses what runs in
    that type. The result waits for nothing; see :func:`check_teacher`.
    """
    images = resize(dire_u8.float() / 255, spec.size)
    mean = images.new_tensor(spec.mean).view(3, 1, 1)
    std = images.new_tensor(spec.std).view(3, 1, 1)
    views = []
    half = HALF_TYPES.get(spec.precision)
    with torch.inference_mode(), torch.autocast(images.device.type, dtype=half, enabled=half is not None):
        for view in spec.views:
            seen = images.flip(-1) if view == "hflip" else images
            views.append(model((seen - mean) / std).half())
    return torch.stack(views, dim=1)


def check_teacher(features: NDArray[np.float16], spec: TeacherSpec) -> None:
    """Raise `IntegrityError` if a feature of :func:`teacher_views`, on the host, is not a finite number."""
    if not np.isfinite(features).all():
        raise IntegrityError(
            f"teacher {spec.backbone}: a feature is not a finite float16 number. "
            "Its weights are damaged, or do not belong to this normalisation or precision; try --precision fp32."
        )
