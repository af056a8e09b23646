"""A run's student as an ONNX file: from cached features to logit and score, for programs without torch.

The graph begins with the features as the cache stores them: scaling, test transform and student are inside, so what other
programs must know is the features' names and side. It holds no pickle and refers to no other file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import __version__
from ...cache.records.about import OVER_IMAGE, Layout
from ...choices import TestTransform
from ...errors import UserError
from ...models.weights import file_digest
from ..data.augment import center_crop, scaled_input
from ..methods.method import Method
from ..students.student import Shapes, Student, input_shapes
from .folder import BestStudent, RunFolder, RunRecord
from .reference_checkpoint import create_whole

OPSET = 18
"""Version of the ONNX operators."""
TOLERANCE = 1e-4
"""Largest difference between the file's logits and the student's, relative where logits are larger than 1."""
TRANSFORM: TestTransform = "crop"
"""Test transform inside the graph, as ``evaluate`` and ``predict`` have it by default."""
_BYTES = ("image", "recon", "dire")
"""Features that are stored as uint8, in runs whose record does not say; the graph takes all others as float32."""
_CHECKED = 3
"""Random images on which a file is compared with its student."""


class ScoredFeatures(nn.Module):
    """From stored features to logit and score.

    Parameters
    ----------
    student
        The student, in evaluation mode.
    method
        Its method.
    whole
        Features that it takes as they are, since they do not lie over the image.
    stored, size
        Side of the other features and of the student's input in pixels.
    """

    _weights: Tensor

    def __init__(self, student: Student, method: Method, whole: Collection[str], stored: int, size: int) -> None:
        super().__init__()
        self._student, self._method, self._whole, self._size = student, method, frozenset(whole), size
        self._crops = stored > size
        self.register_buffer("_weights", resize_weights(stored, size))

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """Score features, (N, ...) each in the order of the method's inputs; return logit and score, (N,) each."""
        parts = {}
        for name, stored in zip(self._method.inputs, features, strict=True):
            x = stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()
            if name not in self._whole:
                x = center_crop(x, self._size) if self._crops else self._weights @ x @ self._weights.T
            parts[name] = x
        logit = self._student(scaled_input(parts, self._method))[0]
        return logit, logit.sigmoid()


def resize_weights(stored: int, size: int) -> Tensor:
    """Return the matrix (size, stored) by which `models.backbones.resize` resizes each axis; (0, 0) if it need not.

    ONNX's own resizing differs from torch's at the borders.
    """
    if stored > size:
        return torch.zeros(0, 0)
    unit = torch.eye(stored)[None, None]
    return F.interpolate(unit, (size, stored), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def export_onnx(run: Path, path: Path) -> dict[str, Any]:
    """Write a run's best student as an ONNX file, after comparing it with the student under onnxruntime.

    Parameters
    ----------
    run
        Folder of the run.
    path
        The new file, ``NAME.onnx``.

    Returns
    -------
    dict
        ``file``, ``method``, ``input``, ``output``, ``opset``, ``transform``, ``largest_difference`` of the logits, and
        ``sha256``, ready for JSON.

    Raises
    ------
    UserError
        The file exists or cannot be written, a library is missing, or the file's logits are not the student's.
    """
    best = RunFolder(run).load_student()
    record, method = best.record, best.record.method
    if path.exists():
        raise UserError(f"{path}: exists already. Choose another name.")
    stored = _stored_side(best)
    layouts = _layouts(record, stored)
    whole = [name for name, layout in layouts.items() if layout.geometry not in OVER_IMAGE]
    module = ScoredFeatures(best.student, method, whole, stored, record.train_size).eval()
    shapes = input_shapes(method.inputs, layouts, stored)
    examples = _examples(layouts, shapes)
    program = _program(module, method.inputs, examples)
    threshold = best.calibration.threshold if best.calibration and best.calibration.beats_chance else None
    facts = {
        "method": method.name,
        "preset": method.preset,
        "run": record.run,
        "checkpoint_sha256": best.sha256,
        "fingerprints": json.dumps({name: record.fingerprints.get(name, "") for name in method.inputs}),
        "transform": TRANSFORM if stored > record.train_size else "resize",
        "threshold": "" if threshold is None else f"{threshold:.9g}",
        "distil_cache": __version__,
    }
    program.model.metadata_props.update({f"distil_cache.{name}": value for name, value in facts.items()})
    difference = _difference(program.model_proto.SerializeToString(), module, method.inputs, examples)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: under onnxruntime its logits differ from the student's by up to {difference:.2g}, so it is not written. "
            "Try other versions of torch, onnxscript and onnxruntime."
        )
    if not create_whole(path, partial(_write, program)):
        raise UserError(f"{path}: exists already. Choose another name.")
    return {
        "file": str(path),
        "method": method.name,
        "input": _input_words(layouts, shapes),
        "output": "logit float32, score float32; (N,) each",
        "opset": OPSET,
        "transform": facts["transform"],
        "largest_difference": difference,
        "sha256": file_digest(path),
    }


