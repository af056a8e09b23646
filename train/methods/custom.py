"""A method from a TOML file, where no code is needed: features, their scaling, and one of the students that there are.

    title = "Embedding and spectrum"
    student = "linear"          # or linear-flat, pixels
    flips = false

    [inputs]                    # feature = scale, in the order in which the student takes them
    embedding = "stored"
    bands = "standard"

    [defaults]
    epochs = 40
    lr = 1e-3

The content of the file becomes part of the run's configuration, so the file is not needed again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator, model_validator

from ...choices import InitialWeights
from ...errors import IntegrityError, UsageError
from ...storage.atomic import read_file
from .method import Method, MethodDefaults, Scale, StudentFactory, pixel_student
from .probe import flat_linear_student, linear_student

SUFFIX = ".toml"
EPOCHS = 20
_MOST_BYTES = 1 << 16
_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
_FEATURE = r"\A[a-z0-9_]{1,64}\z"
StudentName = Literal["pixels", "linear", "linear-flat"]
STUDENTS: dict[StudentName, StudentFactory] = {
    "pixels": pixel_student,
    "linear": linear_student,
    "linear-flat": flat_linear_student,
}


class CustomMethod(BaseModel):
    """The content of the file; see :class:`.method.Method` for the meaning of the fields.

    Attributes
    ----------
    inputs
        Feature and scale of each input, in their order.
    student
        ``pixels``: a backbone that sees the features as channels of one image. ``linear``: one linear unit on vectors and
        on averages over positions. ``linear-flat``: on every value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str = Field(default="", max_length=100)
    inputs: Annotated[
        tuple[tuple[Annotated[str, Field(pattern=_FEATURE)], Scale], ...],
        FailFast(),
        Field(min_length=1, max_length=16),
    ]
    student: StudentName = "pixels"
    target: Literal["teacher"] | None = None
    window: Literal["resize", "random-crop"] = "resize"
    whole: bool = False
    flips: bool = True
    pos_weight: float = Field(default=1.0, gt=0)
    initial: InitialWeights = "scratch"
    head: float | None = Field(default=None, gt=0)
    caveat: str = Field(default="", max_length=1000)
    defaults: MethodDefaults = MethodDefaults(epochs=EPOCHS)

    @field_validator("inputs", mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        """Take a table of a TOML file; a record has a list of pairs, since the order counts."""
        if isinstance(value, list | tuple) and all(isinstance(item, list | tuple) for item in value):
            return value
        if not value or not isinstance(value, Mapping):
            raise ValueError('inputs: write a table, [inputs], with a line for each feature, such as eps = "stored".')
        for feature, scale in value.items():
            if scale not in get_args(Scale):
                raise ValueError(f"inputs: {feature} = {scale!r} is no scale. There are {', '.join(get_args(Scale))}.")
        return tuple(value.items())

    @field_validator("defaults", mode="before")
    @classmethod
    def _with_epochs(cls, value: Any) -> Any:
        return {"epochs": EPOCHS, **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [name for name, _ in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError("inputs: a feature is named twice.")
        if self.student != "pixels":
            for field, plain in (("target", None), ("initial", "scratch")):
                if getattr(self, field) != plain:
                    raise ValueError(f"{field}: only the student pixels has a backbone.")
        elif "standard" in dict(self.inputs).values():
            raise ValueError("inputs: only linear students take the scale standard.")
        if self.defaults.epochs < 1:
            raise ValueError("defaults: a student needs at least one epoch.")
        return self

    def method(self, name: str) -> Method:
        """Return the definition."""
        values = {
            field: getattr(self, field) for field in type(self).model_fields if field not in ("inputs", "student")
        }
        return Method(
            name=name,
            scales=dict(self.inputs),
            student=STUDENTS[self.student],
            backbone=self.student == "pixels",
            **values,
        )


def read_method(path: str) -> tuple[str, CustomMethod]:
    """Return the name of a method, that of its file, and its content.

    Raises
    ------
    UsageError
        The file cannot be read, or is no method.
    """
    name = Path(path).stem.lower()
    if not re.fullmatch(_NAME, name):
        raise UsageError(f"--method {path}: the file's name is the method's: use letters (a-z), digits, - and _.")
    try:
        values = tomllib.loads(read_file(Path(path), _MOST_BYTES).decode())
        return name, CustomMethod.model_validate(values)
    except IntegrityError as error:
        raise UsageError(f"--method {error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--method {path}: is no TOML ({error}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        match first["type"]:
            case "value_error":
                message = str(first["msg"]).removeprefix("Value error, ")  # it says where by itself
            case "extra_forbidden" | "unexpected_keyword_argument":
                message = f"{where}: there is no such setting."
            case "missing":
                message = f"{where}: is missing."
            case _:
                message = f"{where}: {first['msg']}."
        raise UsageError(f"--method {path}: {message}") from error
