"""What feeds the devices of a build: how many images a second the cores of a machine can decode and write.

A device waits when its machine cannot read, decode, compress and write as fast as it computes. That is processor time,
measured in seconds of one core an image, so that other programs do not disturb it, and divided among all cores of the
machine: zarr compresses the chunks of a shard in several threads, so its one writer a process is no limit of its own.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.records.about import Layout
from ..cache.shards.data import write_data
from ..cache.shards.packed import pack, packing_of
from ..cache.shards.registry import new_format
from ..cache.store import default_tail
from ..features.registry import layout_of
from ..images.spec import ImageSpec
from ..models.device import device_name
from ..models.transfer import HostArray
from ..storage.atomic import cannot_write
from .config import BuildConfig, cores, threads_each
from .execution.load import TaskImageLoader, TaskImages
from .execution.takeover import Takeover
from .planning.estimate import image_size
from .planning.plan import Task
from .planning.prepare import BuildPlan
from .rates import remember, remembered

SAMPLES = 48
"""Most images that are decoded and written to measure it."""


@dataclass(frozen=True)
class FeedingCost:
    """Processor time of one image in seconds of one core, to read and decode it and to write its features."""

    decode: float
    write: float
    source: str


@dataclass(frozen=True)
class Feeding:
    """What a machine can feed its devices with.

    Attributes
    ----------
    cost
        Processor time of one image.
    processes
        Processes that compute on the machine, each with one device.
    cores
        Cores of the machine.
    threads
        Decoding threads of each process.
    """

    cost: FeedingCost
    processes: int
    cores: int
    threads: int

    @property
    def images_per_second(self) -> float:
        """Images a second that the cores can decode and write, beside one core a process that drives its device."""
        free = max(1, self.cores - self.processes)
        by_cores = free / (self.cost.decode + self.cost.write)
        by_threads = self.processes * self.threads / self.cost.decode if self.cost.decode else by_cores
        return min(by_cores, by_threads)

    def as_json(self) -> dict[str, Any]:
        """Return it as ``build --dry-run --json`` prints it."""
        return {
            "cores": self.cores,
            "processes": self.processes,
            "decode_threads": self.threads,
            "decode_core_seconds": self.cost.decode,
            "write_core_seconds": self.cost.write,
            "images_per_second": self.images_per_second,
            "source": self.cost.source,
        }


def feeding(config: BuildConfig, ready: BuildPlan, processes: int | None, *, measure: bool) -> Feeding | None:
    """Return what a machine like this one can feed devices with; None if that was never measured.

    Parameters
    ----------
    config, ready
        The build and its plan.
    processes
        Worker processes on one machine; None if the build computes in its own.
    measure
        Measure it now.
    """
    if not ready.plan.tasks:
        return None
    cost = measured_cost(config, ready) if measure else _known_cost(config, ready)
    if cost is None:
        return None
    threads = config.decode_threads if processes is None else threads_each(processes)
    return Feeding(cost, processes or 1, cores(), threads)


def measured_cost(config: BuildConfig, ready: BuildPlan) -> FeedingCost | None:
    """Decode some of the plan's images and write as many rows of its features, and remember what that takes."""
    task = ready.plan.tasks[0]
    began = time.process_time()
    images = _loader(config, ready).load(Task(task.image_shard, task.keys[:SAMPLES], {}))
    if not images.keys:
        return None
    decode = (time.process_time() - began) / len(images.keys)
    write = sum(_written(config, name, layout_of(ready.specs[name]), images) for name in _missing(ready))
    here = device_name(torch.device("cpu"), of_machine=True)
    for key, seconds in zip(_keys(config, ready), (decode, write), strict=True):
        remember(here, key, 1 / max(seconds, 1e-9))
    return FeedingCost(decode, write, "measured now")


def _known_cost(config: BuildConfig, ready: BuildPlan) -> FeedingCost | None:
    """Return what was measured on this machine for such images and features."""
    here = device_name(torch.device("cpu"), of_machine=True)
    found = [next((r for r in remembered(key) if r[0] == here), None) for key in _keys(config, ready)]
    decode, write = found
    return (
        None if decode is None or write is None else FeedingCost(1 / decode[1], 1 / write[1], f"measured on {write[2]}")
    )


def _keys(config: BuildConfig, ready: BuildPlan) -> tuple[dict[str, object], dict[str, object]]:
    """Return what the two costs depend on apart from the machine."""
    image = ready.specs["image"]
    reads = {
        "decode": config.dataset,
        "image": image.fingerprint(),
        "cached": ready.plan.tasks[0].image_shard is not None,
    }
    writes = {"write": _missing(ready), "size": image_size(ready.specs), "format": config.format, "codec": config.codec}
    return reads, writes


def _missing(ready: BuildPlan) -> list[str]:
    return sorted(name for name, rows in ready.plan.missing.items() if rows)


def _loader(config: BuildConfig, ready: BuildPlan) -> TaskImageLoader:
    """Return a loader with one thread, which takes nothing over."""
    image = ready.specs["image"]
    assert isinstance(image, ImageSpec)
    store: Any = ready.stores.get("image")  # None before the first build, which has no cached image to read
    return TaskImageLoader(image, store, ready.originals, ready.files(), 1, config.limits, Takeover({}))


def _written(config: BuildConfig, feature: str, layout: Layout, images: TaskImages) -> float:
    """Return the processor time of one row of a feature, written to a temporary folder."""
    rows = _rows(layout, images.pixels)
    form = new_format(config.format, config.codec)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows{form.suffix}"
            began = time.process_time()
            write_data(path, form, rows, images.keys, feature, default_tail(rows.shape[1:]))
            return (time.process_time() - began) / len(rows)
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error


def _rows(layout: Layout, pixels: HostArray) -> HostArray:
    """Return rows that compress about as a feature's do: noise for floats, images for what has 8 bits, half zeros for maps."""
    if layout.dtype == "uint8" and layout.shape == pixels.shape[1:]:
        return pixels
    values = np.random.default_rng(0).normal(size=(len(pixels), *layout.shape))
    if layout.geometry == "map":
        values = values.clip(0)
    packed = packing_of(layout.storage)
    return pack(values.astype(np.float16), packed) if packed else values.astype(layout.dtype)
