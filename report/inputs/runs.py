"""Read run folders into typed structures. Opens no cache, loads no model, writes nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from ...cache.records.audit import AUDIT, MOST_BYTES, HeaderAudit, parse_audit
from ...cache.records.image_audit import IMAGE_AUDIT, ImageAudit, parse_image_audit
from ...cache.spec import harmonization_of
from ...errors import IntegrityError, UsageError, UserError
from ...metrics.calibration import CALIBRATION, Calibration, read_calibration
from ...metrics.measures import Array
from ...metrics.swap import SWAP, Swap, read_swap
from ...storage import path_exists, resolved
from ...storage.atomic import read_file
from ...storage.json_record import MOST_BYTES as MOST_RECORD_BYTES
from ...storage.json_record import first_fault, read_record
from ...storage.text import harmless, visible
from ...train.config import TrainConfig
from ...train.methods.registry import BUILT_IN
from ...train.runs.forms import (
    EVALUATION,
    EVALUATION_FORM,
    RUN_FORM,
    own_file,
    read_labelled,
    read_saved,
    read_scores,
    runs_of,
)
from .records import GALLERY, LINE, as_stored

SETTING = ("dataset", "revision", "split", "transform", "select")
"""Names of the parts of a setting: results of one setting are compared with each other."""

_DIRE = {"key": "string", "generator": "string", "label": "int64", "mean_dire": "double"}
_MOST_PNG = 64 * 2**20


@dataclass(frozen=True)
class GalleryItem:
    """One evaluated image, and PNG files of it and of the features that lie over it."""

    key: str
    label: int
    generator: str
    score: float
    images: Mapping[str, bytes]

    @property
    def right(self) -> bool:
        """Whether the threshold 0.5 gives the right class."""
        return (self.score > 0.5) == (self.label == 1)


@dataclass(frozen=True)
class MeanDire:
    """Mean DIRE of N images: ``values`` (N,) float64 in 0..1, the other columns (N,)."""

    keys: Array
    labels: Array
    generators: Array
    values: Array


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: columns of N rows, one per image, sorted by generator, label and key.

    Attributes
    ----------
    name : str
        The folder's name.
    info : Mapping
        The content of evaluation.json.
    keys, generators, groups, families : ndarray of str, (N,)
    labels : ndarray of int64, (N,)
        0 real, 1 generated.
    scores : ndarray of float64, (N,)
        Probability of generated.
    mean_dire : MeanDire or None
    gallery : tuple of GalleryItem
    audit : HeaderAudit or None
        The audit of the source files by the build.
    image_audit : ImageAudit or None
        The audit of the cached images.
    """

    name: str
    info: Mapping[str, Any]
    keys: Array
    labels: Array
    generators: Array
    groups: Array
    families: Array
    scores: Array
    mean_dire: MeanDire | None
    gallery: tuple[GalleryItem, ...]
    audit: HeaderAudit | None = None
    image_audit: ImageAudit | None = None

    @property
    def setting(self) -> tuple[str, str, str, str, str]:
        """Dataset, revision, split, transform and selection: results of one setting share a table."""
        return (
            str(self.info["dataset"]),
            str(self.info["revision"]),
            str(self.info["split"]),
            str(self.info.get("transform") or ""),
            str(self.info.get("select") or ""),
        )

    def same_images(self, other: Evaluation) -> bool:
        """Return whether both scored the same rows, so that their scores are paired."""
        columns = ("keys", "labels", "generators", "groups")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in columns)

    @property
    def seen(self) -> frozenset[str]:
        """Generators whose images the run was trained on."""
        return frozenset(map(str, self.info.get("seen_generators") or ()))


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes
    ----------
    name : str
        The folder's name, unique in the report.
    config : Mapping
        The content of config.json.
    history : tuple of Mapping
        The values of each epoch: those of the newest state, or without one the lines of metrics.jsonl.
    evaluations : tuple of Evaluation
        Those of the most images first.
    calibration : Calibration or None
        The threshold that validation chose.
    folder : Path
        Resolved.
    swap : Swap or None
        The result of a swap test.
    """

    name: str
    config: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Evaluation, ...]
    calibration: Calibration | None = None
    folder: Path = Path()
    swap: Swap | None = None

    def get(self, name: str) -> Any:
        """Return a value that was resolved when training began, else a setting, else None."""
        found = self.config.get(name)
        return self.config["config"].get(name) if found is None else found

    @property
    def title(self) -> str:
        """What the method is called: by its record, in which earlier versions left it out, else its name."""
        name = str(self.get("method"))
        known = BUILT_IN.get(name)
        return str(self.get("title") or (known.title if known else name))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The features that its student sees, as far as that is known."""
        known = BUILT_IN.get(str(self.get("method")))
        return tuple(map(str, self.get("layouts") or (known.inputs if known else ())))

    @property
    def kd_weight(self) -> float | None:
        """Weight of the distillation loss; None for methods without it, and if unknown."""
        value = self.get("kd_weight")
        unknown = value is None or bool(self.get("imported"))
        return None if unknown or self.get("method") != "distildire" else float(value)

    @property
    def seen(self) -> frozenset[str]:
        """Generators whose images it was trained on."""
        return frozenset(map(str, self.get("seen_generators") or ()))

    def configuration(self, *, besides_distillation: bool = False) -> str:
        """Return the settings as text, equal for runs that differ only in the seed.

        Parameters
        ----------
        besides_distillation : bool
            Also ignore the weight of the distillation loss, and with it whether the teacher's features are read.
        """
        dropped = {"seed", "build", "dataset"} | ({"kd_weight"} if besides_distillation else set())
        kept = {name: value for name, value in _settings(self.config).items() if name not in dropped}
        read = dict(self.get("fingerprints") or {})
        if besides_distillation and self.inputs:
            read = {name: fingerprint for name, fingerprint in read.items() if name in self.inputs}
        revisions = [self.get("revision"), *(other.get("revision") for other in self.get("others") or ())]
        return json.dumps([kept, revisions, read], sort_keys=True, default=str)

    @property
    def harmonization(self) -> str | None:
        """The compression that the build gave all images first, such as ``jpeg:95``; empty for none, None if not known."""
        specs = [spec for spec in (self.get("specs") or {}).values() if isinstance(spec, dict)]
        return max(map(harmonization_of, specs)) if specs else None

    def threshold(self, evaluation: Evaluation) -> float | None:
        """Return the threshold that validation chose for the evaluated student, or None."""
        checkpoint = evaluation.info.get("checkpoint") or {}
        if self.calibration is None or self.calibration.checkpoint_sha256 != checkpoint.get("sha256"):
            return None
        return self.calibration.threshold

    @property
    def datasets(self) -> str:
        """The training datasets, such as ``a and b``."""
        return " and ".join(
            [str(self.get("dataset")), *(str(other.get("dataset")) for other in self.get("others") or ())]
        )


