"""A training session: everything that one training needs, resolved from its configuration before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.optim import Adam, Optimizer

from ...cache.lease import lease
from ...cache.records.builds import BuildRecord
from ...cache.store import Cache
from ...errors import UsageError, UserError
from ...models.device import STUDENT_ARITHMETIC
from ...models.layout import move_network
from ..config import PLATEAUS, TrainConfig
from ..data.augment import VALIDATION, Degrader, check_augmentations, check_scales, test_input
from ..data.dataset import Batch, FeatureDataset
from ..data.examples import Example, ExampleBuilder, OnlineTeacher, open_online_teacher
from ..data.readers import LoaderOptions, ReaderPool
from ..data.rows import TrainingRows, find_rows
from ..data.select import distinct
from ..data.shuffle import batch_sizes
from ..data.streamed import StreamedDataset
from ..methods.distildire import DISTILDIRE
from ..methods.method import Method
from ..methods.registry import METHODS
from ..runs.checkpoint import seed_everything
from ..runs.folder import RECORD_VERSION, BestStudent, RunFolder, RunRecord, TrainedOn, new_run_id, now, versions
from ..runs.forms import LAST, State
from ..students.pixels import check_map
from ..students.student import Labelled, Shapes, Student, input_shapes
from .amp import MixedPrecision
from .distributed import ProcessGroup
from .lr_schedule import LrSchedule


@dataclass(frozen=True)
class Session:
    """A training, ready to run.

    Attributes
    ----------
    config, record
        The configuration, and what it was resolved to.
    train, val
        The rows; ``val`` is None if nothing is held out.
    student, optimiser, precision, schedule
        The student, and what updates it.
    prepare
        Makes the examples of a step from a batch.
    degrade, degrade_val
        Applied to images of the training and of the validation where they are read, or None.
    ranks
        The processes of the training.
    loading
        How batches are read.
    """

    config: TrainConfig
    record: RunRecord
    train: FeatureDataset
    val: FeatureDataset | None
    student: Student
    optimiser: Optimizer
    prepare: ExampleBuilder
    degrade: Degrader | None
    degrade_val: Degrader | None
    precision: MixedPrecision
    schedule: LrSchedule
    ranks: ProcessGroup
    loading: LoaderOptions

    @property
    def method(self) -> Method:
        """The method of the training."""
        return self.record.method

    @property
    def size(self) -> int:
        """Side of the student's input in pixels."""
        return self.record.train_size

    def batches(self, state: State) -> Iterator[Batch]:
        """Iterate over the remaining batches of the current epoch, on the device."""
        config, device = self.config, self.ranks.device
        batches = self.train.epoch(
            config.seed, state.epoch + 1, config.batch_size, state.batch, self.loading, self.degrade
        )
        return (batch.to(device) for batch in batches)

    def order(self, state: State) -> str:
        """Return the digest of the current epoch's order, over all processes."""
        config = self.config
        return self.train.epoch_digest(config.seed, state.epoch + 1, config.batch_size)

    def parts(self, example: Example, whole: int) -> list[Example]:
        """Split this process' examples of a batch of ``whole`` samples into the parts of gradient accumulation.

        All processes have the same number of parts, and no part of the batch has fewer than two examples.
        """
        count = max(1, min(self.config.accumulate, whole // (2 * self.ranks.share.ranks)))
        teachers = [None] * count if example.taught is None else example.taught.tensor_split(count)
        inputs = {name: x.tensor_split(count) for name, x in example.x.items()}
        return [
            Example({name: parts[number] for name, parts in inputs.items()}, label, teacher)
            for number, (label, teacher) in enumerate(zip(example.label.tensor_split(count), teachers, strict=True))
        ]

    def set_rate(self, state: State) -> float:
        """Set the optimiser's learning rate for the next step, and return it."""
        rate = self.schedule.rate(state)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate


def open_session(
    config: TrainConfig,
    cache: Cache,
    run: RunFolder,
    known: RunRecord | None,
    ranks: ProcessGroup,
    readers: ReaderPool,
    held: ExitStack,
) -> Session:
    """Find rows, builds and features, seed the generators, and make student and optimiser (Adam, as in the papers).

    Parameters
    ----------
    config
        The configuration.
    cache
        The cache.
    run
        The folder of the run.
    known
        Record of a training that resumes: it keeps its builds.
    ranks
        The processes of the training.
    readers
        The readers to use.
    held
        Keeps the lease on the features in the cache until it is closed; the first process takes it.

    Raises
    ------
    UserError
        Something is missing or does not fit.
    """
    method, features = config.definition, config.training_features
    degradation = method.degradation
    of_validation = degradation.of_validation() if degradation else None
    rows = rows_of(config, cache, known)
    build = rows.builds[0]
    if ranks.first:  # before any shard is looked for: see `cache.lease`
        folders = {source.features[name].folder for source in rows.builds for name in {*features, *method.inputs}}
        held.enter_context(lease(cache.root, "train", folders))
    train, val = open_rows(config, cache, rows)
    steps = steps_of_epoch(config, len(train), len(val), ranks.share.ranks)

    image = train.image_side()
    cached = spec_of_teacher(cache, build)
    online = open_online_teacher(config, cached, image) if config.online else None
    teacher_side = online.size if online else int(str(cached["size"])) if cached else None
    size = side_of_input(config, image, teacher_side)
    shape = online.shape() if online else train.row_shape(config.target)[1:] if config.target else None

    layouts = {name: train.layout(name) for name in method.inputs}
    shapes = input_shapes(method.inputs, layouts, size)
    check_smallest_batch(config, len(train), shapes)
    seed_everything(config.seed)
    student = method.student(method, shapes, config.backbone, shape[0] if shape else None)
    if shape:
        check_map(student, config.backbone, shapes, shape)
    begun_as, initial = known.begun_as if known else None, known.initial_weights if known else ""
    if not (run.checkpoints / LAST).exists():
        begun_as = start_from_run(student, config) if config.init_from else None
        initial = "" if config.init_from else student.initialise(config.backbone, method, config.initial_weights)
        if not config.init_from:
            student.prepare(lambda: _plain_rows(train, method, size, config.batch_size))
    if not ranks.first:
        ranks.seed(config.seed)
    ranks.normalise_together(student)
    move_network(student, ranks.device)

    pos_weight = _balance(train.label) if config.pos_weight == "balanced" else float(config.pos_weight)
    record = RunRecord(
        version=max(2, known.version) if known else RECORD_VERSION,
        run=known.run if known else new_run_id(run.folder),
        config=config,
        cache=str(cache.root.resolve()),
        fingerprints={name: build.features[name].fingerprint for name in features},
        specs={name: dict(cache.open_feature(build.features[name].folder).spec) for name in features},
        train_size=size,
        teacher_channels=shape[0] if shape else None,
        seen_generators=tuple(
            distinct(train.table.select(["generator"]).filter(pa.array(train.label == 1)), "generator")
        ),
        samples={"train": len(train), "val": len(val)} | ({"left_out": rows.left_out} if rows.left_out else {}),
        validation=rows.validation,
        created=known.created if known else now(),
        versions=versions(),
        initial_weights=initial,
        teacher=dict(online.facts) if online else None,
        pos_weight=pos_weight,
        begun_as=begun_as,
        groups=tuple(distinct(train.table, "group")),
        arithmetic=STUDENT_ARITHMETIC,
        layouts=layouts,
        title=method.title,
        provider="" if config.custom else str(METHODS.package(method.name) or ""),
        **_datasets(rows),
    )
    return Session(
        config=config,
        record=record,
        train=train,
        val=val if len(val) else None,
        student=student,
        optimiser=make_optimiser(student, config, ranks.device),
        prepare=ExampleBuilder(method, size, config.seed, _on_device(online, ranks.device), train.geometry),
        degrade=Degrader(degradation, config.seed) if degradation else None,
        degrade_val=Degrader(of_validation, config.seed, VALIDATION) if of_validation else None,
        precision=MixedPrecision(config.amp, ranks.device),
        schedule=LrSchedule(config, steps),
        ranks=ranks,
        loading=LoaderOptions(readers, ranks.share, pin=ranks.device.type == "cuda"),
    )


def check_stream(config: TrainConfig, *, several: bool, workers: int, copies: bool) -> None:
    """Raise UsageError for what webdataset's stream cannot do.

    Parameters
    ----------
    config
        The configuration.
    several
        Whether several processes train.
    workers
        Processes that read.
    copies
        Whether shards are read through a local copy.
    """
    if config.reader != "webdataset":
        return
    if several or workers:
        what = "several processes" if several else f"--workers {workers}"
        raise UsageError(f"--reader webdataset: streams in one thread of one process, not with {what}.")
    if copies:
        raise UsageError("--reader webdataset: streams tars from where they are. Leave out --local-copy.")


def rows_of(config: TrainConfig, cache: Cache, known: RunRecord | None) -> TrainingRows:
    """Find the rows and builds of a training; one that resumes (``known``) keeps its builds. Raises UserError."""
    builds = {source.dataset: source.build for source in known.trained_on} if known else {}
    beside_test = known is not None and known.version < RECORD_VERSION
    purpose = f"method {config.definition.name}"
    return find_rows(config, cache, config.training_features, builds, purpose, val_beside_test=beside_test)


def open_rows(config: TrainConfig, cache: Cache, rows: TrainingRows) -> tuple[FeatureDataset, FeatureDataset]:
    """Open the features of the training and of the validation rows. Raises UserError if a row lacks one, or a shard is no tar."""
    method, build = config.definition, rows.builds[0]
    purpose, features = f"method {method.name}", config.training_features
    stores = {name: cache.open_feature(build.features[name].folder) for name in features}
    geometry = {name: store.geometry for name, store in stores.items()}
    check_scales(method, geometry)
    check_augmentations(method, geometry, {name: store.views for name, store in stores.items()})
    val = FeatureDataset(cache, build, rows.val, method.inputs, split=rows.val_split, purpose=purpose, mirrored=False)
    opened: Callable[..., FeatureDataset] = FeatureDataset
    if config.reader == "webdataset":
        opened = partial(StreamedDataset, export=Path(config.export) if config.export else None)
    train = opened(cache, build, rows.train, features, split="train", purpose=purpose, mirrored=method.flips)
    return train, val


def spec_of_teacher(cache: Cache, build: BuildRecord) -> Mapping[str, Any] | None:
    """Return the spec of a build's cached teacher maps, which DistilDIRE learns from; None if it has none."""
    maps = build.features.get(str(DISTILDIRE.target))
    return cache.open_feature(maps.folder).spec if maps else None


def steps_of_epoch(config: TrainConfig, train: int, val: int, processes: int) -> int:
    """Return the steps of an epoch. Raises UserError if these numbers of rows cannot be used by so many processes."""
    sizes = batch_sizes(train, config.batch_size)
    if min(sizes, default=0) < processes:
        raise UserError(
            f"--batch-size {config.batch_size}: the smallest batch of an epoch of {train:,} samples has {min(sizes)}, "
            f"too few for {processes} processes. Choose another batch size."
        )
    if config.definition.cutmix and processes > 1:
        raise UsageError(
            f"preset {config.preset}: mixes images within a whole batch, but {processes} processes share it. "
            "Use one process."
        )
    follows = config.schedule in PLATEAUS
    needs = f"--schedule {config.schedule}" if follows else "--stop-after" if config.stop_after else None
    if needs and not val:
        raise UsageError(f"{needs}: needs validation rows, and none are held out. Raise --val-fraction.")
    return len(sizes)


def _plain_rows(train: FeatureDataset, method: Method, size: int, batch_size: int) -> Labelled:
    """Read the training rows once, as a test of resized images sees them."""
    for batch in train.in_order(batch_size):
        inputs = {name: batch.features[name] for name in method.inputs}
        yield test_input(inputs, method, size, "resize", train.geometry), batch.label


def check_smallest_batch(config: TrainConfig, train: int, shapes: Shapes) -> None:
    """Raise UserError if a batch has so few values that batch normalisation has no variance to divide by."""
    if min(batch_sizes(train, config.batch_size), default=0) != 1:
        return
    with torch.device("meta"):
        student = config.definition.student(config.definition, shapes, config.backbone, None).train()
        try:
            student({name: torch.zeros(1, *shape) for name, shape in shapes.items()})
        except ValueError as error:
            size = next(iter(shapes.values()))[-1]
            where = f"--batch-size {config.batch_size}" if config.batch_size == 1 else f"{train:,} sample"
            raise UserError(
                f"{where}: a batch of one image of {size} pixels leaves batch normalisation a single value per channel in "
                f"{config.backbone}, which has no variance. Use batches of at least two images, or larger images."
            ) from error


def side_of_input(config: TrainConfig, image: int, teacher: int | None) -> int:
    """Return the requested side, or the method's. Raises UserError unless the student sees the pixels of its teacher."""
    side = config.train_size or config.definition.side(image, teacher)
    if (config.online or config.target) and side != teacher:
        raise UserError(
            f"train_size {side}: the teacher's input has {teacher} pixels, and the student's must have the same. "
            f"Omit it, or build `teacher` with --train-size {side}."
        )
    return side


def _balance(label: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Return real / generated images: with this weight, both classes count the same."""
    generated = int(label.sum())
    return (len(label) - generated) / generated


def _datasets(rows: TrainingRows) -> dict[str, object]:
    first, *others = (TrainedOn(dataset=b.dataset, revision=b.revision, build=b.id) for b in rows.builds)
    return {**first.model_dump(), "others": tuple(others)}


def _on_device(teacher: OnlineTeacher | None, device: torch.device) -> OnlineTeacher | None:
    if teacher is None:
        return None
    return replace(teacher, model=move_network(teacher.model, device))


def make_optimiser(student: Student, config: TrainConfig, device: torch.device) -> Adam:
    """Return the optimiser of a student on its device.

    On CUDA the update is one kernel. It reads the loss scale's verdict of a step on the device, where the other ways ask
    the host and so wait for the step.
    """
    return Adam(
        student.parameters(),
        lr=config.lr,
        betas=(config.beta1, 0.999),
        weight_decay=config.weight_decay,
        fused=True if device.type == "cuda" else None,
    )


def run_to_start_from(config: TrainConfig) -> BestStudent:
    """Return the best student of ``config.init_from``.

    Raises
    ------
    UserError
        The run has no student, another network, or another scaling of its input.
    """
    source = RunFolder(Path(str(config.init_from))).load_student()
    record = source.record
    option = f"--init-from {config.init_from}"
    if record.config.backbone != config.backbone:
        raise UserError(
            f"{option}: its student is {record.config.backbone}, not {config.backbone}. Use the same --backbone."
        )
    if record.method.scales != config.definition.scales:
        theirs, ours = (
            ", ".join(f"{name} {scale}" for name, scale in method.scales.items())
            for method in (record.method, config.definition)
        )
        raise UserError(
            f"{option}: its student's input is {theirs}, this one's {ours}. Use the same --method and --preset."
        )
    return source


def start_from_run(student: Student, config: TrainConfig) -> dict[str, str]:
    """Copy the weights of the best student of ``config.init_from``, and return which those are.

    The projection to the teacher is copied if both have the same; the optimiser starts from scratch, with the
    configured learning rate.

    Raises
    ------
    UserError
        As :func:`run_to_start_from`.
    """
    source = run_to_start_from(config)
    own = student.state_dict()
    copied = {
        name: value
        for name, value in source.student.state_dict().items()
        if not name.startswith("projection.") or (name in own and own[name].shape == value.shape)
    }
    student.load_state_dict({**own, **copied})
    return {"run": source.record.run, "epoch": str(source.epoch), "sha256": source.sha256}
