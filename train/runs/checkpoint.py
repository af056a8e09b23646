"""Checkpoints: safetensors and JSON, never a pickle, and always complete.

``last.json`` is the one commit of a run (`forms.Saved`): it names the files of the newest state and of the best student,
with their digests, and holds everything else that a training needs to resume exactly. All that it names is on the disk
under unique names before it is replaced, so a kill at any moment leaves the state before or the state after, each with
the best student, threshold and history of its own moment. A state in the middle of an epoch also holds the one at the
epoch's beginning, so that the epoch can be restarted if it cannot be resumed (``resume``).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.optim import Optimizer

from ...choices import TestTransform
from ...errors import IntegrityError, UserError
from ...metrics.calibration import calibrate
from ...models.weights import file_digest
from ...storage.atomic import cannot_write, fsync_folder, read_file, temporary_file
from .forms import BEST, LAST, STATE_FILE, Best, Saved, State, StoredFile, own_file, read_saved

_DIGEST = "tensors_sha256"
_LARGEST_HEADER = 64 * 2**20
_LARGEST_SCORES = 4 * 2**30
_AGAIN = "train again into a new folder."


@dataclass(frozen=True)
class StudentFacts:
    """What the file of a student says of itself: the run, the number of finished epochs, and the file's digest."""

    run: str
    epoch: int
    sha256: str


@dataclass(frozen=True)
class ValidationScores:
    """The validation scores of a student: ``table`` has a row per image, ``split`` says in words which images these are,
    ``transform`` what was done to them.
    """

    table: pa.Table
    split: str
    transform: TestTransform


def save_weights(path: Path, student: torch.nn.Module, facts: Mapping[str, str]) -> None:
    """Write a student's tensors to a safetensors file, atomically.

    ``facts`` are its metadata. A digest of the tensors is added to them, so that a reader notices damage.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(student)
    metadata = {**facts, _DIGEST: tensor_digest(tensors)}
    replace_file(path, lambda target: save_tensors(tensors, target, metadata))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; a full disk is an OSError, as everywhere, and not an error of the library's own."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"(?:os error|Os { code:) (\d+)", str(error))  # the second is of safetensors before 0.5
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_weights(path: Path, student: torch.nn.Module) -> StudentFacts:
    """Load a file of `save_weights` into a student of the same shape.

    The file is read once, so weights, metadata and digest belong together.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    UserError
        The file is damaged or belongs to another student.
    """
    data = _read(path, _largest(student))
    try:
        tensors = load(data)
        student.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be loaded into this student ({_first_line(error)}). Train again.") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts: dict[str, str] = header.get("__metadata__") or {}
    if _DIGEST in facts and facts[_DIGEST] != tensor_digest(tensors):
        raise UserError(
            f"{path}: is damaged (its tensors are not those that were written). Copy it again from where it is whole, "
            "or train again."
        )
    epoch = facts.get("epoch", "0")
    if not re.fullmatch("[0-9]{1,9}", epoch):
        raise UserError(f"{path}: is of an epoch {epoch[:20]!r}, which is no number. Train again.")
    return StudentFacts(facts.get("run", ""), int(epoch), hashlib.sha256(data).hexdigest())


def _largest(student: torch.nn.Module) -> int:
    """Return more than the size of a student's file, and of its optimiser's with two moments for each weight."""
    weights: list[Tensor] = list(student.state_dict().values())
    return 4 * sum(tensor.numel() * tensor.element_size() for tensor in weights) + _LARGEST_HEADER


def _read(path: Path, limit: int) -> bytes:
    """Return the content of a file of a run.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    UserError
        It is not a regular file of this size, or it is a link out of its folder.
    """
    try:
        return read_file(own_file(path), limit)
    except IntegrityError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise UserError(f"{error} Copy it again from where it is whole, or train again.") from error


def _tensors(student: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over name, type, shape and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(
    folder: Path,
    student: torch.nn.Module,
    optimiser: Optimizer,
    progress: State,
    *,
    run: str,
    random_state: Mapping[str, Tensor],
    scaler: Mapping[str, Any],
    scores: ValidationScores | None = None,
) -> None:
    """Save the present state as the newest one of a run; files that it does not need are deleted.

    If the epoch that has just finished is the best so far, its student becomes the best one with the same commit. In the
    middle of an epoch, the state at its beginning is kept.

    Parameters
    ----------
    folder
        The folder of checkpoints.
    student, optimiser, progress
        The state.
    run
        The run's id.
    random_state
        States of torch's generators, by names that begin with ``random.``.
    scaler
        State of the loss scale.
    scores
        Validation scores of a student that has just become the best one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    newest = read_saved(folder)
    stem = f"step-{progress.step:08d}-{secrets.token_hex(4)}"  # unique: what the newest record names is never replaced
    weights, optimiser_file = f"{stem}.safetensors", f"{stem}.optim.safetensors"
    state = optimiser.state_dict()
    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, slots in state["state"].items()
        for name, value in slots.items()
    }
    save_weights(folder / weights, student, {"epoch": str(progress.epoch), "run": run, "step": str(progress.step)})
    replace_file(folder / optimiser_file, lambda target: save_tensors({**tensors, **random_state}, target))
    digests = {name: file_digest(folder / name) for name in (weights, optimiser_file)}
    best = newest.best if newest else None
    if progress.just_best:
        best = _new_best(folder, StoredFile(name=weights, sha256=digests[weights]), progress.epoch, scores)
    saved = Saved(
        weights=weights,
        optimiser=optimiser_file,
        sha256=digests,
        param_groups=state["param_groups"],
        random=_python_random_state(),
        scaler=dict(scaler),
        progress=progress,
        best=best,
        epoch_start=_epoch_start(newest, progress),
    )
    _make_newest(folder, saved)


