"""Verdicts of a student on the rows of a part: the same code validates during training and evaluates after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...choices import TestTransform
from ..data.augment import test_input
from ..data.dataset import FeatureDataset
from ..data.readers import LoaderOptions
from ..methods import Method
from ..student import Student

Floats = npt.NDArray[np.float32]


def predict(
    student: Student,
    part: FeatureDataset,
    method: Method,
    *,
    size: int,
    transform: TestTransform,
    batch_size: int,
    device: torch.device,
    seen: Callable[[int], None] = lambda _: None,
    loading: LoaderOptions | None = None,
    joined: Callable[[Floats], Floats] = lambda logits: logits,
) -> npt.NDArray[np.float32]:
    """Logit of every row of a part, (rows,) float32 in the order of its table: each occurrence exactly once.

    ``seen`` is told the number of rows after each batch. The student is in evaluation mode afterwards. Of several
    processes, each scores the share that ``loading`` gives it, and ``joined`` adds up their arrays.
    """
    student.eval()
    logits: Floats = np.zeros(len(part), dtype=np.float32)
    with torch.inference_mode():
        for batch in part.in_order(batch_size, loading):
            inputs = {name: batch.features[name].to(device) for name in method.inputs}
            logit, _ = student(test_input(inputs, method, size, transform))
            logits[batch.rows] = logit.cpu().numpy()
            seen(len(batch.rows))
    return joined(logits)


def probability(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """P(generated) of logits, float32 in 0..1."""
    probabilities: npt.NDArray[np.float32] = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return probabilities
