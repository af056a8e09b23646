"""What the functions of the package return: the fields that programs ask for, and all that the command prints as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from ..storage.parquet import read_bounded

Json = Mapping[str, Any]


@dataclass(frozen=True)
class BuildSummary:
    """What a build did or, as a dry run, would do.

    Attributes
    ----------
    dataset : str
        Name of the dataset.
    revision, build : str or None
        Revision of the dataset and id of the build record; None for a dry run.
    samples : int
        Distinct images.
    rejected : int
        Files that could not be used; ``json["rejects"]`` has the reasons.
    computed : dict
        Feature -> rows that were computed; of a dry run, that are missing.
    fingerprints : dict
        Feature -> fingerprint, 64 hex digits; None in a dry run without the weights.
    adm_calls : int
        Images x calls of the diffusion model.
    warnings, notes : tuple of str
        What a reader must know, a sentence each.
    seconds : float
        Duration.
    json : dict
        What ``distil-cache build --json`` prints, without ``profile`` and ``next``.
    """

    dataset: str
    revision: str | None
    build: str | None
    samples: int
    rejected: int
    computed: Mapping[str, int]
    fingerprints: Mapping[str, str | None]
    adm_calls: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    json: Json = field(repr=False)

    @classmethod
    def of(cls, result: Json) -> Self:
        """Return the summary of what a build returned."""
        counted = "missing" if result["dry_run"] else "computed"
        return cls(
            dataset=result["dataset"],
            revision=result["revision"],
            build=result["build"],
            samples=result["samples"],
            rejected=result["rejected"],
            computed={name: feature[counted] for name, feature in result["features"].items()},
            fingerprints={name: feature["fingerprint"] for name, feature in result["features"].items()},
            adm_calls=result["adm_calls"],
            warnings=tuple(result["warnings"]),
            notes=tuple(result["notes"]),
            seconds=result["seconds"],
            json=result,
        )


@dataclass(frozen=True)
class TrainingSummary:
    """What a training came to.

    Attributes
    ----------
    run : Path
        Folder of the run.
    epochs, steps : int
        Finished epochs and optimiser steps.
    best_epoch : int
        Epoch of the best student, from 1.
    validation : dict
        ``ap``, ``acc`` (0 to 1) and ``bce`` of the best epoch on the validation rows; None without such rows.
    samples : dict
        Rows for ``train`` and ``val``.
    seconds : float
        Duration of all epochs.
    json : dict
        What ``distil-cache train --json`` prints, without ``profile`` and ``next``.
    """

    run: Path
    epochs: int
    steps: int
    best_epoch: int
    validation: Mapping[str, float | None]
    samples: Mapping[str, int]
    seconds: float
    json: Json = field(repr=False)

    @classmethod
    def of(cls, result: Json) -> Self:
        """Return the summary of what a training returned."""
        return cls(
            run=Path(result["run"]),
            epochs=result["epochs"],
            steps=result["steps"],
            best_epoch=result["best_epoch"],
            validation=result["val"],
            samples=result["samples"],
            seconds=result["seconds"],
            json=result,
        )


@dataclass(frozen=True)
class EvaluationSummary:
    """How a student did on one split.

    Attributes
    ----------
    folder : Path
        Folder of the evaluation, in the run.
    dataset, split : str
        What was scored.
    counts : dict
        Images by class: ``real`` and ``fake``.
    metrics : dict
        ``accuracy`` at 0.5, ``average_precision``, ``auc`` (0 to 1) and ``bce`` over all images; None where a class is
        missing.
    threshold : float or None
        The threshold that validation chose for this student.
    generators : tuple of dict
        One per generator, and one for ``all``: ``generator``, ``real``, ``fake``, and ``at_half``, ``at_threshold`` and
        ``ap``, each [value, low, high] with a 95 % interval, or None.
    json : dict
        What ``distil-cache evaluate --json`` prints, without ``next``.
    """

    folder: Path
    dataset: str
    split: str
    counts: Mapping[str, int]
    metrics: Mapping[str, float | None]
    threshold: float | None
    generators: tuple[Json, ...]
    json: Json = field(repr=False)

    @classmethod
    def of(cls, folder: Path, result: Json) -> Self:
        """Return the summary of what an evaluation returned, with its ``summary``."""
        return cls(
            folder=folder,
            dataset=result["dataset"],
            split=result["split"],
            counts=result["counts"],
            metrics=result["metrics"],
            threshold=result["summary"]["threshold"],
            generators=tuple(result["summary"]["rows"]),
            json=result,
        )

    def scores(self) -> pa.Table:
        """Return a row per image: ``key``, ``label`` (1 for generated), ``generator``, ``family``, ``group``,
        ``score`` (float32, 0 to 1) and ``logit`` (float32).
        """
        return read_bounded(self.folder / "scores.parquet")


@dataclass(frozen=True)
class ReportSummary:
    """A report that was written.

    Attributes
    ----------
    html : Path
        The page; the other files are beside it.
    answers : tuple of str
        The verdict, a sentence or two each.
    missing : tuple of str
        What is missing for a claim, a sentence each.
    evaluated, not_evaluated : tuple of dict
        What was evaluated first, and what could not be and ``why``, each with ``run``, ``dataset`` and ``split``.
    json : dict
        What ``distil-cache report --json`` prints, without ``next``.
    """

    html: Path
    answers: tuple[str, ...]
    missing: tuple[str, ...]
    evaluated: tuple[Mapping[str, str], ...]
    not_evaluated: tuple[Mapping[str, str], ...]
    json: Json = field(repr=False)

    @classmethod
    def of(cls, result: Json) -> Self:
        """Return the summary of what a report returned."""
        verdict = result["verdict"]
        return cls(
            html=Path(result["html"]),
            answers=tuple(f"{one['question']}: {one['answer']}. {one['numbers']}" for one in verdict["answers"]),
            missing=tuple(verdict["missing"]),
            evaluated=tuple(result["evaluated"]),
            not_evaluated=tuple(result["not_evaluated"]),
            json=result,
        )