def _new_best(folder: Path, weights: StoredFile, epoch: int, scores: ValidationScores | None) -> Best:
    """Write the validation scores of the new best student, and choose its threshold by them."""
    if scores is None:
        return Best(epoch=epoch, weights=weights)
    name = f"{weights.name.removesuffix('.safetensors')}.parquet"
    replace_file(folder / name, lambda target: pq.write_table(scores.table, target, compression="zstd"))
    calibration = calibrate(
        scores.table["label"].to_numpy(),
        scores.table["score"].to_numpy(),
        split=scores.split,
        transform=scores.transform,
        checkpoint_sha256=weights.sha256,
    )
    stored = StoredFile(name=name, sha256=file_digest(folder / name))
    return Best(epoch=epoch, weights=weights, scores=stored, calibration=calibration)


def restart_epoch(folder: Path) -> None:
    """Make the state at the beginning of the unfinished epoch the newest one, and record the restart.

    Does nothing if that state is unknown, because the epoch was started by a version that did not keep it.
    """
    saved = read_saved(folder)
    start = saved.epoch_start if saved else None
    if saved is None or start is None:
        return
    restarted = {*saved.progress.restarted, start.progress.epoch + 1}
    progress = start.progress.model_copy(update={"restarted": sorted(restarted), "unchecked": saved.progress.unchecked})
    _make_newest(folder, start.model_copy(update={"progress": progress}))


def _epoch_start(newest: Saved | None, progress: State) -> Saved | None:
    """Return the state at the beginning of the current epoch, unless ``progress`` is that state itself."""
    if not progress.batch or newest is None:
        return None
    return newest.epoch_start if newest.progress.batch else newest


def _make_newest(folder: Path, saved: Saved) -> None:
    replace_text(folder / LAST, saved.model_dump_json())
    delete_old(folder, saved)


def old_files(folder: Path, saved: Saved) -> list[Path]:
    """Return the files of earlier states and students that the newest record does not need."""
    kept = saved.files | ({BEST} if saved.best is None and saved.progress.best_epoch else set())
    named = [*folder.glob("last-*"), *folder.glob("step-*"), *folder.glob(BEST)]
    return [path for path in named if path.name not in kept and (path.name == BEST or STATE_FILE.fullmatch(path.name))]


def delete_old(folder: Path, saved: Saved) -> None:
    """Delete `old_files`, as far as they can be; only the holder of the run's lock may call this."""
    for path in old_files(folder, saved):
        with suppress(OSError):
            path.unlink()


