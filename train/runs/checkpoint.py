"""Checkpoints: safetensors and JSON, never a pickle, and always complete.

``last.json`` is authoritative: it names the files with weights and optimiser of the newest state and holds everything
else that a training needs to resume exactly. It is replaced after both files are on the disk, so a kill at any moment
leaves a consistent state. A state in the middle of an epoch also holds the one at the epoch's beginning, so that the
epoch can be restarted if it cannot be resumed (``resume``). ``best.safetensors`` is the student to evaluate.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from ...errors import UserError
from ...models.weights import file_digest
from ...storage.atomic import TEMPORARY_PREFIX, NoHardLinksError, fsync_folder, link_new

BEST = "best.safetensors"
_DIGEST = "tensors_sha256"
LAST = "last.json"
_KERNELS = ("foreach", "fused")
"""Settings of an optimiser that say how a device computes its step. They belong to the device, not to the training."""

EpochMetrics = dict[str, float | int | None]
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

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    batch: int = 0
    step: int = 0
    first_loss: float | None = None
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    samples: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_rank: tuple[float, float] | None = None
    drops: list[int] = []
    history: list[EpochMetrics] = []
    order: str = ""
    restarted: list[int] = []
    unchecked: list[int] = []


class _Saved(BaseModel):
    """The content of ``last.json``.

    Attributes
    ----------
    weights, optimiser
        Names of the files of the state.
    sha256
        Digest of each of these files; empty in states of earlier versions.
    param_groups, random, scaler, progress
        The rest of the state.
    epoch_start
        The state at the beginning of the unfinished epoch, or None.
    """

    model_config = ConfigDict(extra="forbid")

    weights: str
    optimiser: str
    sha256: dict[str, str] = {}
    param_groups: list[dict[str, Any]]
    random: dict[str, Any]
    scaler: dict[str, Any] = {}
    progress: State
    epoch_start: _Saved | None = None

    @property
    def files(self) -> set[str]:
        """Names of the files of the state."""
        return {self.weights, self.optimiser} | (self.epoch_start.files if self.epoch_start else set())


def save_weights(path: Path, student: torch.nn.Module, facts: Mapping[str, str]) -> None:
    """Write a student's tensors to a safetensors file, atomically.

    ``facts`` are its metadata. A digest of the tensors is added to them, so that a reader notices damage.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(student)
    metadata = {**facts, _DIGEST: tensor_digest(tensors)}
    replace_file(path, lambda target: save_file(tensors, target, metadata=metadata))


def load_weights(path: Path, student: torch.nn.Module) -> dict[str, str]:
    """Load a file of `save_weights` into a student of the same shape.

    The file is read once, so weights, metadata and digest belong together even while a training replaces it.

    Returns
    -------
    dict
        The metadata, and the file's digest as ``sha256``.

    Raises
    ------
    UserError
        The file is damaged or belongs to another student.
    """
    try:
        data = path.read_bytes()
        tensors = load(data)
        student.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be loaded into this student ({_first_line(error)}). Train again.") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts: dict[str, str] = header.get("__metadata__", {})
    if _DIGEST in facts and facts[_DIGEST] != tensor_digest(tensors):
        raise UserError(
            f"{path}: is damaged (its tensors are not those that were written). Copy it again from where it is whole, "
            "or train again."
        )
    return {**facts, "sha256": hashlib.sha256(data).hexdigest()}


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
    random_state: Mapping[str, Tensor],
    scaler: Mapping[str, Any],
) -> None:
    """Save the present state as the newest one of a run; the files of the previous state are deleted.

    In the middle of an epoch, the state at its beginning is kept.

    Parameters
    ----------
    folder
        The folder of checkpoints.
    student, optimiser, progress
        The state.
    random_state
        States of torch's generators, by names that begin with ``random.``.
    scaler
        State of the loss scale.
    """
    stem = f"last-{progress.step:08d}"
    weights, optimiser_file = f"{stem}.safetensors", f"{stem}.optim.safetensors"
    state = optimiser.state_dict()
    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, slots in state["state"].items()
        for name, value in slots.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(
        folder / weights, lambda target: save_file(_tensors(student), target, metadata={"step": str(progress.step)})
    )
    replace_file(folder / optimiser_file, lambda target: save_file({**tensors, **random_state}, target))
    saved = _Saved(
        weights=weights,
        optimiser=optimiser_file,
        sha256={name: file_digest(folder / name) for name in (weights, optimiser_file)},
        param_groups=state["param_groups"],
        random=_python_random_state(),
        scaler=dict(scaler),
        progress=progress,
        epoch_start=_epoch_start(folder, progress),
    )
    _make_newest(folder, saved)


