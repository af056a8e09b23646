"""Everything that one training stands on, resolved from its configuration before any work starts."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
from torch.optim import Adam, Optimizer

from .. import __version__
from ..cache.builds import BuildRecord
from ..cache.store import Cache
from ..errors import UserError
from ..models.inputs import paper_size
from .checkpoint import seed_everything
from .config import TrainConfig
from .data import Part
from .methods import METHODS, Method
from .run_folder import RunFolder, RunRecord, new_run_id, now
from .select import candidate_builds, choose_build, column, parse_select, training_parts
from .student import Student, build_student, check_map


@dataclass(frozen=True)
class Session:
    """A training, ready to run. ``val`` is None where nothing was held out."""

    config: TrainConfig
    method: Method
    record: RunRecord
    train: Part
    val: Part | None
    student: Student
    optimiser: Optimizer
    device: torch.device

    @property
    def size(self) -> int:
        """Side of the student's input in pixels."""
        return self.record.train_size


def open_session(
    config: TrainConfig, cache: Cache, run: RunFolder, known: RunRecord | None, device: torch.device
) -> Session:
    """Find rows, build and features, seed the generators, and make the student and its optimiser (Adam, as the papers).

    known : the record of a training that goes on: it keeps its build. Raises UserError for whatever does not fit.
    """
    method = METHODS[config.method]
    purpose = f"method {method.name}"
    build_id = known.build if known else config.build
    revision, _ = candidate_builds(cache, config.dataset, build_id)
    table = cache.datasets().read(config.dataset, revision)
    parts = training_parts(table, parse_select(config.select), config.val_fraction, config.dataset)
    features = method.training_features(config.distillation)
    needed = {"train": features}
    if parts.val_split != "train":
        needed[parts.val_split] = method.inputs
    build = choose_build(cache, config.dataset, build_id, needed, purpose=purpose)

    train = Part(cache, build, parts.train, features, split="train", purpose=purpose)
    val = Part(cache, build, parts.val, method.inputs, split=parts.val_split, purpose=purpose)
    size = _train_size(config, cache, build, train)
    teacher = train.row_shape("teacher")[1:] if "teacher" in features else None

    seed_everything(config.seed)
    student = build_student(config.backbone, method.channels, teacher[0] if teacher else None)
    if teacher:
        check_map(student, config.backbone, method.channels, size, teacher)
    student.to(device)
    optimiser = Adam(student.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    fakes = train.label == 1
    record = RunRecord(
        run=known.run if known else new_run_id(run.folder),
        config=config,
        cache=str(cache.root.resolve()),
        dataset=config.dataset,
        revision=build.revision,
        build=build.id,
        fingerprints={name: build.features[name].fingerprint for name in features},
        train_size=size,
        teacher_channels=teacher[0] if teacher else None,
        seen_generators=tuple(sorted(set(column(train.table, "generator")[fakes].tolist()))),
        samples={"train": len(train), "val": len(val)},
        validation="split val" if parts.val_split == "val" else f"{config.val_fraction:.0%} of train, by key",
        created=known.created if known else now(),
        versions={"distil-cache": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
    return Session(config, method, record, train, val if len(val) else None, student, optimiser, device)


def _train_size(config: TrainConfig, cache: Cache, build: BuildRecord, train: Part) -> int:
    """What was asked, else the teacher's input side if the build has a teacher, else 7/8 of the image (224 of 256)."""
    cached = None
    if "teacher" in build.features:
        cached = int(str(cache.open_feature(build.features["teacher"].folder).spec["size"]))
    if config.train_size is None:
        return cached or paper_size(train.row_shape(METHODS[config.method].inputs[0])[-1])
    if "teacher" in train.stores and cached != config.train_size:
        raise UserError(
            f"train_size {config.train_size}: the cached teacher saw {cached} pixels, the student must see the same. "
            f"Leave it out, or build `teacher` with --train-size {config.train_size}."
        )
    return config.train_size
