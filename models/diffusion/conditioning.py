"""Tell a class-conditional diffusion model the classes of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..class_label import ClassLabel
from ..transfer import to_device
from .ddim import NoiseModel


def with_classes(model: NoiseModel, label: str | None, keys: Sequence[str], device: torch.device) -> NoiseModel:
    """Return a model that is told the classes of a batch; the model itself without a choice of classes.

    Parameters
    ----------
    model
        Noise model.
    label
        Choice of classes, see `ClassLabel`; None for an unconditional model.
    keys
        Keys of the images, in the order of the batch.
    device
        Device of the model.
    """
    if label is None:
        return model
    classes = to_device(np.array(ClassLabel.parse(label).classes(keys), np.int64), device)

    def conditioned(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, classes)  # type: ignore[call-arg]

    return conditioned
