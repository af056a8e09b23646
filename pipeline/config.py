"""Everything that one build is asked for, validated before any work starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..choices import (
    ADM,
    BACKBONE,
    MAX_PIXELS,
    MIN_SIDE,
    SHARD_SIZE,
    STEPS,
    ImagePreset,
    NoiseReduction,
    Precision,
    Preset,
    ShardForm,
)
from ..errors import UsageError
from ..places.field import PlaceField
from .image_spec import parse_harmonization, parse_perturbation

DATASET_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z"
DERIVED_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}"


class BuildConfig(BaseModel):
    """The arguments of a build.

    The first group decides values and ends up in the specs; the second only says what to do it to, where, and how fast.

    harmonize : ``jpeg:QUALITY`` or ``png``, see :func:`.image_spec.parse_harmonization`. perturb : such as ``jpeg:75``.
    origin : the dataset whose cached pictures are taken in place of ``sources``; ``splits`` of it, see :mod:`.derive`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adm: str = ADM
    adm_config: Path | None = None
    preset: Preset = "paper"
    image_preset: ImagePreset = "distildire"
    harmonize: str | None = None
    perturb: str | None = None
    image_size: int | None = Field(default=None, ge=16, le=1024)
    steps: str = STEPS
    real_step: int = Field(default=0, ge=0)
    clip: bool = True
    noise: NoiseReduction = "mean"
    teacher: str = BACKBONE
    teacher_weights: Path | None = None
    train_size: int | None = Field(default=None, ge=16, le=1024)
    precision: Precision = "fp32"

    sources: tuple[PlaceField, ...] = ()
    origin: str | None = None
    splits: tuple[str, ...] = ()
    cache: PlaceField
    dataset: str = Field(pattern=rf"\A{DERIVED_NAME}\z")
    layout: str | None = None
    features: tuple[str, ...] = ()
    min_side: int = Field(default=MIN_SIDE, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    rehash: bool = False
    device: str = "auto"
    batch_size: Literal["auto"] | int = "auto"
    compile: bool = False
    shard_size: int = Field(default=SHARD_SIZE, ge=1, le=65536)
    format: ShardForm = "zarr"
    workers: int = Field(default_factory=lambda: min(8, os.cpu_count() or 1), ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Raise UsageError for settings that do not go together."""
        parse_harmonization(self.harmonize)
        if self.perturb is not None:
            parse_perturbation(self.perturb)
        if bool(self.sources) == (self.origin is not None):
            raise UsageError("build: takes its pictures either from a SOURCE or, with --from-cache, from a dataset.")
        if self.perturb is not None and self.origin is None:
            raise UsageError(f"--perturb {self.perturb}: needs --from-cache.")
        if "@" in self.dataset and self.perturb is None:
            raise UsageError(
                f"--dataset {self.dataset}: a name with an @ is that of a derived dataset. "
                "Build it with --from-cache --dataset NAME --perturb KIND:STRENGTH."
            )
        return self

    @classmethod
    def checked(cls, **values: object) -> BuildConfig:
        """Validate. Raises UsageError naming the first option whose value is wrong and what is wrong with it."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise wrong_option(error, "build") from None


def wrong_option(error: ValidationError, command: str) -> UsageError:
    """Return the error that names the first wrong option of a command and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0]).replace("_", "-") if first["loc"] else command
    return UsageError(f"--{option} {first['input']!s}: {first['msg'].lower()}.")
