"""Which diffusion model made a feature."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..cache.spec import SpecPart
from ..models.class_label import ClassLabel
from ..models.diffusion.ddpm import DdpmConfig
from ..models.diffusion.kinds import DiffusionConfig
from ..models.diffusion.unet import AdmConfig


class AdmIdentity(SpecPart):
    """Identity of a diffusion model: digest of its weights (SHA-256) and its flags, without path or file format.

    ``class_label`` says which class a class-conditional model is told for each image, see
    :class:`..models.class_label.ClassLabel`.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"class_label", "architecture"})

    weights: str = Field(pattern="^[0-9a-f]{64}$")
    flags: dict[str, str | int | float | bool]
    class_label: str | None = Field(default=None, pattern="^(random:[0-9]+|[0-9]+)$")
    architecture: Literal["guided-diffusion", "diffusers-unet2d"] = "guided-diffusion"

    @classmethod
    def of(cls, digest: str, config: DiffusionConfig, class_label: str | None = None) -> AdmIdentity:
        """Return the identity of a model. Dropout is left out: it has no effect in evaluation mode."""
        label = None if class_label is None else ClassLabel.parse(class_label).text
        if isinstance(config, DdpmConfig):
            return cls(weights=digest, flags=config.flags, class_label=label, architecture="diffusers-unet2d")
        return cls(weights=digest, flags=config.model_dump(exclude={"dropout"}), class_label=label)

    @property
    def config(self) -> DiffusionConfig:
        """What decides the network, apart from its weights."""
        if self.architecture == "diffusers-unet2d":
            return DdpmConfig.of_flags(self.flags)
        return AdmConfig.model_validate(self.flags)
