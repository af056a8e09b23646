"""Train a student from cached features. The loop itself is ``_train_epoch``; everything else serves it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...cache.local_copy.reader import LocalCopy
from ...cache.store import Cache
from ...errors import ReadOnlyError, StoppedError, UserError
from ...models.device import STUDENT_PRECISION, arithmetic
from ...models.transfer import HostCopy, one_behind
from ...progress import Progress, Silent
from ...signals import StopRequest, interruptible
from ...storage import AnyPath, path_exists
from ..config import TrainConfig
from ..data.dataset import Batch, FeatureDataset
from ..data.readers import ReaderPool
from ..loss import losses
from ..runs.checkpoint import ValidationScores, delete_old, old_files, read_progress
from ..runs.folder import RunFolder, RunRecord
from ..runs.forms import EpochMetrics, State, read_saved
from ..runs.lock import RunLock
from .distributed import ProcessGroup, join_process_group
from .logger import MetricsLogger
from .lr_schedule import LrSchedule, rank
from .resume import resume, save
from .session import Session, check_stream, open_session
from .validate import binary_cross_entropy, clean_logits, score_rows, validate, validation_scores

_Values = tuple[float, float, float]


def run_training(
    config: TrainConfig,
    cache_root: AnyPath | str,
    run: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    local_copy: LocalCopy | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Train one student.

    Ctrl-C or SIGTERM ends the current step and saves the state. Under ``torchrun`` each process trains on its share of
    every batch.

    Parameters
    ----------
    config
        The configuration.
    cache_root
        The cache.
    run
        Folder for configuration, checkpoints, ``metrics.jsonl`` and TensorBoard logs.
    resume
        Continue a stopped training from its newest state as if it had never stopped (bit for bit on a CPU). A training
        that does not exist is started.
    device
        ``auto``, ``cpu`` or ``cuda:N``.
    workers
        Number of reader processes; 0 for a thread.
    local_copy
        Read through a local copy of the cache's shards.
    progress
        Receives samples and messages.

    Returns
    -------
    dict
        Summary of the training, ready for JSON; empty in all but the first process.

    Raises
    ------
    UserError
        The run folder holds another training or is in use by another command, a feature is missing, the loss diverged,
        or the training was stopped. What was saved before stays.
    """
    with ReaderPool(workers) as readers, join_process_group(device) as ranks:
        return train_run(
            config, cache_root, run, ranks, readers, resume=resume, local_copy=local_copy, progress=progress
        )