def read_runs(folders: Sequence[Path], also: Sequence[Path] = ()) -> tuple[Run, ...]:
    """Read run folders.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, or folders of sweeps, which stand for their runs.
    also : sequence of Path
        Further ones, which may be among ``folders``.

    Returns
    -------
    tuple of Run
        In the order given. Names are the folders', with the parent's if two are equal.

    Raises
    ------
    UsageError
        Without a folder, or if a run is given twice.
    UserError
        If a folder is not a run, or a file of it cannot be read.
    """
    if not folders and not also:
        raise UsageError("no run was given. Name at least one run folder")
    found = [run for folder in folders for run in runs_of(resolved(folder))]
    found += [run for folder in also for run in runs_of(resolved(folder)) if run not in found]
    twice = [str(folder) for folder, times in Counter(found).items() if times > 1]
    if twice:
        raise UsageError(f"{twice[0]}: the run was given twice. Name it once")
    same_name = Counter(folder.name for folder in found)
    return tuple(
        _read_run(
            folder, visible(folder.name if same_name[folder.name] == 1 else f"{folder.parent.name}/{folder.name}")
        )
        for folder in found
    )


def _settings(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's settings, with defaults for those that its version lacked; invalid ones as stored."""
    config: Mapping[str, Any] = record["config"]
    earlier = {"schedule": "constant"} if record.get("version", 1) == 1 else {}
    try:
        return TrainConfig.checked(**{**earlier, **config}).model_dump(mode="json")
    except (UsageError, TypeError):
        return config


def _read_run(folder: Path, name: str) -> Run:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: not a run folder (it has no config.json). Train one with: distil-cache train --run …"
        )
    saved = read_saved(folder / "checkpoints")
    metrics = folder / "metrics.jsonl"
    history = saved.progress.history if saved else _lines(metrics) if metrics.is_file() else []
    best = saved.best if saved else None
    calibration = best.calibration if best else read_calibration(own_file(folder / CALIBRATION))
    found = sorted(one for one in folder.glob("evaluations/*") if one.is_dir() and path_exists(one / EVALUATION))
    config = as_stored(
        read_record(
            own_file(path), RUN_FORM, "the record of a run", "Train again into a new folder, or leave this run out."
        )
    )
    evaluations = sorted((_read_evaluation(one) for one in found), key=lambda one: (-len(one.keys), one.name))
    swap = read_swap(own_file(folder / SWAP))
    return Run(name, config, tuple(history), tuple(evaluations), calibration, folder, swap)


