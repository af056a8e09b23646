"""Tensors between host and device without waiting: pinned memory both ways, and an event that says when a copy is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[Any]


def incoming(rows: Rows, device: torch.device) -> Tensor:
    """Copy an array to the device; on CUDA through pinned memory, so that the copy waits for no earlier work."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Outgoing:
    """Results on their way to the host.

    On CUDA the copies are queued behind the work that makes the values, and :meth:`arrays` waits for these copies alone:
    work that was queued later goes on meanwhile.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = dict(values)
        self._copied: torch.cuda.Event | None = None
        cuda = {name: value for name, value in values.items() if value.is_cuda}
        for name, value in cuda.items():
            pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._values[name] = pinned.copy_(value, non_blocking=True)
        if cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def arrays(self) -> dict[str, Rows]:
        """Wait for the values and return them as arrays on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: value.numpy() for name, value in self._values.items()}
