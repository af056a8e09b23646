"""What a training would do, for ``train --dry-run``: nothing is computed, downloaded or written.

Everything that a training checks before its first step is checked here as well, with networks that have no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...cache.store import Cache
from ...models.backbones import backbone_entry, build_backbone, teacher_file
from ...models.download import AbsentWeightsError, no_downloads
from ...storage import AnyPath, path_exists
from ..config import TrainConfig
from ..data.dataset import FeatureDataset
from ..data.examples import name_and_side
from ..data.select import column
from ..runs.checkpoint import read_progress
from ..runs.folder import RunFolder, RunRecord
from ..runs.forms import LAST
from ..students.pixels import PixelStudent, check_map
from ..students.student import SCRATCH, input_shapes
from .loop import is_over
from .session import (
    check_smallest_batch,
    check_stream,
    open_rows,
    rows_of,
    run_to_start_from,
    side_of_input,
    spec_of_teacher,
    steps_of_epoch,
)


def plan_training(
    config: TrainConfig,
    cache_root: AnyPath | str,
    run: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    copies: bool = False,
) -> dict[str, Any]:
    """Say what a training would learn from, and how long it is.

    Parameters
    ----------
    config, cache_root, run, resume, workers
        As for `loop.run_training`, of one process.
    copies
        Whether shards would be read through a local copy.

    Returns
    -------
    dict
        ``run``, its folder; ``state``, a phrase on what is there; ``settings``, those that are not None; ``builds``, one
        a dataset; ``features``, which are read; ``counts``, the images by split (``train`` or ``val``), label and
        generator; ``samples``, their sums; ``validation``, where the validation images come from; ``train_size``, the
        side of the student's input in pixels, of what lies over the image; ``input``, the shape of each feature of it;
        ``steps_per_epoch`` and ``steps``; ``initial_weights``, a phrase;
        ``teacher``, where its maps come from, or None; ``absent``, a sentence for each file of weights that the training
        would download.

    Raises
    ------
    UserError
        The training would be refused.
    """
    folder = RunFolder(run)
    known = folder.admit(config, resume=resume)
    check_stream(config, several=False, workers=workers, copies=copies)
    cache = Cache.open(cache_root)
    rows = rows_of(config, cache, known)
    train, val = open_rows(config, cache, rows)
    steps = steps_of_epoch(config, len(train), len(val), 1)

    method, cached = config.definition, spec_of_teacher(cache, rows.builds[0])
    image = train.image_side()
    side = int(str(cached["size"])) if cached else None
    taught = train.row_shape(config.target)[1:] if config.target else None
    teacher = None if cached is None or taught is None else f"cached maps of {cached['backbone']}"
    absent: list[str] = []
    if config.online:
        name, side = name_and_side(config, cached, image)
        taught, teacher = _shape(name, side), f"{name}, run during the training"
        absent += _absent(lambda: teacher_file(name, config.teacher_weights))
    size = side_of_input(config, image, side)
    shapes = input_shapes(method.inputs, {name: train.layout(name) for name in method.inputs}, size)
    check_smallest_batch(config, len(train), shapes)
    with torch.device("meta"):
        student = method.student(method, shapes, config.backbone, taught[0] if taught else None)
        if taught is not None:
            check_map(student, config.backbone, shapes, taught)
    initial, lacking = _initial(config, begun=path_exists(folder.checkpoints / LAST))
    return {
        "dry_run": True,
        "run": str(run),
        "state": _state(config, folder, known),
        "settings": config.model_dump(mode="json", exclude_none=True),
        "builds": [{"dataset": build.dataset, "revision": build.revision, "build": build.id} for build in rows.builds],
        "features": list(config.training_features),
        "counts": [*_counts("train", train), *_counts("val", val)],
        "samples": {"train": len(train), "val": len(val)} | ({"left_out": rows.left_out} if rows.left_out else {}),
        "validation": rows.validation,
        "train_size": size,
        "steps_per_epoch": steps,
        "steps": steps * config.epochs,
        "input": {name: list(shape) for name, shape in shapes.items()},
        "initial_weights": initial,
        "teacher": teacher,
        "absent": [*absent, *lacking],
    }


def _state(config: TrainConfig, folder: RunFolder, known: RunRecord | None) -> str:
    """Say what the folder of a run holds."""
    if known is None:
        return "a new run"
    if is_over(config, folder):
        return "a finished run, to which nothing would be added"
    progress = read_progress(folder.checkpoints)
    return f"resumes after step {progress.step}" if progress else "resumes before its first step"


def _counts(split: str, rows: FeatureDataset) -> list[dict[str, Any]]:
    """Count the images of each class and generator."""
    found = Counter(zip(rows.label.tolist(), column(rows.table, "generator").tolist(), strict=True))
    return [
        {"split": split, "label": label, "generator": generator, "images": images}
        for (label, generator), images in sorted(found.items())
    ]


def _shape(teacher: str, side: int) -> tuple[int, ...]:
    """Return the shape of a teacher's map, (C, h, w)."""
    with torch.device("meta"):
        return tuple(build_backbone(teacher).eval()(torch.zeros(1, 3, side, side)).shape[1:])


def _initial(config: TrainConfig, *, begun: bool) -> tuple[str, list[str]]:
    """Say what the student starts from; return also a sentence if that would be downloaded.

    A training that has ``begun`` needs it no more. Raises UserError if the run to start from does not fit.
    """
    if config.init_from:
        if not begun:
            run_to_start_from(config)
        return f"the best student of {config.init_from}", []
    if not config.definition.backbone:
        return SCRATCH if config.definition.learns else "its definition", []
    start = backbone_entry(config.backbone).start
    requested = config.initial_weights or config.definition.initial
    if requested == SCRATCH or (start is None and config.initial_weights is None):
        return SCRATCH, []
    if start is None:  # refused in the words of the training
        with torch.device("meta"):
            return PixelStudent.of(config.backbone, 3).initialise(config.backbone, config.definition, requested), []
    return start.name, _absent(lambda: start.fetch(None))


def _absent(find: Callable[[], object]) -> list[str]:
    """Return why weights would be downloaded, a sentence; nothing if they are here."""
    try:
        with no_downloads():
            find()
    except AbsentWeightsError as error:
        return [str(error)]
    return []
