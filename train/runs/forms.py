"""Names and forms of the JSON files in a run and in a sweep. Loads no torch, so that a report can read them.

A run may come from a stranger or from another version. So each file is a regular file of bounded size that lies where
its name says, and all that is used of its content is checked where it is read; what is wrong is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from ...errors import UserError
from ...metrics.calibration import CALIBRATION, Calibration, read_calibration
from ...storage.json_record import CountByName, Items, NumberByName, TextByName, read_record
from ...storage.parquet import read_bounded

BEST = "best.safetensors"
"""The student of an imported run, and the best one of a training by an earlier version."""
LAST = "last.json"
EVALUATION = "evaluation.json"
SWEEP = "sweep.json"
"""In a folder of several runs: the settings that vary, and the names of the runs."""

STATE_FILE = re.compile(r"(?:last|step)-[0-9a-f-]+(?:\.optim)?\.(?:safetensors|parquet)")
"""Names of the files that a state may have; those of earlier versions begin with ``last``."""

_SCORES = {**dict.fromkeys(("key", "generator", "group", "family"), "string"), "label": "int64", "score": "double"}
"""Columns of ``scores.parquet`` that are read, and their types."""
_AGAIN = "Train again into a new folder."
_USED = ("epoch", "step", "loss", "val_bce", "val_ap", "val_acc", "seconds")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
StateFile = Annotated[str, Field(pattern=f"^{STATE_FILE.pattern}$")]
EpochMetrics = NumberByName
"""The values of one epoch in ``metrics.jsonl``, by name; None without validation rows."""


class State(BaseModel):
    """Where a training stands.

    Attributes
    ----------
    epoch
        Finished epochs.
    batch
        Finished batches of the current epoch.
    step
        Optimiser steps in total.
    first_loss
        Loss of the first batch, before any step.
    sums
        Total, bce and kd of the current epoch, each summed over samples.
    samples, seconds
        Samples of the current epoch, and time spent on it.
    best_epoch, best_rank
        Epoch of the best checkpoint (0 for none), and the value that it was chosen by; larger is better.
    drops
        Epochs after which a plateau lowered the learning rate.
    history
        The lines of ``metrics.jsonl``.
    order
        Digest of the unfinished epoch's order; empty between epochs and in states of earlier versions.
    restarted
        Epochs that were restarted, from 1.
    unchecked
        Epochs that were resumed without a digest.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    first_loss: Finite | None = None
    sums: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)
    samples: Count = 0
    seconds: Finite = 0.0
    best_epoch: Count = 0
    best_rank: tuple[Finite, Finite] | None = None
    drops: Items[int] = []
    history: Items[EpochMetrics] = []
    order: str = ""
    restarted: Items[int] = []
    unchecked: Items[int] = []

    @property
    def just_best(self) -> bool:
        """Whether the best student so far is that of the epoch that has just finished."""
        return 0 < self.best_epoch == self.epoch and not self.batch

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.history) != self.epoch or self.best_epoch > self.epoch:
            raise ValueError(f"{self.epoch} finished epochs, {len(self.history)} lines, best epoch {self.best_epoch}")
        if (self.batch > 0) != (self.samples > 0):
            raise ValueError(f"{self.batch} batches of {self.samples} samples")
        for line in self.history:
            if not set(_USED) <= line.keys() or any(line[name] is None for name in ("epoch", "loss", "seconds")):
                raise ValueError(f"the line of an epoch lacks one of {', '.join(_USED)}")
        return self


class StoredFile(BaseModel):
    """A file of a state, and its SHA-256."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: StateFile
    sha256: str


class Best(BaseModel):
    """The best student so far.

    Attributes
    ----------
    epoch
        The epoch after which it was saved, from 1.
    weights
        Its file: that of the state after this epoch.
    scores
        Its scores of the validation images; None without validation rows.
    calibration
        The threshold that they give; None unless they are of both classes.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: Count
    weights: StoredFile
    scores: StoredFile | None = None
    calibration: Calibration | None = None

    @property
    def files(self) -> set[str]:
        """Names of its files."""
        return {self.weights.name} | ({self.scores.name} if self.scores else set())


