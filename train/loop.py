"""Training a student from cached features. The loop itself is ``_train_epoch``; everything else serves it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter

from ..cache.store import Cache
from ..errors import UserError
from ..models.device import choose_device
from ..progress import Progress, Silent
from .augment import train_input
from .checkpoint import BEST, State, load_state, replace_text, save_state, save_weights
from .config import TrainConfig
from .loss import Losses, losses
from .metrics import accuracy, average_precision
from .predict import predict, probability
from .run_folder import RunFolder, append_line
from .session import Session, open_session

Metrics = dict[str, float | int | None]


STAGE = "training"


def run_training(
    config: TrainConfig,
    cache_root: Path,
    run: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, object]:
    """Train one student and return what came of it, ready for JSON.

    ``run`` gets the configuration, checkpoints, ``metrics.jsonl`` and TensorBoard logs. With ``resume`` a training that
    was stopped goes on from its newest state as if it had never stopped (to the bit on a CPU); one that is not there
    begins. ``device`` is auto, cpu or cuda:N.
    Raises UserError for a run folder that holds another training, features that are not there, and a diverged loss;
    what was saved before stays. Ctrl-C ends the step at hand, saves, and raises UserError.
    """
    folder = RunFolder(run)
    known = folder.admit(config, resume=resume)
    cache = Cache.open(cache_root)
    session = open_session(config, cache, folder, known, choose_device(device))
    folder.write(session.record)
    cache.builds().add_ref(session.record.run, session.record.build, run.resolve())
    state = load_state(folder.checkpoints, session.student, session.optimiser) or State()
    replace_text(folder.metrics, "")
    for line in state.history:
        append_line(folder.metrics, line)
    if state.epoch < config.epochs:
        _train(session, folder, state, progress or Silent())
    return _result(session, folder, state)


def _train(session: Session, folder: RunFolder, state: State, progress: Progress) -> None:
    samples = len(session.train)
    progress.start(STAGE, samples * session.config.epochs)
    progress.advance(STAGE, samples * state.epoch + state.samples)
    with (
        closing(SummaryWriter(str(folder.tensorboard), purge_step=state.step + 1)) as board,
        _interruptible() as stopped,
    ):
        while state.epoch < session.config.epochs:
            _train_epoch(session, folder, state, progress, board, stopped)
            _finish_epoch(session, folder, state, board)


def _train_epoch(
    session: Session,
    folder: RunFolder,
    state: State,
    progress: Progress,
    board: SummaryWriter,
    stopped: threading.Event,
) -> None:
    config, student, optimiser = session.config, session.student, session.optimiser
    began = time.perf_counter() - state.seconds
    student.train()
    for batch in session.train.epoch(config.seed, state.epoch + 1, config.batch_size, skip=state.batch):
        batch = batch.to(session.device)
        x = train_input(batch.features, batch.flip, session.method, session.size)
        logit, features = student(x)
        mapped, teacher = student.projection(features), batch.features.get("teacher")
        loss = losses(logit, batch.label, mapped, teacher, config.distillation)
        values = _finite(loss, folder, state)
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

        _count(state, values, len(batch.rows))
        state.seconds = time.perf_counter() - began
        board.add_scalar("batch/loss", values[0], state.step)
        progress.advance(STAGE, len(batch.rows))
        progress.note(STAGE, "epoch {}: loss {:.4f} bce {:.4f} kd {:.4f}".format(state.epoch + 1, *values))
        if stopped.is_set():
            save_state(folder.checkpoints, student, optimiser, state)
            raise UserError(f"{folder.folder}: stopped in epoch {state.epoch + 1} and saved. Go on with --resume.")


def _finish_epoch(session: Session, folder: RunFolder, state: State, board: SummaryWriter) -> None:
    """Validate, keep the checkpoint if it is the best so far, save the state and write the epoch's line."""
    began = time.perf_counter()
    _check_weights(session, folder, state)
    total, bce, kd = (value / state.samples for value in state.sums)
    validation = _validate(session, folder, state)
    line: Metrics = {"epoch": state.epoch + 1, "step": state.step, "loss": total, "bce": bce, "kd": kd, **validation}
    line |= {"lr": session.optimiser.param_groups[0]["lr"], "seconds": state.seconds + time.perf_counter() - began}
    state.epoch += 1
    state.batch, state.samples, state.sums, state.seconds = 0, 0, (0.0, 0.0, 0.0), 0.0
    state.history.append(line)
    rank = _rank(line)
    if state.best_rank is None or rank > state.best_rank:
        state.best_epoch, state.best_rank = state.epoch, rank
        folder.checkpoints.mkdir(exist_ok=True)
        save_weights(folder.checkpoints / BEST, session.student, {"epoch": str(state.epoch), "run": session.record.run})
    save_state(folder.checkpoints, session.student, session.optimiser, state)
    append_line(folder.metrics, line)
    for name, value in line.items():
        if value is not None and name not in ("epoch", "step"):
            board.add_scalar(f"epoch/{name}", value, state.step)


