"""The configuration of one training.

It holds everything that decides the result of a training. What only affects speed (device, worker processes, number of
processes) is an argument of the functions that run it. A setting that is missing or None takes the default of the
method's definition (``methods.py``); the other defaults are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator, model_validator

from ..choices import BACKBONE, LR_FACTOR, METHOD, Amp, InitialWeights, Preset, Reader, ScheduleName, ValSource
from ..errors import UsageError
from .methods.custom import SUFFIX, CustomMethod, read_method
from .methods.method import Method
from .methods.registry import find_method

PLATEAUS = ("plateau", "accuracy-plateau")
"""Schedules that follow the validation."""

NO_BACKBONE = "none"
"""The backbone of a student that has none."""

_SERVES = {
    "patience": PLATEAUS,
    "min_lr": (*PLATEAUS, "cosine"),
    "lr_factor": (*PLATEAUS, "step"),
    "drop_every": ("step",),
}
"""Settings of the learning rate that only some schedules use."""


def without_unused(settings: Mapping[str, Any], filled_in: Collection[str]) -> dict[str, Any]:
    """Leave out the settings that a profile filled in and that the method has no use for."""
    given = dict(settings)
    name, custom = given.get("method") or METHOD, None
    if name.endswith(SUFFIX):
        name, custom = read_method(name)
    method = find_method(name, given.get("preset") or "paper", custom=custom)
    unused = {"backbone": not method.backbone, "epochs": not method.learns}
    return {key: value for key, value in given.items() if not (unused.get(key) and key in filled_in)}


class TrainConfig(BaseModel):
    """The configuration of one training.

    Attributes
    ----------
    dataset
        Names of the datasets; several are joined.
    select
        Text of ``--select``, applied to each dataset.
    build
        Ids of builds, at most one per dataset; the other datasets use the one that fits.
    method, preset, aug_prob
        A definition of ``methods``, and the probability of its blur and JPEG. A name that ends with ``.toml`` is read as a
        file; it becomes the name of the file without its ending.
    custom
        The content of such a file.
    kd_weight
        Lambda of the distillation loss; ignored by methods without a teacher.
    pos_weight
        Weight of generated images in the cross-entropy; ``balanced`` is real / generated of the training rows.
    teacher_online
        Run the teacher during the training, on the cached DIRE, instead of reading its cached maps.
    teacher, teacher_weights
        Backbone of such a teacher and a file with its weights, see ``train/data/examples.py``.
    backbone
        The student's, a name of ``models.backbones``.
    initial_weights
        What the backbone starts from; None for the method's choice, if the backbone has such weights.
    init_from
        Folder of a run whose best student this one starts as.
    epochs
        Maximum number of epochs.
    batch_size
        Samples per step, over all processes.
    accumulate
        Number of parts of a batch whose gradients are accumulated. This saves memory; batch normalisation sees the
        parts.
    lr, beta1, weight_decay
        Of Adam.
    clip_grad
        Limit of the global gradient norm; None for no clipping.
    schedule, warmup_steps
        The learning rate, see ``train/engine/lr_schedule.py``.
    patience, lr_factor, min_lr, drop_every
        Settings of some schedules, None with the others; ``patience`` and ``drop_every`` in epochs.
    stop_after
        End the training after this many epochs without a better validation.
    amp
        Mixed precision of the student; weights, optimiser and loss stay in float32.
    seed
        Seed of all random numbers.
    train_size
        Side of the student's input in pixels; None for the method's.
    val_from
        ``val``: validate on the split ``val`` of each dataset that has one. ``train``: never.
    val_fraction
        Share of the keys of ``train`` held out for validation where ``val`` does not serve.
    reader, export
        ``cache``: read the training rows with the cache's own reader. ``webdataset``: stream them from the tar shards of the
        cache or, if named, from the tars of an export; the order of the rows is then webdataset's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: Annotated[tuple[str, ...], FailFast(), Field(min_length=1)]
    select: str | None = None
    build: Annotated[tuple[str, ...], FailFast()] = ()
    method: str = METHOD
    custom: CustomMethod | None = None
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
    epochs: int = Field(ge=0)
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
    val_from: ValSource = "val"
    val_fraction: float = Field(default=0.1, ge=0, le=0.5)
    reader: Reader = "cache"
    export: str | None = None

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a configuration. Raises UsageError for a bad value, in one sentence with the field's name."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "configuration"
            if first["type"] == "extra_forbidden":
                raise UsageError(f"{field}: unknown training setting.") from error
            if first["type"] == "value_error":
                raise UsageError(str(first["msg"]).removeprefix("Value error, ")) from error
            raise UsageError(f"{field}: {first['msg']} (got {first['input']!r}).") from error

    @property
    def definition(self) -> Method:
        """The method's definition."""
        return find_method(self.method, self.preset, self.aug_prob, self.custom)

    @property
    def distillation(self) -> float:
        """Lambda in the loss: 0 for a method without a teacher."""
        return self.kd_weight if self.definition.target else 0.0

    @property
    def online(self) -> bool:
        """Whether a teacher runs during the training."""
        return self.distillation > 0 and (self.teacher_online or self.definition.online)

    @property
    def target(self) -> str | None:
        """The cached feature that the loss compares the student's map with; None without one."""
        return self.definition.target if self.distillation > 0 and not self.online else None

    @property
    def training_features(self) -> tuple[str, ...]:
        """Cached features that the training reads."""
        return self.definition.training_features(self.distillation, online=self.online)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Take missing and None values from the method's definition."""
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        for name in ("method", "preset"):
            if not isinstance(given.get(name, ""), str):
                raise ValueError(f"{name}: must be a text.")
        if given.get("method", "").endswith(SUFFIX):
            given["method"], given["custom"] = read_method(given["method"])
        if isinstance(given.get("custom"), Mapping):
            given["custom"] = CustomMethod.model_validate(given["custom"])
        custom = given.get("custom")
        if custom is not None and not isinstance(custom, CustomMethod):
            raise ValueError("custom: must be a table.")
        method = find_method(given.get("method", METHOD), given.get("preset", "paper"), given.get("aug_prob"), custom)
        settings = {**vars(method.defaults), "pos_weight": method.pos_weight, "lr_factor": LR_FACTOR, **given}
        if not method.backbone:
            settings.setdefault("backbone", NO_BACKBONE)
        unused = [name for name, of in _SERVES.items() if settings["schedule"] not in of and name not in given]
        return {name: value for name, value in settings.items() if name not in unused}

    @field_validator("dataset", "build", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        method = self.definition
        if not method.backbone and (self.backbone != NO_BACKBONE or self.initial_weights):
            what = "initial_weights" if self.initial_weights else "backbone"
            raise ValueError(f"{what}: the student of method {self.method} has no backbone. Omit it.")
        if method.learns and self.epochs < 1:
            raise ValueError(f"epochs: method {self.method} learns by steps, so it needs at least one epoch.")
        if not method.learns and self.epochs:
            raise ValueError(f"epochs: method {self.method} has nothing to learn by steps. Omit them.")
        for name, schedules in _SERVES.items():
            if getattr(self, name) is not None and self.schedule not in schedules:
                raise ValueError(
                    f"{name}: is only used by the schedule {' or '.join(schedules)}, not by {self.schedule}."
                )
        if self.schedule == "step" and self.drop_every is None:
            raise ValueError("drop_every: the schedule step needs the number of epochs between drops of the rate.")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: a batch of {self.batch_size} cannot be split into {self.accumulate} parts.")
        if (self.teacher or self.teacher_weights) and not self.online:
            raise ValueError(
                "teacher: backbone and weights can only be chosen for a teacher that runs online; cached maps have "
                "their own. Add --teacher-online, or omit --teacher and --teacher-weights."
            )
        if self.init_from and self.initial_weights:
            raise ValueError(
                "init_from: the student starts from another run, so initial_weights has no effect. Omit one of them."
            )
        if self.export and self.reader != "webdataset":
            raise ValueError("export: is only read by the reader webdataset. Add --reader webdataset.")
        if self.export and len(self.dataset) > 1:
            raise ValueError("export: holds one dataset, and the training joins several. Leave it out.")
        if len(set(self.dataset)) < len(self.dataset) or not all(self.dataset):
            raise ValueError(f"dataset: {', '.join(self.dataset)} contains a name twice or an empty one.")
        if len(self.build) > len(self.dataset):
            raise ValueError("build: at most one build can be named for each dataset.")
        return self