class Saved(BaseModel):
    """The content of ``last.json``: the newest state and the best student, which are one commit.

    Attributes
    ----------
    weights, optimiser
        Names of the files of the state.
    sha256
        Digest of each of these files; empty in states of earlier versions.
    param_groups, random, scaler, progress
        The rest of the state.
    best
        The best student; None before the first epoch has ended, and in states of earlier versions.
    epoch_start
        The state at the beginning of the unfinished epoch, or None.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    weights: StateFile
    optimiser: StateFile
    sha256: TextByName = {}
    param_groups: Items[dict[str, Any]]
    random: dict[str, Any]
    scaler: dict[str, Any] = {}
    progress: State
    best: Best | None = None
    epoch_start: Saved | None = None

    @property
    def files(self) -> set[str]:
        """Names of all files of the state, of the best student, and of the state at the epoch's beginning."""
        own = {self.weights, self.optimiser} | (self.best.files if self.best else set())
        return own | (self.epoch_start.files if self.epoch_start else set())


class Open(BaseModel):
    """A form whose other fields may be anything, since another version may have more."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Origin(Open):
    dataset: str
    revision: str


class _Checkpoint(Open):
    sha256: str


class _Measured(Open):
    generator: str
    real: int
    fake: int
    accuracy: Finite | None = None
    average_precision: Finite | None = None
    auc: Finite | None = None


class EvaluationForm(Open):
    """``evaluation.json``."""

    dataset: str
    revision: str
    split: str
    build: str | None = None
    transform: str | None = None
    applied_transform: str | None = None
    select: str | None = None
    origin: _Origin | None = None
    checkpoint: _Checkpoint | None = None
    seen_generators: Items[str] | None = None
    notes: Items[str] | None = None
    set_aside: CountByName | None = None
    counts: CountByName | None = None
    metrics: NumberByName | None = None
    mean: NumberByName | None = None
    generators: Items[_Measured] | None = None
    fingerprints: TextByName | None = None
    versions: TextByName | None = None


class _Trained(Open):
    dataset: str
    revision: str
    build: str


class _Settings(Open):
    method: str
    dataset: str | Items[str]
    seed: int | None = None
    preset: str | None = None
    backbone: str | None = None
    kd_weight: Finite | None = None


class RunForm(Open):
    """``config.json``, as far as it is used without torch; `folder.RunRecord` is all of it."""

    config: _Settings
    version: int = 1
    run: str | None = None
    cache: str | None = None
    dataset: str | None = None
    revision: str | None = None
    build: str | None = None
    created: str | None = None
    others: Items[_Trained] | None = None
    fingerprints: TextByName | None = None
    versions: TextByName | None = None
    samples: CountByName | None = None
    seen_generators: Items[str] | None = None
    groups: Items[str] | None = None
    imported: TextByName | None = None
    title: str = ""
    provider: str = ""


class SweepForm(Open):
    """The content of ``sweep.json``: the names of the runs."""

    runs: Items[str] = []


_SAVED: TypeAdapter[Saved] = TypeAdapter(Saved)
RUN_FORM: TypeAdapter[RunForm] = TypeAdapter(RunForm)
EVALUATION_FORM: TypeAdapter[EvaluationForm] = TypeAdapter(EvaluationForm)
_SWEEP: TypeAdapter[SweepForm] = TypeAdapter(SweepForm)


def own_file(path: Path) -> Path:
    """Return a path of a run's file. Raises UserError if it is a link that leads out of the file's folder."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # fails for a link to itself, which `resolve` leaves as it is since Python 3.13
        inside = path.resolve().is_relative_to(path.parent.resolve())
    except OSError:
        inside = False
    if not inside:
        raise UserError(f"{path}: is a link that leads out of its folder. Put the file itself there.")
    return path