def restart_epoch(folder: Path) -> None:
    """Make the state at the beginning of the unfinished epoch the newest one, and record the restart.

    Does nothing if that state is unknown, because the epoch was started by a version that did not keep it.
    """
    saved = _read_saved(folder / LAST)
    start = saved.epoch_start
    if start is None:
        return
    restarted = {*saved.progress.restarted, start.progress.epoch + 1}
    progress = start.progress.model_copy(update={"restarted": sorted(restarted), "unchecked": saved.progress.unchecked})
    _make_newest(folder, start.model_copy(update={"progress": progress}))


def _epoch_start(folder: Path, progress: State) -> _Saved | None:
    """Return the state at the beginning of the current epoch, unless ``progress`` is that state itself."""
    path = folder / LAST
    if not progress.batch or not path.exists():
        return None
    newest = _read_saved(path)
    return newest.epoch_start if newest.progress.batch else newest


def _make_newest(folder: Path, saved: _Saved) -> None:
    replace_text(folder / LAST, saved.model_dump_json())
    for old in folder.glob("last-*.safetensors"):
        if old.name not in saved.files:
            old.unlink()


@dataclass(frozen=True)
class RestoredState:
    """The parts of a saved state that `load_state` does not restore itself."""

    progress: State
    random_state: dict[str, Tensor]
    scaler: dict[str, Any]


def read_progress(folder: Path) -> State | None:
    """Return where the newest state of a run stands, without loading it; None if there is no state."""
    path = folder / LAST
    return _read_saved(path).progress if path.exists() else None


def load_state(folder: Path, student: torch.nn.Module, optimiser: Optimizer) -> RestoredState | None:
    """Restore student, optimiser and Python's and numpy's generators from the newest state; None if there is no state.

    Raises
    ------
    UserError
        The state is damaged.
    """
    path = folder / LAST
    if not path.exists():
        return None
    saved = _read_saved(path)
    for name, digest in saved.sha256.items():
        _check_digest(folder / name, digest)
    try:
        tensors = load_file(folder / saved.optimiser)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    load_weights(folder / saved.weights, student)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, slot = name.partition(".")
        if number.isdigit():
            slots.setdefault(int(number), {})[slot] = tensor
    _load_optimiser(optimiser, slots, saved.param_groups)
    _set_python_random_state(saved.random)
    states = {name: tensor for name, tensor in tensors.items() if name.startswith("random.")}
    return RestoredState(saved.progress, states, saved.scaler)


def _load_optimiser(
    optimiser: Optimizer, slots: Mapping[int, dict[str, Tensor]], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Restore an optimiser's state; how it is computed and laid out in memory stays as on this device."""
    own = {name: optimiser.param_groups[0].get(name) for name in _KERNELS}
    optimiser.load_state_dict({"state": slots, "param_groups": [{**group, **own} for group in groups]})
    for weight, moments in optimiser.state.items():
        for name, value in moments.items():
            if value.shape == weight.shape and value.stride() != weight.stride():  # one kernel updates both
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _check_digest(path: Path, digest: str) -> None:
    """Raise UserError unless a file has this digest."""
    try:
        found = file_digest(path)
    except OSError as error:
        raise _damaged(path, error) from error
    if found != digest:
        raise UserError(
            f"{path}: is damaged (it is not the file that was written). Copy it again from where it is whole, or train "
            "again into a new folder."
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


def _read_saved(path: Path) -> _Saved:
    try:
        return _Saved.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: is damaged ({_first_line(error)}). Train again into a new folder.")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file, flush it, and move it into place atomically."""
    with _temporary_file(path, write) as temporary:
        temporary.replace(path)
        fsync_folder(path.parent)


def create_file(path: Path, write: Callable[[Path], object]) -> bool:
    """Do the same as `replace_file`, but only if the file does not exist; return whether it was created."""
    with _temporary_file(path, write) as temporary:
        try:
            return link_new(temporary, path)
        except NoHardLinksError:
            if path.exists():
                return False
            temporary.replace(path)
            return True


@contextmanager
def _temporary_file(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """Write and flush a file with a unique name next to ``path``, and delete it after the block."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        write(temporary)
        fsync_folder(temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
