"""The configuration of one training: what is learnt from, by which method, and how the weights are moved.

Everything here decides the result of a training; what only decides its speed (device, progress) is an argument of the
functions that run it. Defaults: lambda 0.5 and learning rate 1e-4 are DistilDIRE's (arXiv 2406.00856, section 4), batch
size 64 is DIRE's; the number of epochs is ours.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import UsageError
from .methods import METHODS


class TrainConfig(BaseModel):
    """One training.

    dataset, build, select : the rows; ``build`` None takes the one that fits, ``select`` is the text of ``--select``.
    method, backbone : an entry of ``METHODS``, a name in ``models.backbones``.
    kd_weight : lambda of the distillation loss; methods without a teacher ignore it.
    train_size : side in pixels of what the student sees; None takes the cached teacher's, else 7/8 of the image's
        (224 of 256).
    val_fraction : share of the keys of ``train`` held out for selection where the dataset lacks train, val or test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = Field(min_length=1)
    select: str | None = None
    build: str | None = None
    method: str = "distildire"
    kd_weight: float = Field(default=0.5, ge=0)
    backbone: str = "resnet50"
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    train_size: int | None = Field(default=None, ge=8)
    val_fraction: float = Field(default=0.1, ge=0, le=0.5)

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a configuration; a bad value is a UsageError, one sentence with the field's name."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "configuration"
            if first["type"] == "extra_forbidden":
                raise UsageError(f"{field}: there is no such training setting.") from error
            reason = str(first["msg"]).removeprefix("Value error, ")
            raise UsageError(f"{field}: {reason} (got {first['input']!r}).") from error

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}, only {', '.join(METHODS)}")
        return name

    @property
    def distillation(self) -> float:
        """Lambda as it enters the loss: 0 for a method without a teacher."""
        return self.kd_weight if METHODS[self.method].distils else 0.0