def is_there(path: Path) -> bool:
    """Return whether a name is taken, be it by a broken link."""
    return path.is_symlink() or path.exists()


def read_saved(checkpoints: Path) -> Saved | None:
    """Return the newest state of a run as its record names it, without loading it; None if there is no state.

    Raises
    ------
    UserError
        The record is damaged.
    """
    path = checkpoints / LAST
    return read_record(own_file(path), _SAVED, "the state of a training", _AGAIN) if is_there(path) else None


class KnownBest(NamedTuple):
    """What a run says of its best student: the digest of its file, and the threshold that validation chose for it."""

    sha256: str
    calibration: Calibration | None


def known_best(run: Path) -> KnownBest | None:
    """Return what a run says of its best student, without loading it; None if it has none yet.

    Raises
    ------
    UserError
        A record is damaged.
    """
    saved = read_saved(run / "checkpoints")
    if saved is not None and saved.best is not None:
        return KnownBest(saved.best.weights.sha256, saved.best.calibration)
    path = own_file(run / "checkpoints" / BEST)  # of an earlier version, or imported
    if not path.is_file():
        return None
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return KnownBest(sha256, stored_calibration(run, sha256))


def stored_calibration(run: Path, sha256: str) -> Calibration | None:
    """Return the threshold that an earlier version stored in a file, if it is that of the student with this digest."""
    calibration = read_calibration(own_file(run / CALIBRATION))
    return calibration if calibration is not None and calibration.checkpoint_sha256 == sha256 else None


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the record of a stored evaluation; empty if there is none that can be read."""
    try:
        found = read_record(own_file(folder / EVALUATION), EVALUATION_FORM, "an evaluation", "")
    except UserError:
        return {}
    content: dict[str, Any] = found.model_dump(mode="json", exclude_unset=True)
    return content


def read_scores(path: Path) -> pa.Table:
    """Return the images that an evaluation scored: ``key``, ``generator``, ``group``, ``family``, ``label`` and ``score``.

    Raises
    ------
    UserError
        The table is damaged, or has scores that are no numbers.
    """
    table = read_labelled(path, _SCORES)
    scores = table["score"].to_numpy()
    if not np.isfinite(scores).all():
        raise UserError(
            f"{path}: {int((~np.isfinite(scores)).sum())} scores are not numbers, so the training "
            "diverged. Train again with a lower --lr, or leave this run out"
        )
    return table


def read_labelled(path: Path, columns: Mapping[str, str]) -> pa.Table:
    """Read the columns of a table of an evaluation, ``label`` among them, each as the type that is named.

    Raises
    ------
    UserError
        The table is damaged.
    """
    try:
        table = read_bounded(path, list(columns))
        absent = [name for name in columns if name not in table.column_names]
        if absent:
            raise ValueError(f"it has no column {absent[0]}")
        table = table.select(list(columns)).cast(pa.schema(list(columns.items())))
        if not set(table["label"].to_pylist()) <= {0, 1}:
            raise ValueError("it has labels other than 0 and 1")
        return table
    except (OSError, ValueError, pa.ArrowException) as problem:
        raise UserError(f"{path}: unreadable ({problem}). Delete {path.parent} and evaluate again.") from problem


def read_sweep(path: Path) -> SweepForm:
    """Return the list of a sweep. Raises UserError if it is damaged."""
    return read_record(own_file(path), _SWEEP, "the list of a sweep", "Delete it and run the sweep again.")


def runs_of(folder: Path) -> list[Path]:
    """Return the folder itself, or the runs of a sweep's folder that have begun. Raises UserError as `read_sweep`."""
    path = folder / SWEEP
    if not path.is_file():
        return [folder]
    names = [name for name in read_sweep(path).runs if Path(name).name == name]
    return [folder / name for name in names if (folder / name / "config.json").is_file()]
