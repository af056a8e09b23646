"""What a process of a build takes in memory if it computes on a CPU, and the largest batch that a bound allows.

Measured on ADM-256 at 256 pixels: a call adds 669 MiB of resident memory an image where the maps that are alive at a
time have 576 MiB, because an allocator reuses freed memory only partly; hence `_OVER_LIVE`. Reading weights takes their
size twice. With a bound, images that are being decoded may take an eighth of it; a larger image is decoded alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...cache.spec import Spec
from ...errors import UsageError
from ...features.contract import NetworkSource, network_bytes
from ...features.registry import layout_of, networks_of, walk_of
from ...images.budget import BUDGET_BYTES
from ...models.diffusion.call_memory import CallMemory, call_memory
from ...models.free_memory import available_bytes, resident_bytes
from ..config import BuildConfig
from ..execution.batches import CPU_BATCH, USABLE
from .estimate import image_size

PROGRAM = 768 * 2**20
"""Python, its libraries, and what a build with the smallest networks holds; measured: 575 to 746 MiB."""
_OVER_LIVE = 1.17
"""Resident bytes over those of the maps that are alive."""
_TASKS = 3
"""Tasks whose rows are in memory: one is loaded, one computed, one written."""
_BACKBONE = 256 * 2**20
"""A backbone, its weights and a batch; ResNet-50's weights are 98 MiB."""
_MAPS = 64 * 2**20
"""Maps of a batch of a larger network than those."""
_DECODING_SHARE = 8


@dataclass(frozen=True)
class HostMemory:
    """Memory of one process in bytes.

    Attributes
    ----------
    limit
        The bound, ``--memory``; None without one.
    rows
        Rows of the features of the tasks at hand.
    backbones
        The networks of other features than those of the ADM, 0 without any.
    decoding
        Images that are being decoded, at most.
    call
        A call of the ADM, with the states that a pass keeps beside it; None if no feature needs it.
    """

    limit: int | None
    rows: int
    backbones: int
    decoding: int
    call: CallMemory | None

    def total(self, batch: int) -> int:
        """Return the peak with batches of this many images."""
        if self.call is None:
            return self._fixed
        computing = self.call.of_batch(0) + int(_OVER_LIVE * batch * self.call.image)
        return self._fixed + max(computing, 2 * self.call.weights)

    @property
    def bound(self) -> int:
        """The bound; without one, more than any memory."""
        return sys.maxsize if self.limit is None else self.limit

    @property
    def _fixed(self) -> int:
        return PROGRAM + self.rows + self.backbones + self.decoding

    def largest_batch(self, limit: int) -> int:
        """Return the largest automatic batch (1, 2, 4, …) whose peak is within a limit; 0 if one image is not."""
        batch = CPU_BATCH
        while batch and self.total(batch) > limit:
            batch //= 2
        return batch

    def bounded_batch(self) -> int:
        """Return the automatic batch under the bound.

        Raises
        ------
        UsageError
            One image at a time takes more than the bound.
        """
        batch = self.largest_batch(self.bound)
        if not batch:
            raise UsageError(
                f"--memory: a build of these features takes {mebibytes(self.total(1))} MiB with one image at a time, "
                f"{mebibytes(self.bound)} MiB are allowed. Allow more, or lower --shard-size or --image-size."
            )
        return batch

    def as_json(self, batch: int) -> dict[str, Any]:
        """Return it as ``build --dry-run --json`` prints it, for a batch size."""
        call = self.call
        return {
            "bytes": self.total(batch),
            "limit": self.limit,
            "batch_size": batch if call else None,
            "weights": call.weights + call.sums if call else 0,
            "image": int(_OVER_LIVE * call.image) if call else 0,
            "rows": self.rows,
            "decoding": self.decoding,
            "program": PROGRAM + self.backbones,
            "free": available_bytes() + resident_bytes(),
        }


def host_memory(config: BuildConfig, specs: Mapping[str, Spec], decoding: int | None = None) -> HostMemory:
    """Return what a build on a CPU takes.

    Parameters
    ----------
    config
        The build.
    specs
        By feature.
    decoding
        Bytes of the images that are decoded at a time, as far as the plan knows; None for the most that is allowed.
    """
    walk = walk_of(specs)
    allowed = decoding_bytes(config.memory_bytes)
    rows = sum(layout_of(spec).bytes for spec in specs.values()) * config.shard_size * _TASKS
    call = None if walk is None else call_memory(walk.adm.config, image_size(specs), config.precision)
    if walk is not None and call is not None:
        call = replace(call, image=call.image + walk.held_bytes)
    return HostMemory(
        limit=config.memory_bytes,
        rows=rows,
        backbones=sum(_network(source) for source in networks_of(specs, dict(config)).values()),
        decoding=allowed if decoding is None or config.memory_bytes is not None else min(allowed, decoding),
        call=call,
    )


def _network(source: NetworkSource) -> int:
    """Return what a network takes: its weights twice while they are read, and the maps of a batch."""
    return max(_BACKBONE, 2 * network_bytes(source) + _MAPS)


def free_limit() -> int:
    """Return what this process may take in all without a bound: what it has, and a share of the available memory."""
    return resident_bytes() + int(USABLE * available_bytes())


def check_memory(config: BuildConfig, device: torch.device, specs: Mapping[str, Spec]) -> None:
    """Raise UsageError if ``--memory`` cannot hold: on a GPU, or for the batch size that the user chose."""
    if config.memory is None:
        return
    if device.type != "cpu":
        raise UsageError(
            f"--memory {config.memory}: bounds builds on a CPU, and this one computes on {device}. Leave it out, or give "
            "--device cpu; --batch-size bounds what a GPU's memory holds."
        )
    memory = host_memory(config, specs)
    if config.batch_size == "auto":
        memory.bounded_batch()
    elif memory.total(config.batch_size) > memory.bound:
        raise UsageError(
            f"--memory {config.memory}: --batch-size {config.batch_size} takes {mebibytes(memory.total(config.batch_size))} "
            "MiB. Allow more, or choose a smaller batch."
        )


def planned_memory(config: BuildConfig, specs: Mapping[str, Spec], decoding: int) -> dict[str, Any]:
    """Return what each process of a build on a CPU will take, for its plan; see `HostMemory.as_json`.

    Without ``--memory`` and with an automatic batch, the batch size is the largest that the free memory allows: a build
    may take a smaller one, from what its first calls take.
    """
    memory = host_memory(config, specs, decoding)
    if config.batch_size != "auto":
        batch = config.batch_size
    elif config.memory is not None:
        batch = memory.bounded_batch()
    else:
        batch = max(1, memory.largest_batch(free_limit()))
    return memory.as_json(batch)


def decoding_bytes(limit: int | None) -> int:
    """Return the most bytes of images that are decoded at a time in a process with this bound, or without one."""
    return BUDGET_BYTES if limit is None else min(BUDGET_BYTES, limit // _DECODING_SHARE)


def mebibytes(size: int) -> str:
    """Return bytes in whole MiB, rounded up."""
    return f"{-(-size // 2**20):,}"
