"""Run a model in batches of one shape whose size fits the device's memory.

Each batch is launched before the results of the previous one are fetched, so that the device does not wait for the
host. When memory runs out, the size is halved and the same items are tried again. A size is found once per device,
model, image size and precision, and stored in the user's cache folder.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from ...errors import UserError
from ...models.device import device_name, is_out_of_memory
from ...models.free_memory import available_bytes
from ...models.transfer import HostArray, HostCopy
from ...models.user_cache import read_memory, write_memory

T = TypeVar("T")

CPU_BATCH = 8
"""Largest automatic batch on a CPU: larger batches are not faster."""
CUDA_BATCH = 32
"""Largest automatic batch on CUDA. The feature maps of 16 to 32 images of 256 pixels are expected to fill a GPU."""
CUDA_VALUES = 2**31 - 1
"""Most values of a tensor on CUDA: beyond, its kernels count with other integers, and some do not count right."""
MEMORY = "batch-sizes.json"
USABLE = 0.8
"""Fraction of the free memory that a batch may take."""
_MEASURED_ON_CPU = 2
"""Largest batch that is run to measure memory on a CPU, where a call takes long; larger ones are extrapolated."""


class BatchSize:
    """A batch size that can only shrink. ``shrunk`` is called with each new size."""

    def __init__(self, size: int, shrunk: Callable[[int], None] | None = None) -> None:
        self.size = size
        self._shrunk = shrunk

    def halve(self, said: str = "") -> None:
        """Halve the size, because of what the device said. Raises UserError if it is 1 already."""
        if self.size == 1:
            raise UserError(
                f"The device has too little memory for a batch of one image{f' ({said})' if said else ''}. "
                "Free memory on it, use a device with more, or --precision bf16."
            )
        self.size //= 2
        if self._shrunk is not None:
            self._shrunk(self.size)


def run_batches(
    items: Sequence[T],
    size: BatchSize,
    launch: Callable[[Sequence[T], int], HostCopy],
    land: Callable[[Sequence[T], dict[str, HostArray]], None],
) -> None:
    """Run all items through a device in batches; arguments as in :func:`start_batches`."""
    start_batches(items, size, launch, land)()


def start_batches(
    items: Sequence[T],
    size: BatchSize,
    launch: Callable[[Sequence[T], int], HostCopy],
    land: Callable[[Sequence[T], dict[str, HostArray]], None],
) -> Callable[[], None]:
    """Run all items through a device in batches, and return while the last batch is in flight.

    Parameters
    ----------
    items
        Items to process, in order.
    size
        Batch size; halved when memory runs out.
    launch
        Starts the work on a batch, padded to the given size, and returns the copy of its results to the host.
    land
        Receives a batch and its results, in order, each after the next batch was launched.

    Returns
    -------
    callable
        Lands the last batch.
    """
    in_flight: tuple[Sequence[T], HostCopy] | None = None
    start = 0
    while start < len(items):
        batch = items[start : start + size.size]
        launched = _launched(launch, batch, size.size)
        if in_flight is not None:
            land(in_flight[0], in_flight[1].arrays())
        if isinstance(launched, str):
            in_flight = None
            size.halve(launched)
            torch.cuda.empty_cache()
        else:
            in_flight = (batch, launched)
            start += len(batch)
    last = in_flight

    def finish() -> None:
        if last is not None:
            land(last[0], last[1].arrays())

    return finish


def _launched(launch: Callable[[Sequence[T], int], HostCopy], batch: Sequence[T], size: int) -> HostCopy | str:
    """Launch a batch; if memory runs out, return what the device said. This drops the frames that hold its tensors."""
    try:
        return launch(batch, size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return str(error).strip().partition("\n")[0]


def pad_batch(items: Sequence[T], size: int) -> list[T]:
    """Repeat the last item until the batch is full, so that all batches have one shape."""
    return [*items, *[items[-1]] * (size - len(items))]


def most_images(values: int, device: torch.device) -> int | None:
    """Return how many images a batch may have, if the largest tensor of one has so many values; None for any number."""
    return CUDA_VALUES // values if device.type == "cuda" else None


def remembered_size(
    identity: Mapping[str, str | int],
    device: torch.device,
    attempt: Callable[[int], None],
    most: int | None = None,
) -> BatchSize:
    """Return the batch size for a model on a device, from an earlier search or from :func:`find_size`.

    Parameters
    ----------
    identity
        What memory use depends on apart from the device: the model's digest, image size, precision.
    device
        The device.
    attempt
        Runs one batch of the given size.
    most
        Largest size, if there is a limit; see :func:`most_images`.
    """
    key = json.dumps({"device": device_name(device, of_machine=True), **identity}, sort_keys=True)
    size = _known().get(key) or find_size(device, attempt, most)
    _store_size(key, size)
    if most is not None:
        size = min(size, most)  # what is free now may be less than when the size was found
    return BatchSize(size, lambda smaller: _store_size(key, smaller))


def find_size(device: torch.device, attempt: Callable[[int], None], most: int | None = None) -> int:
    """Double the batch size from 1 while twice as many images are expected to fit into the free memory."""
    limit = int(_free_bytes(device) * USABLE)
    _forget_highest(device)
    before = _highest_bytes(device)
    cap = CUDA_BATCH if device.type == "cuda" else CPU_BATCH
    if most is not None:
        cap = max(1, min(cap, most))
    measured: list[int] = []
    size = 1
    while True:
        if device.type == "cuda" or size <= _MEASURED_ON_CPU:
            try:
                attempt(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return max(1, size // 2)
            measured.append(_highest_bytes(device) - before)
        if 2 * size > cap or _expected(measured, 2 * size) > limit:
            return size
        size *= 2


def _expected(measured: Sequence[int], size: int) -> int:
    """Extrapolate the bytes of a batch linearly from the last two of measured batches of 1, 2, 4, … images."""
    if len(measured) == 1:
        return measured[0] * size
    before, last = measured[-2:]
    last_size = 1 << (len(measured) - 1)
    return last + max(0, last - before) * (size - last_size) // (last_size // 2)


def _forget_highest(device: torch.device) -> None:
    """Forget earlier peaks on a device, such as those of another build on the same worker."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _highest_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: allocated on the device, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return available_bytes()


def _known() -> dict[str, int]:
    memory = read_memory(MEMORY)
    return {key: size for key, size in memory.items() if type(size) is int and 1 <= size <= CUDA_BATCH}


def _store_size(key: str, size: int) -> None:
    """Store a size in the user's cache folder."""
    known = _known()
    if known.get(key) != size:
        write_memory(MEMORY, {**known, key: size})
