"""``embedding``: the pooled features of a frozen backbone on the image, for each view (UniversalFakeDetect).

UniversalFakeDetect (Ojha et al. 2023; WisconsinAIVision/UniversalFakeDetect) trains one linear unit on the features of a
frozen CLIP ViT-L/14. Here it is any registered backbone, or any of timm's. The whole image is resized to the size that the
backbone's weights were trained with, where their code crops the centre of the original; ``timm:`` CLIP is read before its
projection (1,024 numbers of ViT-L/14, where theirs are the 768 after it).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...cache.records.about import Layout, View
from ...cache.spec import Spec
from ...choices import Precision
from ...errors import UserError
from ...images.spec import ImageSpec
from ...models.backbone_entry import Interpolation, Triple
from ...models.backbones import BackboneSource, backbone_entry, resize
from ..contract import Network, SingleFeature
from ..views import Positive, of_views


class EmbeddingSpec(Spec):
    """Spec of ``embedding``, float16 (V, D), V in the order of ``views``.

    The backbone's input is image / 255, resized to ``size`` (antialiased; unchanged if it has that size), flipped
    according to the view, then normalised as (x - mean) / std.

    Attributes
    ----------
    weights
        Digest (SHA-256) of the backbone's weights, without those of a classifier.
    size, interpolation, mean, std
        The input that these weights were trained with, as the backbone's source says.
    """

    feature: Literal["embedding"] = "embedding"
    algorithm: Literal[1] = 1
    image: ImageSpec
    backbone: str
    weights: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=1)
    interpolation: Interpolation
    mean: Triple
    std: tuple[Positive, Positive, Positive]
    views: tuple[View, ...] = Field(default=("identity", "hflip"), min_length=1)
    precision: Precision = "fp32"
    storage: Literal["float16"] = "float16"


class PooledFeatures(SingleFeature[EmbeddingSpec]):
    """The pooled features of a frozen backbone."""

    spec_type = EmbeddingSpec
    description = "the pooled features of a frozen image backbone applied to the image, one for each view"
    unit = "embedding"
    remedy = (
        "The backbone's weights are damaged, or do not fit this precision, or its features are beyond float16. "
        "Try --precision fp32."
    )

    def layout(self, spec: EmbeddingSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout(
            (len(spec.views), embedding_width(spec.backbone, spec.size)), "float16", "vector", views=spec.views
        )

    def network(self, options: Mapping[str, Any]) -> BackboneSource:
        """See :class:`..contract.SingleFeature`."""
        return BackboneSource(options["embedding"], options["embedding_weights"], options["sha256"], pooled=True)

    def options(self, spec: EmbeddingSpec) -> Mapping[str, Any]:
        """See :class:`..contract.SingleFeature`."""
        return {"embedding": spec.backbone, "embedding_weights": None, "sha256": ()}

    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: EmbeddingSpec) -> Tensor:
        """See :class:`..contract.SingleFeature`."""
        assert network is not None
        return of_views(network, resize(inputs["image"].float() / 255, spec.size, spec.interpolation), spec)

    def rate_key(self, spec: EmbeddingSpec) -> dict[str, object]:
        """See :class:`..contract.SingleFeature`."""
        return {"embedding": spec.weights, "size": spec.size, "precision": spec.precision}


@functools.cache
def embedding_width(backbone: str, size: int) -> int:
    """Return the number of pooled features. Raises UserError for an input size that the backbone does not take."""
    try:
        with torch.device("meta"):  # shapes only, no arithmetic
            pooled = backbone_entry(backbone).pooled().eval()(torch.empty(2, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"embedding: backbone {backbone} takes no images of {size} pixels ({error}).") from error
    return int(pooled.shape[1])
