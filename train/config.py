"""The configuration of one training: what is learnt from, by which method, and how the weights are moved.

Everything here decides the result of a training; what only decides its speed (device, worker processes, number of
processes) is an argument of the functions that run it. What is not given, or given as None, is taken from the method's
definition (``methods.py``); the rest of the defaults are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..choices import BACKBONE, LR_FACTOR, METHOD, Amp, InitialWeights, Preset, ScheduleName
from ..errors import UsageError
from .methods import Method, find_method

SWEEP = "sweep.json"
"""In a folder of several runs: what they vary, and their names."""

_SERVES = {
    "patience": ("plateau",),
    "min_lr": ("plateau", "cosine"),
    "lr_factor": ("plateau", "step"),
    "drop_every": ("step",),
}
"""Settings of the learning rate that only some schedules have a use for."""


class TrainConfig(BaseModel):
    """One training.

    dataset, build, select : the rows. Several datasets are joined; ``build`` names at most one build of each, the others
        take the one that fits; ``select`` is the text of ``--select`` and holds for all of them.
    method, preset, aug_prob, backbone : a definition of ``methods.py``, a name in ``models.backbones``.
    teacher_online : the teacher runs during the training, on the cached DIRE; its cached maps are not read. teacher,
        teacher_weights : the backbone of such a teacher and a file with its weights, see ``train/data/online_teacher.py``.
    initial_weights : what the backbone starts from; None is the method's choice, as far as the backbone has such weights.
    init_from : folder of a run whose best student this one begins as.
    kd_weight : lambda of the distillation loss; methods without a teacher ignore it.
    pos_weight : weight of generated pictures in the cross-entropy; ``balanced`` is real / generated of the training rows.
    batch_size : what one step learns from, over all processes. accumulate : parts of it that go through the network one
        after the other, their gradients added up: less memory, and batch normalisation sees the parts.
    clip_grad : longest gradient, as its norm over all weights.
    schedule, warmup_steps : the learning rate, see ``train/engine/lr_schedule.py``. patience (epochs), lr_factor, min_lr, drop_every
        (epochs) belong to some schedules and are None with the others.
    stop_after : epochs without a better validation after which the training ends.
    amp : arithmetic of the student; weights, optimiser and loss stay in float32.
    train_size : side in pixels of what the student sees; None takes the method's.
    val_fraction : share of the keys of ``train`` held out for selection where a dataset lacks train, val or test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: tuple[str, ...] = Field(min_length=1)
    select: str | None = None
    build: tuple[str, ...] = ()
    method: str = METHOD
    preset: Preset = "paper"
    aug_prob: float | None = Field(default=None, ge=0, le=1)
    kd_weight: float = Field(ge=0)
    pos_weight: Annotated[float, Field(gt=0)] | Literal["balanced"]
    teacher_online: bool = False
    teacher: str | None = None
    teacher_weights: str | None = None
    backbone: str = BACKBONE
    initial_weights: InitialWeights | None = None
    init_from: str | None = None
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(gt=0)
    beta1: float = Field(ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_grad: float | None = Field(default=None, gt=0)
    schedule: ScheduleName
    warmup_steps: int = Field(default=0, ge=0)
    patience: int | None = Field(default=None, ge=1)
    lr_factor: float | None = Field(default=None, gt=0, lt=1)
    min_lr: float | None = Field(default=None, ge=0)
    drop_every: int | None = Field(default=None, ge=1)
    stop_after: int | None = Field(default=None, ge=1)
    amp: Amp = "off"
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
            if first["type"] == "value_error":
                raise UsageError(str(first["msg"]).removeprefix("Value error, ")) from error
            raise UsageError(f"{field}: {first['msg']} (got {first['input']!r}).") from error

    @property
    def definition(self) -> Method:
        """The method's definition."""
        return find_method(self.method, self.preset, self.aug_prob)

    @property
    def distillation(self) -> float:
        """Lambda as it enters the loss: 0 for a method without a teacher."""
        return self.kd_weight if self.definition.distils else 0.0

    @property
    def online(self) -> bool:
        """Whether a teacher runs during the training."""
        return self.distillation > 0 and (self.teacher_online or self.definition.online)

    @property
    def training_features(self) -> tuple[str, ...]:
        """Cached features that the training reads."""
        return self.definition.training_features(self.distillation, online=self.online)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Take what is not given from the method's definition, and None as not given."""
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        method = find_method(given.get("method", METHOD), given.get("preset", "paper"), given.get("aug_prob"))
        found = {**vars(method.defaults), "pos_weight": method.pos_weight, "lr_factor": LR_FACTOR, **given}
        unused = [name for name, of in _SERVES.items() if found["schedule"] not in of and name not in given]
        return {name: value for name, value in found.items() if name not in unused}

    @field_validator("dataset", "build", mode="before")
    @classmethod
    def _one_is_a_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, schedules in _SERVES.items():
            if getattr(self, name) is not None and self.schedule not in schedules:
                raise ValueError(f"{name}: serves the schedule {' or '.join(schedules)} alone, not {self.schedule}.")
        if self.schedule == "step" and self.drop_every is None:
            raise ValueError("drop_every: the schedule step needs the number of epochs between two drops of the rate.")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: a batch of {self.batch_size} cannot be cut into {self.accumulate} parts.")
        if (self.teacher or self.teacher_weights) and not self.online:
            raise ValueError(
                "teacher: its backbone and weights can be chosen for a teacher that runs online alone; cached maps have "
                "their own. Add --teacher-online, or leave out --teacher and --teacher-weights."
            )
        if self.init_from and self.initial_weights:
            raise ValueError(
                "init_from: the student begins as another run's, so initial_weights have no use. Leave one out."
            )
        if len(set(self.dataset)) < len(self.dataset) or not all(self.dataset):
            raise ValueError(f"dataset: {', '.join(self.dataset)} names a dataset twice, or none.")
        if len(self.build) > len(self.dataset):
            raise ValueError("build: at most one build can be named for each dataset.")
        return self
