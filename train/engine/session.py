"""Everything that one training stands on, resolved from its configuration before any work starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim import Adam, Optimizer

from ...cache.store import Cache
from ...errors import UsageError, UserError
from ...models.weights import file_digest
from ..config import TrainConfig
from ..data.augment import Degrader
from ..data.dataset import Batch, FeatureDataset
from ..data.examples import Example, ExampleBuilder, OnlineTeacher, open_online_teacher
from ..data.readers import LoaderOptions, ReaderPool
from ..data.rows import TrainingRows, find_rows
from ..data.select import column
from ..data.shuffle import batch_sizes
from ..methods import Method
from ..runs.checkpoint import BEST, LAST, State, seed_everything
from ..runs.folder import RunFolder, RunRecord, TrainedOn, new_run_id, now, versions
from ..student import Student, build_student, check_map, initialise
from .amp import MixedPrecision
from .distributed import ProcessGroup
from .lr_schedule import LrSchedule


@dataclass(frozen=True)
class Session:
    """A training, ready to run. ``val`` is None where nothing was held out.

    prepare : from a batch to what a step learns from. degrade : what happens to pictures where they are read, or None.
    """

    config: TrainConfig
    record: RunRecord
    train: FeatureDataset
    val: FeatureDataset | None
    student: Student
    optimiser: Optimizer
    prepare: ExampleBuilder
    degrade: Degrader | None
    precision: MixedPrecision
    schedule: LrSchedule
    ranks: ProcessGroup
    loading: LoaderOptions

    @property
    def method(self) -> Method:
        """What the student learns from."""
        return self.record.method

    @property
    def size(self) -> int:
        """Side of the student's input in pixels."""
        return self.record.train_size

    def batches(self, state: State) -> Iterator[Batch]:
        """What is left of the epoch at hand, on the device."""
        config, device = self.config, self.ranks.device
        coming = self.train.epoch(
            config.seed, state.epoch + 1, config.batch_size, state.batch, self.loading, self.degrade
        )
        return (batch.to(device) for batch in coming)

    def order(self, state: State) -> str:
        """Digest of the order of the epoch at hand, for all processes together."""
        config = self.config
        return self.train.epoch_digest(config.seed, state.epoch + 1, config.batch_size)

    def parts(self, example: Example, whole: int) -> list[Example]:
        """Cut this process' examples of a batch of ``whole`` into the parts that go through the network one by one.

        All processes cut as often, and no part of the batch has fewer than two examples.
        """
        count = max(1, min(self.config.accumulate, whole // (2 * self.ranks.share.ranks)))
        teachers = [None] * count if example.teacher is None else example.teacher.tensor_split(count)
        return [
            Example(x, label, teacher)
            for x, label, teacher in zip(
                example.x.tensor_split(count), example.label.tensor_split(count), teachers, strict=True
            )
        ]

    def set_rate(self, state: State) -> float:
        """Give the optimiser the next step's learning rate, and return it."""
        rate = self.schedule.rate(state)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate


def open_session(
    config: TrainConfig, cache: Cache, run: RunFolder, known: RunRecord | None, ranks: ProcessGroup, readers: ReaderPool
) -> Session:
    """Find rows, builds and features, seed the generators, and make the student and its optimiser (Adam, as the papers).

    known : the record of a training that goes on: it keeps its builds. Raises UserError for whatever does not fit.
    """
    method, features = config.definition, config.training_features
    purpose = f"method {method.name}"
    builds = {one.dataset: one.build for one in known.trained_on} if known else {}
    rows = find_rows(config, cache, features, builds, purpose)
    build = rows.builds[0]
    train = FeatureDataset(cache, build, rows.train, features, split="train", purpose=purpose)
    val = FeatureDataset(cache, build, rows.val, method.inputs, split=rows.val_split, purpose=purpose)
    steps = _steps(config, len(train), len(val), ranks)

    image = train.row_shape(method.inputs[0])[-1]
    cached = cache.open_feature(build.features["teacher"].folder).spec if "teacher" in build.features else None
    online = open_online_teacher(config, cached, image) if config.online else None
    seen = online.size if online else int(str(cached["size"])) if cached else None
    size = _side(config, image, seen, taught="teacher" in features or online is not None)
    shape = online.shape() if online else train.row_shape("teacher")[1:] if "teacher" in features else None

    seed_everything(config.seed)
    student = build_student(config.backbone, method.channels, shape[0] if shape else None)
    if shape:
        check_map(student, config.backbone, method.channels, size, shape)
    begun_as, initial = known.begun_as if known else None, known.initial_weights if known else ""
    if not (run.checkpoints / LAST).exists():
        begun_as = begin_as(student, config) if config.init_from else None
        initial = "" if config.init_from else initialise(student, config.backbone, method, config.initial_weights)
    if not ranks.first:
        ranks.seed(config.seed)
    ranks.normalise_together(student)
    student.to(ranks.device)

    pos_weight = _balance(train.label) if config.pos_weight == "balanced" else float(config.pos_weight)
    record = RunRecord(
        run=known.run if known else new_run_id(run.folder),
        config=config,
        cache=str(cache.root.resolve() if isinstance(cache.root, Path) else cache.root),
        fingerprints={name: build.features[name].fingerprint for name in features},
        specs={name: dict(cache.open_feature(build.features[name].folder).spec) for name in features},
        train_size=size,
        teacher_channels=shape[0] if shape else None,
        seen_generators=tuple(sorted(set(column(train.table, "generator")[train.label == 1].tolist()))),
        samples={"train": len(train), "val": len(val)} | ({"left_out": rows.left_out} if rows.left_out else {}),
        validation=rows.validation,
        created=known.created if known else now(),
        versions=versions(),
        initial_weights=initial,
        teacher=dict(online.facts) if online else None,
        pos_weight=pos_weight,
        begun_as=begun_as,
        groups=tuple(sorted(set(column(train.table, "group").tolist()))),
        **_datasets(rows),
    )
    return Session(
        config=config,
        record=record,
        train=train,
        val=val if len(val) else None,
        student=student,
        optimiser=Adam(
            student.parameters(), lr=config.lr, betas=(config.beta1, 0.999), weight_decay=config.weight_decay
        ),
        prepare=ExampleBuilder(method, size, config.seed, _moved(online, ranks.device)),
        degrade=Degrader(method.degradation, config.seed) if method.degradation else None,
        precision=MixedPrecision(config.amp, ranks.device),
        schedule=LrSchedule(config, steps),
        ranks=ranks,
        loading=LoaderOptions(readers, ranks.share, pin=ranks.device.type == "cuda"),
    )


def _steps(config: TrainConfig, train: int, val: int, ranks: ProcessGroup) -> int:
    """Steps of one epoch; UserError for what these numbers of rows cannot serve."""
    sizes = batch_sizes(train, config.batch_size)
    if min(sizes, default=0) < ranks.share.ranks:
        raise UserError(
            f"--batch-size {config.batch_size}: the smallest batch of an epoch of {train:,} samples has {min(sizes)}, too "
            f"few for {ranks.share.ranks} processes. Choose another batch size."
        )
    if config.definition.cutmix and ranks.several:
        raise UsageError(
            f"preset {config.preset}: mixes pictures of a whole batch, which {ranks.share.ranks} processes do not have. Use one."
        )
    needs = "--schedule plateau" if config.schedule == "plateau" else "--stop-after" if config.stop_after else None
    if needs and not val:
        raise UsageError(f"{needs}: looks at the validation, and nothing is held out for one. Raise --val-fraction.")
    return len(sizes)


def _side(config: TrainConfig, image: int, teacher: int | None, *, taught: bool) -> int:
    """What was asked, else the method's side; the student must see the pixels that its teacher saw."""
    side = config.train_size or config.definition.side(image, teacher)
    if taught and side != teacher:
        raise UserError(
            f"train_size {side}: the teacher saw {teacher} pixels, the student must see the same. "
            f"Leave it out, or build `teacher` with --train-size {side}."
        )
    return side


def _balance(label: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Real over generated pictures: with this weight, both classes count the same."""
    generated = int(label.sum())
    return (len(label) - generated) / generated


def _datasets(rows: TrainingRows) -> dict[str, object]:
    first, *others = (TrainedOn(dataset=b.dataset, revision=b.revision, build=b.id) for b in rows.builds)
    return {**first.model_dump(), "others": tuple(others)}


def _moved(teacher: OnlineTeacher | None, device: torch.device) -> OnlineTeacher | None:
    return None if teacher is None else replace(teacher, model=teacher.model.to(device))


def begin_as(student: Student, config: TrainConfig) -> dict[str, str]:
    """Give a student the weights of the best one of ``config.init_from``, and return which those are.

    The projection to the teacher is taken along where both have the same; the optimiser begins anew, with the learning
    rate that was asked for. UserError for a run of another network, or whose input is made otherwise.
    """
    source = RunFolder(Path(str(config.init_from)))
    learnt, record, facts = source.load_student()
    asked = f"--init-from {config.init_from}"
    if record.config.backbone != config.backbone:
        raise UserError(
            f"{asked}: its student is {record.config.backbone}, not {config.backbone}. Use the same --backbone."
        )
    if record.method.scales != config.definition.scales:
        theirs, ours = (
            ", ".join(f"{name} {scale}" for name, scale in method.scales.items())
            for method in (record.method, config.definition)
        )
        raise UserError(f"{asked}: its student sees {theirs}, this one {ours}. Use the same --method and --preset.")
    own = student.state_dict()
    taken = {
        name: value
        for name, value in learnt.state_dict().items()
        if not name.startswith("projection.") or (name in own and own[name].shape == value.shape)
    }
    student.load_state_dict({**own, **taken})
    return {"run": record.run, "epoch": facts["epoch"], "sha256": file_digest(source.checkpoints / BEST)}
