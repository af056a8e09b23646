"""Copy tensors between host and device asynchronously: pinned memory both ways, and an event when a copy is done.

On CUDA the host queues a piece of work before it waits for the results of the one before (`one_behind`), so that the
device always has work. On a CPU there is nothing to wait for, and results are used as soon as they are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")

HostArray = NDArray[Any]
"""Array on the host; the rows of a feature are along the first axis."""

BEHIND = {"cpu": 0, "cuda": 1}
"""Pieces of work that are queued on a device before the results of an earlier one are fetched."""


def to_device(rows: HostArray, device: torch.device) -> Tensor:
    """Copy an array to the device; on CUDA through pinned memory, so that the host does not wait for earlier work."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """An asynchronous copy of named tensors to the host.

    On CUDA the copies are queued behind the work that computes the values. :meth:`arrays` waits for these copies only;
    work that was queued later continues. The values may be on several devices, whichever device is current.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = dict(values)
        self._waiting: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        for name, value in values.items():
            if value.is_cuda:
                pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                self._values[name] = pinned.copy_(value, non_blocking=True)
                self._waiting.append(value)  # its memory must not be reused before it is copied
        for device in dict.fromkeys(value.device for value in self._waiting):
            self._copied.append(_reached(device))

    def arrays(self) -> dict[str, HostArray]:
        """Wait for the values and return them as arrays on the host."""
        for event in self._copied:
            event.synchronize()
        self._waiting.clear()
        return {name: value.numpy() for name, value in self._values.items()}


def one_behind(queued: Iterable[T], device: torch.device) -> Iterator[T]:
    """Yield pieces of work in their order, on CUDA each after the next one was queued by ``queued``'s iterator."""
    waiting: deque[T] = deque()
    for work in queued:
        waiting.append(work)
        if len(waiting) > BEHIND[device.type]:
            yield waiting.popleft()
    yield from waiting


def _reached(device: torch.device) -> torch.cuda.Event:
    """Record an event on a device after all work that this thread has queued there.

    ``copy_`` queues on the current stream of the tensor's device. An event that is given no stream is recorded on that
    of the current device, which is ``cuda:0`` in every thread that has not chosen one, and says nothing of another's.
    """
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