def _read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation, and start again if it was replaced meanwhile."""
    path = folder / "evaluation.json"
    try:
        while True:
            before = path.lstat()
            try:
                found = _read_once(folder)
            except UserError:
                if os.path.samestat(before, path.lstat()):
                    raise
                continue
            if os.path.samestat(before, path.lstat()):
                return found
    except FileNotFoundError as problem:
        raise UserError(f"{path}: was deleted while it was read. Write the report again") from problem


def _read_once(folder: Path) -> Evaluation:
    again = f"Delete {folder} and evaluate again."
    info = as_stored(read_record(own_file(folder / EVALUATION), EVALUATION_FORM, "the record of an evaluation", again))
    table = read_scores(folder / "scores.parquet")
    table = table.sort_by([(name, "ascending") for name in ("generator", "label", "key", "group")])
    return Evaluation(
        name=folder.name,
        info=info,
        keys=_texts(table, "key"),
        labels=table["label"].to_numpy().astype(np.int64),
        generators=_texts(table, "generator"),
        groups=_texts(table, "group"),
        families=_texts(table, "family"),
        scores=table["score"].to_numpy().astype(np.float64),
        mean_dire=_read_dire(folder / "dire.parquet"),
        gallery=_read_gallery(folder / "gallery"),
        audit=_read_audit(folder / AUDIT),
        image_audit=_read_image_audit(folder / IMAGE_AUDIT),
    )


def _read_audit(path: Path) -> HeaderAudit | None:
    if not path.is_file():
        return None
    audit = parse_audit(read_file(path, MOST_BYTES), str(path))
    return HeaderAudit.model_validate(harmless(audit.model_dump()))


def _read_image_audit(path: Path) -> ImageAudit | None:
    if not path.is_file():
        return None
    audit = parse_image_audit(read_file(path, MOST_BYTES), str(path))
    return ImageAudit.model_validate(harmless(audit.model_dump()))


def _read_dire(path: Path) -> MeanDire | None:
    if not path.is_file():
        return None
    table = read_labelled(path, _DIRE)
    table = table.sort_by([(name, "ascending") for name in ("generator", "label", "key")])
    return MeanDire(
        _texts(table, "key"),
        table["label"].to_numpy().astype(np.int64),
        _texts(table, "generator"),
        table["mean_dire"].to_numpy().astype(np.float64),
    )


def _read_gallery(folder: Path) -> tuple[GalleryItem, ...]:
    path = folder / "gallery.json"
    if not path.is_file():
        return ()
    entries = read_record(path, GALLERY, "a gallery", f"Delete {folder.parent} and evaluate again.")
    return tuple(
        GalleryItem(
            key=visible(entry.key),
            label=entry.label,
            generator=visible(entry.generator),
            score=entry.score,
            images={name: _gallery_png(folder, file) for name, file in entry.images.items()},
        )
        for entry in entries
    )


def _gallery_png(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise UserError(f"{folder}/gallery.json: image {name!r} is not in the folder. Evaluate again")
    return read_file(path, _MOST_PNG)


def _texts(table: pa.Table, name: str) -> Array:
    return np.asarray(["" if value is None else visible(value) for value in table[name].to_pylist()], dtype=str)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines; a last line that was cut off when the process was killed is skipped."""
    found: list[dict[str, Any]] = []
    try:
        lines = read_file(path, MOST_RECORD_BYTES).splitlines()
    except IntegrityError as error:
        raise UserError(str(error)) from error
    for number, line in enumerate(lines, 1):
        try:
            found.append(LINE.validate_json(line))
        except ValidationError as error:
            if number == len(lines) and not line.endswith(b"}"):
                break
            raise UserError(f"{path}, line {number}: is not the record of an epoch ({first_fault(error)}).") from error
    return found
