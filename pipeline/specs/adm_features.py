"""What decides the value of each feature that the ADM makes: the specs of eps, recon, dire and noise.

The image's spec stands beside its decoder, the teacher's beside the teacher. A setting that changes only the speed
(batch size, device, shard size, format) is in none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ...cache.spec import Spec, SpecPart
from ...choices import FloatStorage, NoiseReduction, Precision
from ...images.spec import ImageSpec
from ...models.diffusion.unet import AdmConfig


class AdmIdentity(SpecPart):
    """A diffusion model as far as values go: the digest of its weights and its flags, never a path or a file format."""

    weights: str = Field(pattern="^[0-9a-f]{64}$")
    flags: dict[str, str | int | float | bool]

    @classmethod
    def of(cls, digest: str, config: AdmConfig) -> AdmIdentity:
        """Name the model with these weights. Dropout is left out: it does nothing in evaluation mode."""
        return cls(weights=digest, flags=config.model_dump(exclude={"dropout"}))


class EpsSpec(Spec):
    """The noise that the ADM predicts at the first inversion step, t = 0 (DistilDIRE, section 3.2).

    The same for every respacing, so the number of steps is no part of it.
    """

    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    image: ImageSpec
    adm: AdmIdentity
    clip: bool = True
    precision: Precision = "fp32"
    storage: FloatStorage = "float16"


class _InversionSpec(Spec):
    """What every feature of the whole DDIM path shares."""

    image: ImageSpec
    adm: AdmIdentity
    steps: str = "ddim20"
    real_step: int = Field(default=0, ge=0)
    clip: bool = True
    precision: Precision = "fp32"


class ReconSpec(_InversionSpec):
    """The image after DDIM inversion and sampling, rounded to uint8."""

    feature: Literal["recon"] = "recon"
    algorithm: Literal[1] = 1


class DireSpec(_InversionSpec):
    """DIRE of the cached image, uint8 (Wang et al. 2023, eq. 6; truncated as in their code)."""

    feature: Literal["dire"] = "dire"
    algorithm: Literal[1] = 1


class NoiseSpec(_InversionSpec):
    """DNF: the re-derived noises along the inversion, reduced to one (Zhang and Xu 2023, section 3)."""

    feature: Literal["noise"] = "noise"
    algorithm: Literal[1] = 1
    reduction: NoiseReduction = "mean"
    storage: FloatStorage = "float16"


def one_call_features(specs: Mapping[str, Spec]) -> frozenset[str]:
    """Return the features among the specs that one ADM call makes: eps, and DNF's noise if only its first step is kept."""
    return frozenset(
        feature
        for feature, spec in specs.items()
        if isinstance(spec, EpsSpec) or (isinstance(spec, NoiseSpec) and spec.reduction == "first")
    )
