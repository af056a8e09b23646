"""``vae_error``: how far the image and ``vae`` are apart (AEROBLADE).

L1 and L2 are mean(|a - b|) and mean((a - b)^2) of images in 0..1. With the weights of LPIPS (``--lpips``), its sum and its
five layers follow, on images in [-1, 1]; AEROBLADE's distance is that of the second layer, the fifth of the eight numbers.
All are made of the stored 8-bit images, as AEROBLADE makes them of PNG files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...cache.records.about import Layout
from ...cache.spec import Spec
from ...images.spec import ImageSpec
from ...models.lpips import LAYERS, LpipsSource
from ..contract import Network, SingleFeature
from ..walk import to_signal
from .vae import VaeSpec

PLAIN = 2
"""Numbers without LPIPS."""


class VaeErrorSpec(Spec):
    """Spec of ``vae_error``, float32 (2,), or (8,) with LPIPS; small numbers mean a good reconstruction.

    Attributes
    ----------
    lpips
        Digest (SHA-256) of the weights of LPIPS, or None.
    """

    feature: Literal["vae_error"] = "vae_error"
    algorithm: Literal[1] = 1
    image: ImageSpec
    vae: VaeSpec
    lpips: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class AutoencoderError(SingleFeature[VaeErrorSpec]):
    """The distances of the image and its reconstruction."""

    spec_type = VaeErrorSpec
    description = "L1 and L2 of image and vae, and their LPIPS with its layers where it was computed (AEROBLADE)"
    unit = "vae_error"

    def layout(self, spec: VaeErrorSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((PLAIN if spec.lpips is None else PLAIN + 1 + LAYERS,), "float32", "vector")

    def network(self, options: Mapping[str, Any]) -> LpipsSource | None:
        """See :class:`..contract.SingleFeature`; without an option there is no LPIPS."""
        name = options.get("vae_error_weights") or options["lpips"]
        return None if name is None else LpipsSource(name, options["sha256"])

    def options(self, spec: VaeErrorSpec) -> Mapping[str, Any]:
        """See :class:`..contract.SingleFeature`: the weights of LPIPS are published with no name of this package."""
        return {"lpips": None, "sha256": ()}

    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: VaeErrorSpec) -> Tensor:
        """See :class:`..contract.SingleFeature`."""
        difference = (inputs["image"].float() - inputs["vae"].float()).flatten(1) / 255
        numbers = torch.stack([difference.abs().mean(dim=1), difference.square().mean(dim=1)], dim=1)
        if network is None:
            return numbers
        with torch.inference_mode():
            return torch.cat([numbers, network(to_signal(inputs["image"]), to_signal(inputs["vae"]))], dim=1)

    def rate_key(self, spec: VaeErrorSpec) -> dict[str, object]:
        """See :class:`..contract.SingleFeature`."""
        return {"vae_error": spec.lpips, "size": spec.image.size}