@dataclass(frozen=True)
class RestoredState:
    """The parts of a saved state that `load_state` does not restore itself."""

    progress: State
    random_state: dict[str, Tensor]
    scaler: dict[str, Any]


def read_progress(folder: Path) -> State | None:
    """Return where the newest state of a run stands, without loading it; None if there is no state."""
    saved = read_saved(folder)
    return saved.progress if saved else None


def load_state(folder: Path, student: torch.nn.Module, optimiser: Optimizer) -> RestoredState | None:
    """Restore student, optimiser and Python's and numpy's generators from the newest state; None if there is no state.

    Raises
    ------
    UserError
        The state or the best student is damaged.
    """
    saved = read_saved(folder)
    if saved is None:
        return None
    if saved.best is not None:
        read_part(folder / saved.best.weights.name, _largest(student), saved.best.weights.sha256)
        if saved.best.scores is not None:
            read_part(folder / saved.best.scores.name, _LARGEST_SCORES, saved.best.scores.sha256)
    data = read_part(folder / saved.optimiser, _largest(student), saved.sha256.get(saved.optimiser))
    weights = read_part(folder / saved.weights, _largest(student), saved.sha256.get(saved.weights))
    try:
        tensors = load(data)
        student.load_state_dict(load(weights))
        _restore_optimiser(optimiser, tensors, saved)
        _set_python_random_state(saved.random)
    except Exception as error:  # what a record that somebody else wrote may lead to
        raise damaged(folder, error) from error
    states = {name: tensor for name, tensor in tensors.items() if name.startswith("random.")}
    return RestoredState(saved.progress, states, saved.scaler)


def _restore_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor], saved: Saved) -> None:
    """Restore moments and learning rate; everything else of an optimiser follows from the configuration."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, slot = name.partition(".")
        if number.isdigit():
            slots.setdefault(int(number), {})[slot] = tensor
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for place, of_parameter in slots.items():
        if any(tensor.shape not in (parameters[place].shape, ()) for tensor in of_parameter.values()):
            raise ValueError(f"the optimiser's state has another shape than parameter {place}")
    rates = [float(group["lr"]) for group in saved.param_groups]
    _load_optimiser(optimiser, slots, rates)


def _load_optimiser(optimiser: Optimizer, slots: Mapping[int, dict[str, Tensor]], rates: Sequence[float]) -> None:
    """Restore an optimiser's state and learning rates; how it is computed and laid out in memory stays as on this device."""
    groups = optimiser.state_dict()["param_groups"]
    groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    for weight, moments in optimiser.state.items():
        for name, value in moments.items():
            if value.shape == weight.shape and value.stride() != weight.stride():  # one kernel updates both
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def read_part(path: Path, limit: int, digest: str | None) -> bytes:
    """Return the content of a file that the record of a state names.

    Raises
    ------
    UserError
        It is missing, is no regular file of this size, or has another digest; None if the record names none.
    """
    try:
        content = _read(path, limit)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing. Copy it again from where it is whole, or {_AGAIN}") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{path}: is damaged (it is not the file that was written). Copy it again from where it is whole, or {_AGAIN}"
        )
    return content


def damaged(folder: Path, error: Exception) -> UserError:
    """Return the error for a state that cannot be restored."""
    return UserError(
        f"{folder / LAST}: is damaged ({_first_line(error)}). Copy it again from where it is whole, or {_AGAIN}"
    )


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    replace_file(path, lambda target: target.write_text(text, encoding="utf-8"))


def _python_random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    state = {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}
    return {"python": [version, list(numbers), gauss], "numpy": state}


def _set_python_random_state(saved: Mapping[str, Any]) -> None:
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    state = saved["numpy"]
    np.random.set_state({**state, "state": {**state["state"], "key": np.array(state["state"]["key"], dtype=np.uint32)}})


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file, flush it, and move it into place atomically.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    try:
        with temporary_file(path, flushed(write)) as temporary:
            temporary.replace(path)
            fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def flushed(write: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that lets ``write`` make a file, and flushes it."""

    def write_and_flush(path: Path) -> None:
        write(path)
        fsync_folder(path)

    return write_and_flush


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
