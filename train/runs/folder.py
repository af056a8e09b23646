"""The folder of one run: its configuration, what that was resolved to, and the paths of its files."""

from __future__ import annotations

import json
import platform
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError, safe_open

from ... import __version__
from ...cache.records.about import Geometry, Layout
from ...errors import UsageError, UserError
from ...metrics.calibration import Calibration
from ...plugins import absent
from ...storage import path_exists
from ...storage.atomic import append_line as append_bytes
from ...storage.atomic import create_with
from ...storage.json_record import CountByName, RecordByName, TextByName, read_record
from ..config import TrainConfig
from ..methods.method import Method
from ..students.student import SCRATCH, Student, input_shapes
from .checkpoint import flushed, load_weights, replace_text
from .forms import BEST, RUN_FORM, own_file, read_saved, stored_calibration
from .lock import leftover

RECORD_VERSION = 3
"""Version of the records of new runs."""
IMPORTED_EPOCH = "0"
"""What the file of an imported student names as its epoch."""


_LARGEST = 2**14
"""Largest side and most channels that a record may ask for; what a stranger's asks for is allocated."""


class TrainedOn(BaseModel):
    """A dataset of a training, and its build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    revision: str
    build: str


class RunRecord(BaseModel):
    """The content of ``config.json``.

    ``config`` is what was requested; the rest is what it was resolved to when the training began. Fields that earlier
    versions did not record are empty.

    Attributes
    ----------
    version
        Version of the record. Runs before 3 validated on a dataset's ``val`` only if it also had ``test``, and go on so.
    run
        Unique id of the run.
    config
        The configuration.
    cache
        Path or URL of the cache.
    dataset, revision, build
        The first dataset of the training.
    others
        The other datasets.
    fingerprints, specs
        Fingerprint and spec of each feature that was read. With the specs, the student can be used without the cache.
    train_size
        Side of the student's input in pixels.
    teacher_channels
        Channels of the teacher's map; None without a teacher.
    seen_generators, groups
        Generators of the training fakes, and source groups of the training rows.
    samples
        Number of training and validation rows.
    validation
        Description of the validation rows.
    created, versions
        Time of creation, and versions of the software.
    initial_weights
        Description of the student's initial weights.
    teacher
        Backbone, digest and origin of an online teacher.
    imported
        File and digest of an imported checkpoint. Nothing is known of its data, and the fields about them are empty.
    pos_weight
        Weight of generated images in the loss.
    begun_as
        Run, epoch and digest of the student that a fine-tuning started from.
    arithmetic
        How the student computes on a GPU where ``--amp`` does not select another type.
    layouts
        What the stored rows of each input are; empty in runs of versions all of whose inputs lay over the image.
    title, provider
        The method's title, and the package that provides it with its version; empty for this package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = RECORD_VERSION
    run: str
    config: TrainConfig
    cache: str
    dataset: str
    revision: str
    build: str
    fingerprints: TextByName
    specs: RecordByName = {}
    train_size: int = Field(ge=1, le=_LARGEST)
    teacher_channels: int | None = Field(ge=1, le=_LARGEST)
    seen_generators: Annotated[tuple[str, ...], FailFast()]
    samples: CountByName
    validation: str
    created: AwareDatetime
    versions: TextByName
    initial_weights: str = ""
    teacher: TextByName | None = None
    imported: TextByName | None = None
    others: Annotated[tuple[TrainedOn, ...], FailFast()] = ()
    pos_weight: float = 1.0
    begun_as: TextByName | None = None
    groups: Annotated[tuple[str, ...], FailFast()] = ()
    arithmetic: str = ""
    layouts: dict[str, Layout] = {}
    title: str = ""
    provider: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, values: Any) -> Any:
        """A run of version 1 had no choice of schedule, whatever its method's default is now."""
        if isinstance(values, dict) and values.get("version", 1) == 1 and isinstance(values.get("config"), dict):
            return {**values, "config": {"schedule": "constant", **values["config"]}}
        return values

    @field_validator("imported")
    @classmethod
    def _names_its_origin(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and not {"file", "sha256"} <= value.keys():
            raise ValueError("an imported checkpoint has a file and its sha256")
        return value

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """All datasets, in the order of the configuration."""
        return (TrainedOn(dataset=self.dataset, revision=self.revision, build=self.build), *self.others)

    @property
    def method(self) -> Method:
        """The method of the training."""
        return self.config.definition

    @property
    def geometry(self) -> dict[str, Geometry]:
        """What the rows of each input are, of those that need not lie over the image."""
        return {name: layout.geometry for name, layout in self.layouts.items()}

    def build_student(self) -> Student:
        """Build the run's student with random weights. Raises UserError if this version has no such network."""
        shapes = input_shapes(self.method.inputs, self.layouts, self.train_size)
        return self.method.student(self.method, shapes, self.config.backbone, self.teacher_channels)

    def notes(self) -> list[str]:
        """Return what a reader of this run's results must know, a phrase each."""
        notes = [self.method.caveat] if self.method.caveat and not self.imported else []
        if self.initial_weights.startswith(f"{SCRATCH}: "):
            notes.append(f"it started from {self.initial_weights}")
        if self.imported:
            notes.append(
                f"its weights are those of {self.imported['file']} (SHA-256 {self.imported['sha256'][:12]}…), trained "
                "elsewhere: which images it has seen is not known, nor whether its features were made as those "
                "it is tested on"
            )
        return notes


_FORM: TypeAdapter[RunRecord] = TypeAdapter(RunRecord)


@dataclass(frozen=True)
class BestStudent:
    """The best student of a run, on the CPU and in evaluation mode, with what belongs to it.

    Attributes
    ----------
    student
        The student.
    record
        The record of its run.
    file, sha256
        Name and digest of its file.
    epoch
        The epoch after which it was saved; 0 if it was imported.
    calibration
        The threshold that validation chose for it, or None.
    """

    student: Student
    record: RunRecord
    file: str
    sha256: str
    epoch: int
    calibration: Calibration | None


class RunFolder:
    """Paths of a run, and its record.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.metrics = folder / "metrics.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.tensorboard = folder / "tensorboard"
        self.evaluations = folder / "evaluations"

    def read(self) -> RunRecord:
        """Return the run's record. Raises UserError if the folder is not a run."""
        if not path_exists(self.config):
            raise UserError(f"{self.folder}: is not a run (it has no config.json). Create one with: distil-cache train")
        try:
            return read_record(own_file(self.config), _FORM, "a run's configuration", "Train again into a new folder.")
        except UsageError as error:  # a method that does not exist
            stored = read_record(own_file(self.config), RUN_FORM, "a run's configuration", "Train again.")
            if stored.provider:
                raise absent("method", str(stored.config.method), stored.provider) from error
            raise UserError(
                f"{self.config}: is not a run's configuration ({error}) Train again into a new folder."
            ) from error

    def create(self, record: RunRecord) -> None:
        """Make the existing folder a run. Raises UserError, naming the run, if another command has just done so."""
        write = flushed(lambda path: path.write_text(_text(record), encoding="utf-8"))
        if not create_with(self.config, write, needs_links=False):
            other = self.read()
            raise UserError(
                f"{self.folder}: became the run {other.run} meanwhile (begun {other.created:%Y-%m-%d %H:%M} UTC). "
                "Choose another --run folder."
            )

    def replace(self, record: RunRecord) -> None:
        """Replace the record of a run that is resumed, atomically."""
        replace_text(self.config, _text(record))

    def is_free(self) -> bool:
        """Return whether a new run may be created here: the folder has nothing but leftovers of killed commands."""
        return not self.folder.exists() or all(
            leftover(path) or (path == self.checkpoints and _unfinished_import(path)) for path in self.folder.iterdir()
        )

    def admit(self, config: TrainConfig, *, resume: bool) -> RunRecord | None:
        """Check whether a training may use the folder, and return the record of the run to resume; None for a new run.

        A resumed training may have more epochs, unless the learning rate depends on their number.

        Raises
        ------
        UserError
            The folder holds something else, another training, or this one without ``resume``.
        """
        if not path_exists(self.config):
            if not self.is_free():
                raise UserError(f"{self.folder}: is neither empty nor a run. Choose another --run folder.")
            return None
        record = self.read()
        old, new = record.config.model_dump(), config.model_dump()
        fixed = config.schedule == "cosine"
        differing = [name for name in new if old[name] != new[name] and (fixed or name != "epochs")]
        if differing or new["epochs"] < old["epochs"]:
            name = (differing or ["epochs"])[0]
            if name == "custom":
                raise UserError(
                    f"{self.folder}: holds a training of another {record.config.method}.toml. Choose another --run folder."
                )
            other = f"{self.folder}: holds a training with {name} {_words(old[name])}, not {_words(new[name])}"
            raise UserError(f"{other}. Choose another --run folder.")
        if not resume:
            known = f"{self.folder}: holds this training already"
            raise UserError(f"{known}. Continue with --resume, or choose another --run folder.")
        if record.version == 1 and record.method.window != "resize":
            raise UserError(
                f"{self.folder}: was started when method {record.config.method} resized its images instead of cropping "
                "them, so it cannot be resumed. Evaluate it as it is, or train again into another --run folder."
            )
        return record

    def load_student(self) -> BestStudent:
        """Load the best student so far.

        A training may replace it meanwhile; then the next one is loaded.

        Raises
        ------
        UserError
            The folder is not a run, has no checkpoint, or is damaged.
        """
        record = self.read()
        student = record.build_student()
        while True:
            newest = read_saved(self.checkpoints)
            best = newest.best if newest else None
            path = self.checkpoints / (best.weights.name if best else BEST)
            try:
                facts = load_weights(path, student)
                break
            except FileNotFoundError:
                if read_saved(self.checkpoints) == newest:
                    raise self._no_student(path, missing=best is not None) from None
        if best is not None and best.weights.sha256 != facts.sha256:
            raise UserError(
                f"{path}: is damaged (it is not the file that was written). Copy it again from where it is whole, or train "
                "again into a new folder."
            )
        calibration = best.calibration if best else stored_calibration(self.folder, facts.sha256)
        return BestStudent(student.eval(), record, path.name, facts.sha256, facts.epoch, calibration)

    def _no_student(self, path: Path, *, missing: bool) -> UserError:
        if missing:
            return UserError(f"{path}: is missing. Copy it again from where it is whole, or train again.")
        return UserError(
            f"{self.folder}: has no checkpoint yet. Finish its first epoch with: distil-cache train --resume"
        )


def stored_settings(run: Path) -> tuple[str, dict[str, Any]] | None:
    """Return a run's cache and the settings of its training that are not None; None if the folder holds no run yet.

    Raises
    ------
    UserError
        The run's record is damaged.
    """
    folder = RunFolder(run)
    if not path_exists(folder.config):
        return None
    record = folder.read()
    return record.cache, record.config.model_dump(exclude_none=True)


def _unfinished_import(checkpoints: Path) -> bool:
    """Return whether a folder holds just what an import writes before its run's record: a student without an epoch."""
    files = [path for path in checkpoints.iterdir() if not leftover(path)]
    if [path.name for path in files] != [BEST] or not files[0].is_file():
        return not files
    try:
        with safe_open(files[0], "pt") as file:
            return bool((file.metadata() or {}).get("epoch") == IMPORTED_EPOCH)
    except (OSError, SafetensorError):
        return False


def _text(record: RunRecord) -> str:
    return record.model_dump_json(indent=2) + "\n"


def new_run_id(folder: Path) -> str:
    """Return a unique name: the folder's, reduced to letters, digits and hyphens, and random digits."""
    stem = re.sub("[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-")
    return f"{stem[:60] or 'run'}-{secrets.token_hex(4)}"


def versions() -> dict[str, str]:
    """Return the versions of the software that affects the result of a training or an evaluation."""
    return {"distil-cache": __version__, "torch": torch.__version__, "python": platform.python_version()}


def now() -> datetime:
    """Return the present second, in UTC."""
    return datetime.now(UTC).replace(microsecond=0)


def append_line(path: Path, line: dict[str, float | int | None]) -> None:
    """Append a line of JSON to a file. Raises UserError if it cannot be written."""
    append_bytes(path, json.dumps(line).encode())


def _words(value: object) -> str:
    """Return a setting as the command line writes it: the items of a list with commas between them."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
