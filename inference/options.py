"""How a detector works: everything that can be chosen besides the student and what it looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..choices import FRAMES, Precision, TestTransform
from ..pipeline.config import default_threads, wrong_option
from ..storage.pydantic_field import PathField

MAX_FRAMES = 1024


class Options(BaseModel):
    """The options of a detector, by the names of the keyword arguments.

    threshold : a score above it says generated; None takes the one that validation chose, else 0.5.
    transform : ``crop`` or ``resize``, as in ``evaluate``.
    adm : the diffusion model, a file or a name. None finds the one of the run's features among those that are shipped or were
        fetched before; for a student of the reference implementation it is the reference's.
    adm_config : JSON with guided-diffusion flags, for a file of which nobody knows them.
    cache : where the run's features lie; needed only for runs of before they recorded their settings.
    explain : folder, new or empty, for image, eps and DIRE of each picture.
    frames : most that are taken of a video. device : auto, cpu or cuda:N. precision : arithmetic of the ADM; None is the
        run's. batch_size : images in one ADM call. workers : threads that decode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None = Field(default=None, ge=0, le=1)
    transform: TestTransform = "crop"
    adm: str | None = None
    adm_config: Path | None = None
    cache: PathField | None = None
    explain: Path | None = None
    frames: int = Field(default=FRAMES, ge=1, le=MAX_FRAMES)
    device: str = "auto"
    precision: Precision | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    workers: int = Field(default_factory=default_threads, ge=1, le=256)

    @classmethod
    def checked(cls, **values: object) -> Options:
        """Validate. Raises UsageError naming the first option that is wrong and what is wrong with it."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise wrong_option(error, "predict") from None
