"""Scores of a student on the rows of a dataset; validation and evaluation share this code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...choices import TestTransform
from ...models.device import STUDENT_PRECISION, arithmetic
from ...models.transfer import HostCopy, one_behind
from ..data.augment import test_input
from ..data.dataset import Batch, FeatureDataset
from ..data.readers import ImageTransform, LoaderOptions
from ..data.shuffle import IntArray
from ..methods.method import Method
from ..students.student import Student

Logits = npt.NDArray[np.float32]
"""The logit of every row, (rows,)."""


def predict(
    student: Student,
    part: FeatureDataset,
    method: Method,
    *,
    size: int,
    transform: TestTransform,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda _: None,
    loading: LoaderOptions | None = None,
    joined: Callable[[Logits], Logits] = lambda logits: logits,
    change: ImageTransform | None = None,
) -> npt.NDArray[np.float32]:
    """Compute the logit of every row once.

    The student is in evaluation mode afterwards.

    Parameters
    ----------
    student
        The student.
    part
        The rows.
    method, size, transform
        The method, the side of the input in pixels, and the test transform.
    batch_size
        Rows per batch, over all processes.
    device
        Device of the student.
    on_batch
        Called with the number of rows after each batch.
    loading
        How to read; of several processes, each scores its share.
    joined
        Sums the arrays of several processes.
    change
        Applied to (images, rows) where they are read.

    Returns
    -------
    ndarray, shape (rows,)
        float32, in the order of the table.
    """
    student.eval()
    logits: Logits = np.zeros(len(part), dtype=np.float32)

    def scored(batch: Batch) -> tuple[IntArray, HostCopy]:
        with torch.inference_mode(), arithmetic(STUDENT_PRECISION, device):
            inputs = {name: batch.features[name].to(device, non_blocking=True) for name in method.inputs}
            logit, _ = student(test_input(inputs, method, size, transform, part.geometry))
            return batch.rows, HostCopy({"logit": logit})

    for rows, copy in one_behind(map(scored, part.in_order(batch_size, loading, change)), device):
        logits[rows] = copy.arrays()["logit"]
        on_batch(len(rows))
    return joined(logits)


def probability(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return P(generated) for logits, float32 in 0..1."""
    probabilities: npt.NDArray[np.float32] = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return probabilities
