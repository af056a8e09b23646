"""Import and export of checkpoints of the reference implementation (github.com/miraflow/DistilDIRE).

Its files are written by ``torch.save`` from ``{"model": …, "optimizer": …, "total_steps": …}``. The model's keys
start with ``student_backbone.`` and ``student_head.``, and with ``module.`` before that after training on several GPUs.
Our student has the same submodules, so conversion renames nothing else. A projection to another teacher's width does
not affect the logit and is left out.

An imported checkpoint becomes a run that can be evaluated but not trained further. Its input is that of the
reference's code: the image in [-1, 1] together with eps, at 256 pixels (``official-code``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...choices import METHOD, Preset
from ...errors import UsageError, UserError
from ...models.weights import check_state, file_digest, read_state_dict
from ...storage.atomic import TEMPORARY_PREFIX, cannot_write, place_new
from ...storage.locks import temporary_folder
from ..config import TrainConfig
from ..students.pixels import PixelStudent
from ..students.student import Student
from .checkpoint import flushed, save_tensors, save_weights
from .folder import IMPORTED_EPOCH, RunFolder, RunRecord, new_run_id, now, versions
from .forms import BEST
from .lock import RunLock

ARCHITECTURE = "resnet50"
IMAGE_SIDE = 256
PARALLEL = "module."
UNKNOWN = "imported"
PRESET_OF: dict[str, Preset] = {"distildire": "official-code", "eps": "paper"}
"""Preset with the input of each student that the reference trains. Its input for eps alone is that of ``paper``."""


def import_checkpoint(path: Path, run: Path, method: str = METHOD) -> dict[str, Any]:
    """Make a run of a reference checkpoint.

    Parameters
    ----------
    path
        The checkpoint.
    run
        Folder of the new run.
    method
        ``distildire`` for the student of image and eps, ``eps`` for the one of eps alone (``--only_eps``).

    Returns
    -------
    dict
        Facts about the checkpoint, ready for JSON.

    Raises
    ------
    UserError
        The file is damaged or holds another network, or the run folder is not empty.
    """
    student, record = read_checkpoint(path, method, new_run_id(run))
    folder = RunFolder(run)
    with RunLock(run) as lock:
        if folder.is_free():
            lock.take()
        if not folder.is_free():
            raise UserError(f"{run}: is not empty. Choose another --run folder.")
        save_weights(folder.checkpoints / BEST, student, {"epoch": IMPORTED_EPOCH, "run": record.run})
        folder.create(record)
    return {
        "run": str(run),
        "method": method,
        "preset": record.config.preset,
        "tensors": len(student.state_dict()),
        **(record.imported or {}),
    }


def read_checkpoint(path: Path, method: str = METHOD, run: str = UNKNOWN) -> tuple[Student, RunRecord]:
    """Read a reference checkpoint.

    Returns
    -------
    tuple
        The student, in evaluation mode on the CPU, and the record of a run of it.

    Raises
    ------
    UserError
        The file is damaged or holds another network.
    UsageError
        The reference has no such method.
    """
    if method not in PRESET_OF:
        raise UsageError(f"--method {method}: the reference implementation's students are {' and '.join(PRESET_OF)}.")
    preset = PRESET_OF[method]
    config = TrainConfig.checked(
        dataset=UNKNOWN, method=method, preset=preset, backbone=ARCHITECTURE, train_size=IMAGE_SIDE
    )
    student = PixelStudent.of(ARCHITECTURE, 3 * len(config.definition.inputs))
    state = official_state(read_state_dict(path))
    check_state(student, state, f"{path} for method {method}")
    non_finite = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if non_finite:
        raise UserError(f"{path}: {non_finite[0]} holds numbers that are not finite. Download the file again.")
    student.load_state_dict(state, strict=True)
    record = RunRecord(
        run=run,
        config=config,
        cache="",
        dataset="",
        revision="",
        build="",
        fingerprints={},
        train_size=IMAGE_SIDE,
        teacher_channels=None,
        seen_generators=(),
        samples={"train": 0, "val": 0},
        validation="none",
        created=now(),
        versions=versions(),
        imported={"file": str(path), "sha256": file_digest(path)},
    )
    return student.eval(), record


def export_checkpoint(run: Path, path: Path) -> dict[str, Any]:
    """Write a run's best student as a file that the reference implementation loads.

    A ``.safetensors`` file holds only the tensors. ``.pt`` and ``.pth`` files are written by ``torch.save``, with the
    state of an optimiser that has made no step, since the reference's loader requires one even to test.

    Returns
    -------
    dict
        Facts about the file, ready for JSON.

    Raises
    ------
    UserError
        The backbone is not the reference's, or the file exists already.
    """
    best = RunFolder(run).load_student()
    student, record = best.student, best.record
    if record.config.backbone != ARCHITECTURE:
        raise UserError(
            f"{run}: its student is {record.config.backbone}, the reference implementation has only {ARCHITECTURE}."
        )
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(f"{path}: its name must end with .pth, .pt, .safetensors or .onnx, which selects the format.")
    if path.exists():
        raise UserError(f"{path}: exists already. Choose another name.")
    state = {name: value for name, value in student.state_dict().items() if not name.startswith("projection.")}
    if path.suffix == ".safetensors":
        write = partial(save_tensors, {name: value.contiguous() for name, value in state.items()})
    else:
        trained = [weight for name, weight in student.named_parameters() if name in state]
        optimiser = torch.optim.Adam(trained, lr=record.config.lr).state_dict()
        write = partial(torch.save, {"model": state, "optimizer": optimiser, "total_steps": 0})
    if not create_whole(path, write):
        raise UserError(f"{path}: exists already. Choose another name.")
    scale = ", ".join(f"{name} {scaled}" for name, scaled in record.method.scales.items())
    input_format = f"{scale}, at {record.train_size} pixels"
    return {
        "file": str(path),
        "method": record.method.name,
        "input": input_format,
        "tensors": len(state),
        "sha256": file_digest(path),
    }


def create_whole(path: Path, write: Callable[[Path], object]) -> bool:
    """Write a complete file unless it exists; return whether it was created. ``torch.save`` stores the file name.

    What killed commands left of the same file is deleted.
    """
    try:
        with temporary_folder(path.parent, f"{TEMPORARY_PREFIX}{path.name}-") as folder:
            temporary = folder / path.name
            flushed(write)(temporary)
            return place_new(temporary, path, needs_links=False)
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # what torch.save makes of an error of the system
        raise UserError(f"{path}: cannot be written ({error}). Is there enough space?") from error


def official_state(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a reference checkpoint's tensors under the names of ``Student``."""
    parallel = all(name.startswith(PARALLEL) for name in content)
    return {name.removeprefix(PARALLEL) if parallel else name: value for name, value in content.items()}