def train_run(
    config: TrainConfig,
    cache_root: AnyPath | str,
    run: Path,
    ranks: ProcessGroup,
    readers: ReaderPool,
    *,
    resume: bool,
    local_copy: LocalCopy | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Train one student as `run_training` does, with processes and readers that several runs may share.

    Parameters
    ----------
    config, cache_root, run, resume, local_copy, progress
        See `run_training`.
    ranks
        The processes of the training; each of them must call this.
    readers
        The readers.

    Returns
    -------
    dict
        Summary of the training, ready for JSON; empty in all but the first process.

    Raises
    ------
    UserError
        See `run_training`.
    """
    folder = RunFolder(run)
    try:
        return _train_run(config, cache_root, folder, ranks, readers, resume, local_copy, progress or Silent())
    except KeyboardInterrupt:
        raise StoppedError(_interrupted(folder)) from None


def _train_run(
    config: TrainConfig,
    cache_root: AnyPath | str,
    folder: RunFolder,
    ranks: ProcessGroup,
    readers: ReaderPool,
    resume: bool,
    local_copy: LocalCopy | None,
    progress: Progress,
) -> dict[str, object]:
    session: Session | None = None
    with RunLock(folder.folder) as lock, ExitStack() as held:
        with ranks.first_process_first():
            # an existing run is locked before it is read, a new one only once its configuration proves usable
            if ranks.first and path_exists(folder.config) and not is_over(config, folder):
                lock.take()
            known = folder.admit(config, resume=resume or not ranks.first)
            if known is not None and is_over(config, folder):
                if ranks.first:
                    _sweep(folder, lock)
            else:
                copies = local_copy is not None
                check_stream(config, several=ranks.several, workers=readers.workers, copies=copies)
                cache = Cache.open(cache_root, local_copy)
                session = open_session(config, cache, folder, known, ranks, readers, held)
                if ranks.first:
                    lock.take()
                    _store_record(session.record, cache, folder, known, progress)
        if session is not None:
            with arithmetic(STUDENT_PRECISION, ranks.device):
                _train(session, folder, progress)
        return _result(folder) if ranks.first else {}


def _sweep(folder: RunFolder, lock: RunLock) -> None:
    """Delete what a training that was killed right after its last commit has left."""
    saved = read_saved(folder.checkpoints)
    if saved is not None and old_files(folder.checkpoints, saved):
        lock.take()
        delete_old(folder.checkpoints, saved)


def _what_is_learned(session: Session) -> str:
    """Say what a training learns from, and what validates it, with the images of each class."""
    validated = "nothing, since no image is held out"
    if session.val is not None:
        validated = f"{_classes(session.val)}, {session.record.validation}"
    return f"Training on {_classes(session.train)}. Validation on {validated}."


def _classes(rows: FeatureDataset) -> str:
    fakes = int((rows.label == 1).sum())
    return f"{len(rows):,} images ({len(rows) - fakes:,} real, {fakes:,} generated)"


def _interrupted(folder: RunFolder) -> str:
    """Return what an interrupted training has kept, and how to go on."""
    state = read_progress(folder.checkpoints)
    if state is None:
        return f"{folder.folder}: stopped before the first step, so nothing is lost. Run the command again."
    where = f"the state after step {state.step} (epoch {state.epoch + (state.batch > 0)}) is kept"
    return f"{folder.folder}: stopped; {where}. Continue with --resume."


def _store_record(
    record: RunRecord, cache: Cache, folder: RunFolder, known: RunRecord | None, progress: Progress
) -> None:
    """Store the record of a new or resumed run, and its references to the builds in the cache."""
    if known is None:
        folder.create(record)
    else:
        folder.replace(record)
    for number, source in enumerate(record.trained_on):
        name = record.run if number == 0 else f"{record.run}.{number}"
        try:
            cache.builds().add_ref(name, source.build, folder.folder.resolve())
        except ReadOnlyError:  # such a cache can be used all the same
            progress.say(f"{cache.root}: cannot be written, so `cache gc` there does not know that this run uses it.")


def is_over(config: TrainConfig, folder: RunFolder) -> bool:
    """Return whether a training has ended, by its number of epochs or by its schedule."""
    state = read_progress(folder.checkpoints)
    return state is not None and LrSchedule(config, 1).ended(state) is not None


def _train(session: Session, folder: RunFolder, progress: Progress) -> None:
    state = resume(session, folder, progress)
    if session.ranks.first and state.step == 0:
        progress.say(_what_is_learned(session))
    model = session.ranks.wrap(session.student)
    samples = len(session.train)
    total, done = samples * session.config.epochs, samples * state.epoch + state.samples
    with (
        MetricsLogger(folder, progress, state, total, done, enabled=session.ranks.first) as logger,
        interruptible() as stopped,
    ):
        while not session.schedule.ended(state):
            if session.config.epochs:
                _train_epoch(session, model, folder, state, logger, stopped)
            else:
                _score_rows(session, state)
            _finish_epoch(session, folder, state, logger)


@dataclass(frozen=True)
class _QueuedStep:
    """A step that is queued on the device.

    Attributes
    ----------
    number
        Its number, from 1.
    batch, rate
        What it learns from, and at which rate.
    values
        Total, bce and kd, each summed over the samples of the batch, and how many processes were asked to stop; (4,).
    """

    number: int
    batch: Batch
    rate: float
    values: HostCopy


def _train_epoch(
    session: Session,
    model: nn.Module,
    folder: RunFolder,
    state: State,
    logger: MetricsLogger,
    stopped: StopRequest,
) -> None:
    """Train on the remaining batches of an epoch. On CUDA a step is queued before the losses of the last one are read."""
    began = time.perf_counter() - state.seconds
    session.student.train()
    queue = _StepQueue(session, model, state, stopped)
    for step in one_behind(queue, session.ranks.device):
        values, stop = _read(step, session, folder, state)
        _count(state, values, step.batch.whole, time.perf_counter() - began)
        logger.step(state, step.number, values, step.batch.whole, step.rate)
        queue.ended |= stop
    if queue.ended:
        state.order = session.order(state)
        save(session, folder, state)
        raise StoppedError(
            f"{folder.folder}: stopped in epoch {state.epoch + 1} and saved. Continue with --resume.",
            stopped.exit_code,
        )


def _score_rows(session: Session, state: State) -> None:
    """Count the loss of the training rows of a student that nothing teaches: its first and only epoch, without a step."""
    began = time.perf_counter()
    rows = session.train
    logits = score_rows(session, rows)
    bce = binary_cross_entropy(logits, rows.label)
    _count(state, (bce, bce, 0.0), len(rows), time.perf_counter() - began)


class _StepQueue:
    """Queues the remaining steps of an epoch and counts them in ``state``; none after ``ended`` is set."""

    def __init__(self, session: Session, model: nn.Module, state: State, stopped: StopRequest) -> None:
        self._session, self._model, self._state, self._stopped = session, model, state, stopped
        self.ended = False

    def __iter__(self) -> Iterator[_QueuedStep]:
        """Queue step after step. Nothing here asks the device for a value."""
        for batch in self._session.batches(self._state):
            yield self._queue(batch)
            if self.ended:
                return

    def _queue(self, batch: Batch) -> _QueuedStep:
        session, config = self._session, self._session.config
        student, ranks, precision = session.student, session.ranks, session.precision
        rate = session.set_rate(self._state)
        parts = session.parts(session.prepare(batch, self._state.epoch + 1), batch.whole)
        part_losses = []
        for part in parts:
            with ranks.part(self._model, last=part is parts[-1]):
                with precision.forward():
                    logit, features = self._model(part.x)
                    mapped = student.projected(features)
                loss = losses(logit, part.label, mapped, part.taught, config.distillation, session.record.pos_weight)
                precision.backward(loss.total * ranks.share_of_loss(len(part.label), batch.whole))
            part_losses.append(torch.stack(loss).detach() * len(part.label))
        here = torch.stack(part_losses).sum(dim=0)
        stop = here.new_full((1,), float(self._stopped.is_set()))
        values = HostCopy({"values": ranks.sum(torch.cat([here, stop]))})
        precision.step(session.optimiser, student, config.clip_grad)
        self._state.step += 1
        self._state.batch += 1
        return _QueuedStep(self._state.step, batch, rate, values)


def _finish_epoch(session: Session, folder: RunFolder, state: State, logger: MetricsLogger) -> None:
    """Validate, log the epoch, and save the state, with the best student so far."""
    began = time.perf_counter()
    if not all(bool(torch.isfinite(weight).all()) for weight in session.student.state_dict().values()):
        _check_finite(math.nan, "student's weight", folder, state, state.step + 1)
    total, bce, kd = (value / state.samples for value in state.sums)
    line: EpochMetrics = {"epoch": state.epoch + 1, "step": state.step, "loss": total, "bce": bce, "kd": kd}
    validated, logits = validate(session, state.epoch + 1)
    line |= validated
    _check_finite(line["val_bce"] or 0.0, "validation loss", folder, state, state.step + 1)
    line |= {"lr": session.optimiser.param_groups[0]["lr"], "seconds": state.seconds + time.perf_counter() - began}
    state.epoch += 1
    state.batch, state.samples, state.sums, state.seconds, state.order = 0, 0, (0.0, 0.0, 0.0), 0.0, ""
    state.history.append(line)
    scores: ValidationScores | None = None
    if session.schedule.is_best(state, line):
        state.best_epoch, state.best_rank = state.epoch, rank(line)
        scores = validation_scores(session, clean_logits(session, logits))
    session.schedule.after_epoch(state)
    logger.epoch(state, line)  # before the state, by which a resumed training and a report know the lines that count
    save(session, folder, state, scores)


def _read(step: _QueuedStep, session: Session, folder: RunFolder, state: State) -> tuple[_Values, bool]:
    """Wait for a step's total, bce and kd, and whether any process was asked to stop.

    Raises
    ------
    UserError
        The loss is no finite number. The weights may have taken it in by then, but nothing of them is saved.
    """
    total, bce, kd, stop = step.values.arrays()["values"].tolist()
    if not math.isfinite(total):
        _refuse_features(session.train.not_finite(step.batch), folder)
    _check_finite(total, "loss", folder, state, step.number)
    whole = step.batch.whole
    return (total / whole, bce / whole, kd / whole), stop > 0


def _count(state: State, values: _Values, samples: int, seconds: float) -> None:
    if state.first_loss is None:
        state.first_loss = values[0]
    state.samples += samples
    total, bce, kd = (done + value * samples for done, value in zip(state.sums, values, strict=True))
    state.sums = (total, bce, kd)
    state.seconds = seconds


def _check_finite(value: float, what: str, folder: RunFolder, state: State, step: int) -> None:
    """Raise UserError if a value is NaN or infinite, before anything that was computed with it is saved."""
    if math.isfinite(value):
        return
    kept = f"The checkpoint of epoch {state.epoch} is kept" if state.epoch else "No checkpoint was written yet"
    raise UserError(
        f"{folder.folder}: the {what} is no longer a finite number in epoch {state.epoch + 1}, step {step}. "
        f"{kept}; train with a lower --lr into another folder."
    )


def _refuse_features(where: str | None, folder: RunFolder) -> None:
    """Raise UserError if the cached features, not the learning rate, are to blame for a loss that is no number."""
    if where is not None:
        raise UserError(
            f"{folder.folder}: {where} has values that are no finite numbers. Run `distil-cache cache verify` on the "
            "cache; if it finds no damage, the feature was computed so: build it again with --precision fp32."
        )


def _result(folder: RunFolder) -> dict[str, object]:
    """Summarise a run.

    ``first_loss`` is that of the first batch, before any step; ``last_loss`` is the mean of the last epoch; ``val`` is
    that of the best epoch. For ``restarted_epochs`` and ``unchecked_epochs`` see ``checkpoint.State``.
    """
    record, state = folder.read(), read_progress(folder.checkpoints) or State()
    best = state.history[state.best_epoch - 1]
    return {
        "run": str(folder.folder),
        "build": record.build,
        "samples": record.samples,
        "validation": record.validation,
        "epochs": state.epoch,
        "steps": state.step,
        "ended": LrSchedule(record.config, 1).ended(state),
        "restarted_epochs": state.restarted,
        "unchecked_epochs": state.unchecked,
        "best_epoch": state.best_epoch,
        "first_loss": state.first_loss,
        "last_loss": state.history[-1]["loss"],
        "val": {name: best[f"val_{name}"] for name in ("ap", "acc", "bce")},
        "seconds": sum(float(line["seconds"] or 0.0) for line in state.history),
    }
