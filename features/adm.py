"""Which diffusion model made a feature."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ..cache.spec import SpecPart
from ..models.class_label import ClassLabel
from ..models.diffusion.unet import AdmConfig


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

    @property
    def config(self) -> AdmConfig:
        """The guided-diffusion flags."""
        return AdmConfig.model_validate(self.flags)