def _stored_side(best: BestStudent) -> int:
    """Return the side of the features in pixels; of runs whose record does not say, that of the student's input."""
    for name in best.record.method.inputs:
        spec = best.record.specs.get(name, {})
        image = spec if spec.get("feature") == "image" else spec.get("image", {})
        if isinstance(image, dict) and isinstance(image.get("size"), int):
            return int(image["size"])
    return best.record.train_size


def _layouts(record: RunRecord, stored: int) -> dict[str, Layout]:
    """Return what the rows of each input are; of runs whose record does not say, that they lie over the image."""
    of_before = {
        name: Layout((3, stored, stored), "uint8" if name in _BYTES else "float32", "pixels")
        for name in record.method.inputs
    }
    return {name: record.layouts.get(name, layout) for name, layout in of_before.items()}


def _examples(layouts: Mapping[str, Layout], shapes: Shapes) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(0, 256, (_CHECKED, *shapes[name]), dtype=torch.uint8, generator=generator)
        if layout.dtype == "uint8"
        else torch.randn((_CHECKED, *shapes[name]), generator=generator)
        for name, layout in layouts.items()
    )


def _input_words(layouts: Mapping[str, Layout], shapes: Shapes) -> str:
    """Say types and shapes of the graph's inputs."""
    kinds = {name: "uint8" if layout.dtype == "uint8" else "float32" for name, layout in layouts.items()}
    words = {name: f"(N, {', '.join(map(str, shapes[name]))})" for name in kinds}
    if len(set(words.values())) == 1:
        return f"{', '.join(f'{name} {kind}' for name, kind in kinds.items())}; {next(iter(words.values()))} each"
    return ", ".join(f"{name} {kind} {words[name]}" for name, kind in kinds.items())


def _program(module: ScoredFeatures, inputs: Sequence[str], examples: tuple[Tensor, ...]) -> torch.onnx.ONNXProgram:
    batch = torch.export.Dim("batch", min=1)
    with _explained(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "# The axis name: batch", UserWarning
        )  # one name for the same axis of all inputs
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["logit", "score"],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the absence of a library into a UserError that says how to install it."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            "checkpoint export: a library for ONNX is missing. Install it with: pip install 'distil-cache[onnx]'"
        ) from error


def _difference(content: bytes, module: ScoredFeatures, inputs: Sequence[str], examples: tuple[Tensor, ...]) -> float:
    """Return by how much the file's logits differ from the student's, relative to those that are larger than 1."""
    with _explained():
        import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in (1, len(examples[0])):
        given = {name: x[:count].numpy() for name, x in zip(inputs, examples, strict=True)}
        logits = session.run(["logit"], given)[0]
        with torch.inference_mode():
            expected = module(*(x[:count] for x in examples))[0].numpy()
        apart = np.abs(logits - expected) / np.maximum(1.0, np.abs(expected))
        largest = max(largest, float(apart.max()))
    return largest


def _write(program: torch.onnx.ONNXProgram, path: Path) -> None:
    path.write_bytes(program.model_proto.SerializeToString())
