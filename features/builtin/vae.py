"""``vae``: the image after the autoencoder of a latent diffusion model (AEROBLADE).

AEROBLADE (Ricker et al. 2024; jonasricker/aeroblade, ``aeroblade/image.py``) encodes an image, decodes it, and saves the
result as 8 bits, truncated. It samples the latent with a seeded generator, so that an image's latent depends on its place
in the order of images; here it is the mode of the latent's distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...cache.records.about import Layout
from ...cache.spec import Spec
from ...choices import Precision
from ...errors import UserError
from ...images.spec import ImageSpec
from ...models.autoencoder import AutoencoderSource, autoencoder_source
from ...models.device import HALF_TYPES
from ..contract import Hidden, Network, SingleFeature, all_finite
from ..walk import to_signal


class VaeSpec(Spec):
    """Spec of ``vae``, uint8 (3, S, S).

    Attributes
    ----------
    weights
        Digest (SHA-256) of the autoencoder's weights.
    flags
        Its settings, see :class:`...models.autoencoder.AutoencoderConfig`.
    """

    feature: Literal["vae"] = "vae"
    algorithm: Literal[1] = 1
    image: ImageSpec
    weights: str = Field(pattern="^[0-9a-f]{64}$")
    flags: dict[str, str | int | bool]
    precision: Precision = "fp32"


class Autoencoded(SingleFeature[VaeSpec]):
    """The image after the autoencoder."""

    spec_type = VaeSpec
    description = "the image after the autoencoder of a latent diffusion model, RGB, 0 to 255 (AEROBLADE)"
    unit = "vae"
    remedy = "The autoencoder's weights are damaged, or do not fit this precision. Try --precision fp32."

    def layout(self, spec: VaeSpec) -> Layout:
        """See :class:`..contract.Feature`. Raises UserError for a size that the autoencoder cannot halve so often."""
        factor = 2 ** str(spec.flags["block_out_channels"]).count(",")
        if spec.image.size % factor:
            raise UserError(f"vae: this autoencoder takes sides divisible by {factor}, not {spec.image.size} pixels.")
        return Layout((3, spec.image.size, spec.image.size), "uint8", "image")

    def network(self, options: Mapping[str, Any]) -> AutoencoderSource:
        """See :class:`..contract.SingleFeature`."""
        return autoencoder_source(options.get("vae_weights") or options["autoencoder"], options["sha256"])

    def options(self, spec: VaeSpec) -> Mapping[str, Any]:
        """See :class:`..contract.SingleFeature`: no autoencoder is published under a name of this package."""
        return {"autoencoder": None, "sha256": ()}

    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: VaeSpec) -> Hidden:
        """See :class:`..contract.SingleFeature`."""
        assert network is not None
        x, half = to_signal(inputs["image"]), HALF_TYPES.get(spec.precision)
        with torch.inference_mode(), torch.autocast(x.device.type, dtype=half, enabled=half is not None):
            decoded = network(x).float()
        return Hidden(((decoded / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8), all_finite(decoded))

    def rate_key(self, spec: VaeSpec) -> dict[str, object]:
        """See :class:`..contract.SingleFeature`."""
        return {"vae": spec.weights, "size": spec.image.size, "precision": spec.precision}
