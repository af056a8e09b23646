"""``residual``: the image minus its reconstruction, amplified."""

from collections.abc import Mapping
from typing import Literal

from distil_cache.cache.records.about import Layout
from distil_cache.cache.spec import Spec
from distil_cache.features.builtin.recon import ReconSpec
from distil_cache.features.contract import Network, SingleFeature
from distil_cache.images.spec import ImageSpec
from pydantic import Field
from torch import Tensor


class ResidualSpec(Spec):
    feature: Literal["residual"] = "residual"
    algorithm: Literal[1] = 1
    by: Literal["distil-bands"] = "distil-bands"
    image: ImageSpec
    recon: ReconSpec
    gain: int = Field(default=4, ge=1, le=64)


class Residual(SingleFeature[ResidualSpec]):
    spec_type = ResidualSpec
    description = "image - recon in grey levels / 255, times the gain"
    unit = "residuals"

    def layout(self, spec: ResidualSpec) -> Layout:
        return Layout((3, spec.image.size, spec.image.size), "float16", "pixels")

    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: ResidualSpec) -> Tensor:
        return ((inputs["image"].float() - inputs["recon"].float()) / 255 * spec.gain).half()

    def rate_key(self, spec: ResidualSpec) -> dict[str, object]:
        return {"residual": spec.image.size}
