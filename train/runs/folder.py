"""The folder of one run: what was asked, what it was resolved to, and where the parts of it lie."""

from __future__ import annotations

import json
import platform
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from ... import __version__
from ...errors import UserError
from ...metrics.calibration import CALIBRATION, VALIDATION, Calibration, read_calibration
from ...storage.atomic import cannot_write
from ..config import TrainConfig
from ..methods import Method
from ..student import SCRATCH, Student, build_student
from .checkpoint import BEST, create_file, load_weights, replace_text
from .lock import leftover


class TrainedOn(BaseModel):
    """A dataset that a run learnt from, and its build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    revision: str
    build: str


class RunRecord(BaseModel):
    """The content of ``config.json``.

    config : what was asked. The rest is what it was resolved to when the training began: the build record and the
    fingerprints of the features it read, the input side in pixels, the channels of the teacher's map (None: no
    teacher), the generators whose fakes were learnt from, and how many samples trained and validated.
    dataset, revision, build : of the first dataset; others : those of the further ones.
    groups : source groups of the training rows; empty in runs of before it was recorded.
    pos_weight : weight of generated pictures in the loss. begun_as : run, epoch and digest of the student that a
    fine-tuning began with.
    initial_weights : what the student started from, in words; empty in runs of before it was recorded.
    specs : of the features that were read, as plain JSON: with them the student can be fed when the cache is gone. Empty in
    runs of before they were recorded.
    teacher : backbone, digest and origin of a teacher that ran online. imported : file and digest of a checkpoint that was
    trained elsewhere; nothing is known of its data then, and the fields about them are empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 2
    run: str
    config: TrainConfig
    cache: str
    dataset: str
    revision: str
    build: str
    fingerprints: dict[str, str]
    specs: dict[str, dict[str, Any]] = {}
    train_size: int
    teacher_channels: int | None
    seen_generators: tuple[str, ...]
    samples: dict[str, int]
    validation: str
    created: AwareDatetime
    versions: dict[str, str]
    initial_weights: str = ""
    teacher: dict[str, str] | None = None
    imported: dict[str, str] | None = None
    others: tuple[TrainedOn, ...] = ()
    pos_weight: float = 1.0
    begun_as: dict[str, str] | None = None
    groups: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, values: Any) -> Any:
        """A run of version 1 had no choice of schedule, whatever its method prefers now."""
        if isinstance(values, dict) and values.get("version", 1) == 1 and isinstance(values.get("config"), dict):
            return {**values, "config": {"schedule": "constant", **values["config"]}}
        return values

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """All datasets, in the order in which they were named."""
        return (TrainedOn(dataset=self.dataset, revision=self.revision, build=self.build), *self.others)

    @property
    def method(self) -> Method:
        """What the student learnt from."""
        return self.config.definition

    def notes(self) -> list[str]:
        """What a reader of this run's results must know, a phrase each."""
        found = [self.method.caveat] if self.method.caveat and not self.imported else []
        if self.initial_weights.startswith(f"{SCRATCH}: "):
            found.append(f"it started from {self.initial_weights}")
        if self.imported:
            found.append(
                f"its weights are those of {self.imported['file']} (SHA-256 {self.imported['sha256'][:12]}…), trained elsewhere: "
                "which images it has seen is not known, nor whether its features were made as those it is tested on"
            )
        return found


class RunFolder:
    """Paths of a run, and its record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.metrics = folder / "metrics.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.tensorboard = folder / "tensorboard"
        self.evaluations = folder / "evaluations"
        self.validation = folder / VALIDATION
        self.calibration_file = folder / CALIBRATION

    def read(self) -> RunRecord:
        """The run's record; UserError if the folder is no run."""
        if not self.config.is_file():
            raise UserError(f"{self.folder}: is no run (it has no config.json). Make one with: distil-cache train")
        try:
            return RunRecord.model_validate_json(self.config.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{self.config}: is not a run's configuration ({where}: {first['msg']}).") from error

    def create(self, record: RunRecord) -> None:
        """Make the folder, which exists, a run. Raises UserError, naming the run, if another command has just done so."""
        try:
            created = create_file(self.config, lambda path: path.write_text(_text(record), encoding="utf-8"))
        except OSError as error:
            raise cannot_write(self.config, error) from error
        if not created:
            other = self.read()
            raise UserError(
                f"{self.folder}: became the run {other.run} meanwhile (begun {other.created:%Y-%m-%d %H:%M} UTC). "
                "Choose another --run folder."
            )

    def replace(self, record: RunRecord) -> None:
        """Replace the record of a run that goes on, in one step."""
        replace_text(self.config, _text(record))

    def is_free(self) -> bool:
        """Say whether a new run may be made here: nothing is there, but for what killed commands left."""
        return not self.folder.exists() or all(map(leftover, self.folder.iterdir()))

    def admit(self, config: TrainConfig, *, resume: bool) -> RunRecord | None:
        """The record of the training to go on with, or None for a new one.

        Raises UserError if the folder holds another training, or this one without ``resume``. A training that goes on
        may be asked for more epochs, unless its learning rate has followed from their number.
        """
        if not self.config.exists():
            if not self.is_free():
                raise UserError(f"{self.folder}: is neither empty nor a run. Choose another --run folder.")
            return None
        record = self.read()
        old, new = record.config.model_dump(), config.model_dump()
        fixed = config.schedule == "cosine"
        differing = [name for name in new if old[name] != new[name] and (fixed or name != "epochs")]
        if differing or new["epochs"] < old["epochs"]:
            name = (differing or ["epochs"])[0]
            other = f"{self.folder}: holds a training with {name} {old[name]!r}, not {new[name]!r}"
            raise UserError(f"{other}. Choose another --run folder.")
        if not resume:
            known = f"{self.folder}: holds this training already"
            raise UserError(f"{known}. Go on with --resume, or choose another --run folder.")
        if record.version == 1 and record.method.window != "resize":
            raise UserError(
                f"{self.folder}: began when method {record.config.method} resized its pictures instead of cropping them, "
                "so it cannot go on as it was. Evaluate it as it is, or train anew into another --run folder."
            )
        return record

    def load_student(self) -> tuple[Student, RunRecord, dict[str, str]]:
        """The best student so far (on the CPU, evaluation mode), the run's record, and the checkpoint's facts with its ``sha256``."""
        record = self.read()
        path = self.checkpoints / BEST
        if not path.is_file():
            raise UserError(f"{self.folder}: has no checkpoint yet. Let its first epoch end with train --resume")
        student = build_student(record.config.backbone, record.method.channels, record.teacher_channels)
        facts = load_weights(path, student)
        return student.eval(), record, facts

    def calibration(self, sha256: str) -> Calibration | None:
        """The threshold that validation chose for the student of this digest; None where none was, or for another one."""
        found = read_calibration(self.calibration_file)
        return found if found is not None and found.checkpoint_sha256 == sha256 else None


def _text(record: RunRecord) -> str:
    return record.model_dump_json(indent=2) + "\n"


def new_run_id(folder: Path) -> str:
    """A name that no other run has: the folder's, as far as a file name may hold it, and random digits."""
    stem = re.sub("[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-")
    return f"{stem[:60] or 'run'}-{secrets.token_hex(4)}"


def versions() -> dict[str, str]:
    """Versions of the software that decides what a training or an evaluation gives."""
    return {"distil-cache": __version__, "torch": torch.__version__, "python": platform.python_version()}


def now() -> datetime:
    """The present second, in UTC."""
    return datetime.now(UTC).replace(microsecond=0)


def append_line(path: Path, line: dict[str, float | int | None]) -> None:
    """Add one line of JSON to a file and flush it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
