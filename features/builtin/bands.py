"""``bands``: the power spectrum of image minus reconstruction, in rings of equal width.

FIRE (arXiv 2412.07140) holds that a diffusion model reconstructs the middle frequencies of real images worst, and learns
a mask over them before the autoencoder. Such a mask cannot be cached. This is the plain spectrum of the residual, and
FIRE-like in no more than that.

With r = (image - recon) / 255 of the stored 8-bit rows, F its two-dimensional Fourier transform and S the side, the power
density |F|^2 / S^2 is averaged over channels and over the frequencies of each ring, and its decimal logarithm is stored.
White noise of variance v gives log10(v) in every ring at every size. The rings divide 0 to 0.5 cycles a pixel; beyond,
in the corners of the spectrum, frequencies count in the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...cache.records.about import Layout
from ...cache.spec import Spec
from ...images.spec import ImageSpec
from ..contract import Network, SingleFeature
from .recon import ReconSpec

MOST_RINGS = 16
LEAST_POWER = 1e-8
"""Floor of the power; that of rounding to 8 bits is 1.3e-6."""


class BandsSpec(Spec):
    """Spec of ``bands``, float32 (rings,), the lowest frequencies first."""

    feature: Literal["bands"] = "bands"
    algorithm: Literal[1] = 1
    image: ImageSpec
    recon: ReconSpec
    rings: int = Field(ge=1)

    @model_validator(mode="after")
    def _has_frequencies(self) -> Self:
        if self.rings > self.image.size // 2:
            raise ValueError(f"rings: an image of {self.image.size} pixels has frequencies for {self.image.size // 2}")
        return self


class Bands(SingleFeature[BandsSpec]):
    """The spectrum of the residual."""

    spec_type = BandsSpec
    description = "log10 of the power of image - reconstruction in rings of the spectrum, the lowest frequencies first"
    unit = "bands"

    def layout(self, spec: BandsSpec) -> Layout:
        """See :class:`..contract.Feature`."""
        return Layout((spec.rings,), "float32", "vector")

    def derived(self, settings: Mapping[str, Any], inputs: Mapping[str, Spec]) -> Mapping[str, object]:
        """See :class:`..contract.Feature`: as many rings as have frequencies, 16 at most."""
        image = inputs["image"]
        assert isinstance(image, ImageSpec)
        return {"rings": settings.get("rings", min(MOST_RINGS, image.size // 2))}

    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: BandsSpec) -> Tensor:
        """See :class:`..contract.SingleFeature`."""
        residual = (inputs["image"].float() - inputs["recon"].float()) / 255
        power = torch.fft.fft2(residual).abs().square().mean(dim=1) / spec.image.size**2
        members = ring_members(spec.image.size, spec.rings, power.device)
        means = torch.matmul(power.flatten(1).double(), members / members.sum(dim=0))
        return means.clamp(min=LEAST_POWER).log10().float()

    def rate_key(self, spec: BandsSpec) -> dict[str, object]:
        """See :class:`..contract.SingleFeature`."""
        return {"bands": spec.rings, "size": spec.image.size}


def ring_members(size: int, rings: int, device: torch.device) -> Tensor:
    """Return which frequencies of a spectrum are in which ring, (size * size, rings) of 0 and 1 in float64."""
    index = torch.arange(size, device=device)
    cycles = torch.minimum(index, size - index)
    squared = (cycles.square()[:, None] + cycles.square()[None, :]).flatten()
    edges = torch.arange(1, rings, device=device) * size  # in integers, so that no frequency on an edge is rounded
    ring = ((2 * rings) ** 2 * squared[:, None] >= edges.square()).sum(dim=1)
    return (ring[:, None] == torch.arange(rings, device=device)).double()