def _rank(line: Metrics) -> tuple[float, float]:
    """What the best epoch is chosen by: validation AP, then low BCE; the last epoch where there is no validation."""
    if line["val_bce"] is None:
        return float(line["epoch"] or 0), 0.0
    return -1.0 if line["val_ap"] is None else line["val_ap"], -line["val_bce"]


def _validate(session: Session, folder: RunFolder, state: State) -> Metrics:
    """BCE, AP and accuracy of the validation part under the paper's test transform; None without such a part."""
    if session.val is None:
        return {"val_bce": None, "val_ap": None, "val_acc": None}
    logits = predict(
        session.student,
        session.val,
        session.method,
        size=session.size,
        transform="crop",
        batch_size=session.config.batch_size,
        device=session.device,
    )
    labels = session.val.label
    bce = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels).float()).item()
    if not math.isfinite(bce):
        raise _diverged("validation loss", folder, state)
    scores = probability(logits)
    return {"val_bce": bce, "val_ap": average_precision(labels, scores), "val_acc": accuracy(labels, scores)}


def _count(state: State, values: tuple[float, float, float], samples: int) -> None:
    if state.first_loss is None:
        state.first_loss = values[0]
    state.step += 1
    state.batch += 1
    state.samples += samples
    total, bce, kd = (done + value * samples for done, value in zip(state.sums, values, strict=True))
    state.sums = (total, bce, kd)


def _finite(loss: Losses, folder: RunFolder, state: State) -> tuple[float, float, float]:
    """The values of a loss; UserError if one is NaN or infinite, before it reaches the weights."""
    total, bce, kd = torch.stack([loss.total.detach(), loss.bce.detach(), loss.kd.detach()]).tolist()
    if not math.isfinite(total):
        raise _diverged("loss", folder, state)
    return total, bce, kd


def _check_weights(session: Session, folder: RunFolder, state: State) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in session.student.state_dict().values()):
        raise _diverged("weights", folder, state)


def _diverged(what: str, folder: RunFolder, state: State) -> UserError:
    kept = f"The checkpoint of epoch {state.epoch} is kept" if state.epoch else "No checkpoint was written yet"
    return UserError(
        f"{folder.folder}: the {what} is no longer a finite number in epoch {state.epoch + 1}, step {state.step + 1}. "
        f"{kept}; train with a lower --lr into another folder."
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that a step is never torn; the second one interrupts as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def request(_number: int, _frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _result(session: Session, folder: RunFolder, state: State) -> dict[str, object]:
    """first_loss: the first batch's, before any step; last_loss: the last epoch's mean; val: the best epoch's."""
    best = state.history[state.best_epoch - 1]
    return {
        "run": str(folder.folder),
        "build": session.record.build,
        "samples": session.record.samples,
        "epochs": state.epoch,
        "steps": state.step,
        "best_epoch": state.best_epoch,
        "first_loss": state.first_loss,
        "last_loss": state.history[-1]["loss"],
        "val": {name: best[f"val_{name}"] for name in ("ap", "acc", "bce")},
        "seconds": sum(float(line["seconds"] or 0.0) for line in state.history),
    }
