"""``teacher``: a frozen backbone's last feature map of a DIRE image, for each view (DistilDIRE).

The paper feeds DIRE in [0, 1], normalised as the backbone's weights expect, at 224 pixels for images of 256; the
official code feeds DIRE in [-1, 1] at the image's own size. A spec holds these numbers, not the preset's name.
Teacher(flip(x)) is not flip(Teacher(x)), so the flipped view is stored beside the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...cache.records.about import Layout, View
from ...cache.spec import Spec
from ...choices import Precision, Preset
from ...errors import IntegrityError
from ...models.backbone_entry import Triple
from ...models.backbones import HALF, BackboneSource, backbone_entry, build_backbone, resize
from ...models.input_size import paper_size
from ...models.transfer import HostArray
from ..contract import Network, SingleFeature
from ..imported import ImportedDireSpec
from ..views import Positive, of_views
from .dire import DireSpec

MOST_ZEROS = 0.95
"""Share of zeros beyond which maps have little to teach."""
_ADVICE = "Choose a larger --train-size or another --teacher, or take those of --profile small."


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


class Teacher(SingleFeature[TeacherSpec]):
    """The map of a frozen backbone, float16 (V, C, h, w)."""

    spec_type = TeacherSpec
    description = "the last feature map of a frozen image backbone applied to DIRE, one for each view"
    built = "for train"
    unit = "teacher"

    def layout(self, spec: TeacherSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((len(spec.views), *map_shape(spec)), "float16", "map", views=spec.views)

    def derived(self, settings: Mapping[str, Any], inputs: Mapping[str, Spec]) -> Mapping[str, object]:
        """See :class:`..contract.Feature`; from ``preset`` and, if it is given, ``train_size``."""
        dire, preset = inputs["dire"], settings["preset"]
        assert isinstance(dire, DireSpec | ImportedDireSpec)
        side = dire.size if isinstance(dire, ImportedDireSpec) else dire.image.size
        mean, std = normalisation(settings["backbone"], preset)
        return {"size": settings.get("train_size") or default_train_size(side, preset), "mean": mean, "std": std}

    def network(self, options: Mapping[str, Any]) -> BackboneSource:
        """See :class:`..contract.SingleFeature`."""
        return BackboneSource(options["teacher"], options["teacher_weights"], options["sha256"])

    def options(self, spec: TeacherSpec) -> Mapping[str, Any]:
        """See :class:`..contract.SingleFeature`."""
        return {"teacher": spec.backbone, "teacher_weights": None, "sha256": ()}

    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: TeacherSpec) -> Tensor:
        """See :class:`..contract.SingleFeature`."""
        assert network is not None
        return teacher_views(network, inputs["dire"], spec)

    def check(self, rows: HostArray, spec: TeacherSpec) -> None:
        """See :class:`..contract.SingleFeature`."""
        if not np.isfinite(rows).all():
            raise IntegrityError(
                f"teacher {spec.backbone}: a feature is not a finite float16 number. "
                "Its weights are damaged, or do not fit this normalisation or precision. Try --precision fp32."
            )

    def warnings(self, spec: TeacherSpec) -> list[str]:
        """See :class:`..contract.Feature`: a map of one position says nothing about where in an image something is."""
        height, width = map_shape(spec)[-2:]
        if (height, width) != (1, 1):
            return []
        return [f"The map of teacher {spec.backbone} at {spec.size} pixels has a single position (1x1). {_ADVICE}"]

    def warnings_about(self, rows: HostArray, spec: TeacherSpec) -> list[str]:
        """See :class:`..contract.SingleFeature`: a map of almost only zeros has little to teach."""
        share = float(np.mean(rows == 0))
        if share <= MOST_ZEROS:
            return []
        return [
            f"The maps of teacher {spec.backbone} at {spec.size} pixels are {share:.1%} zeros over the first "
            f"{len(rows)} images, so a student learns little from them. {_ADVICE}"
        ]

    def rate_key(self, spec: TeacherSpec) -> dict[str, object]:
        """See :class:`..contract.SingleFeature`."""
        return {"teacher": spec.weights, "size": spec.size, "precision": spec.precision}


def teacher_views(network: Network, dire: Tensor, spec: TeacherSpec) -> Tensor:
    """Run the backbone on every view of DIRE images, on their device, which is not waited for.

    With bf16 and fp16, autocast selects the operations that run in that type.

    Parameters
    ----------
    network
        The backbone.
    dire : Tensor, shape (B, 3, S, S)
        DIRE images, uint8, on the network's device.
    spec
        Input size, normalisation, views and precision.

    Returns
    -------
    Tensor, shape (B, V, C, h, w)
        float16.
    """
    return of_views(network, resize(dire.float() / 255, spec.size), spec)


def map_shape(spec: TeacherSpec) -> tuple[int, ...]:
    """Return the shape of the map of one view, (C, h, w)."""
    with torch.device("meta"):  # shapes only, no arithmetic
        features = build_backbone(spec.backbone)(torch.empty(2, 3, spec.size, spec.size))
    return tuple(features.shape[1:])


def default_train_size(image_size: int, preset: Preset) -> int:
    """Return the side of the networks' input: 7/8 of the image's for ``paper`` (224 of 256), else the image's."""
    return paper_size(image_size) if preset == "paper" else image_size


def normalisation(backbone: str, preset: Preset) -> tuple[Triple, Triple]:
    """Return mean and standard deviation for DIRE in [0, 1]: the backbone's own, or those that map it to [-1, 1]."""
    if preset == "official-code":
        return HALF, HALF
    entry = backbone_entry(backbone)
    return entry.mean, entry.std
