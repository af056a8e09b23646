"""The pictures of a task: read from the cache, perturbed from others there, or decoded from their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray

from ..cache.gather import gather
from ..cache.store import FeatureStore
from ..errors import UserError
from .decode import decode
from .image_file import ImageRejected
from .image_spec import ImageSpec
from .perturb import perturbed
from .plan import Task
from .source_read import GIVE_UP, read_source, readers
from .tools import Tools
from .transfer import Rows


@dataclass(frozen=True)
class Images:
    """The pictures of a task, uint8 (N, 3, S, S), with their keys, and why the other planned keys have none.

    bad : the reason lies in the file's bytes and is final. gone : the file is no longer what was scanned, which says
    nothing about those bytes. Both map keys to ``reason: detail``.
    """

    keys: tuple[str, ...]
    pixels: Rows
    bad: Mapping[str, str]
    gone: Mapping[str, str]

    def lacking(self, task: Task, feature: str) -> list[str]:
        """Return the task's keys that miss the feature and have a picture, in row order."""
        return [key for key in task.missing.get(feature, ()) if key not in self.bad and key not in self.gone]


def load_images(task: Task, tools: Tools) -> Images:
    """Read the task's pictures from the cache, or make them. Nothing is written here.

    UserError if an object store does not answer any more.
    """
    if task.image_shard is not None:
        return Images(task.keys, gather(tools.stores["image"], task.keys), {}, {})
    spec = tools.specs["image"]
    assert isinstance(spec, ImageSpec)
    if tools.pictures is not None:
        return Images(task.keys, _perturbed(task.keys, spec, tools.pictures, tools.decoders), {}, {})
    bad: dict[str, str] = {}
    gone: dict[str, str] = {}
    decoding = Semaphore(tools.decoders)  # more threads may read, but decoded pictures are large

    def one(key: str) -> NDArray[np.uint8] | None:
        try:
            data = read_source(tools.files[key], key)
        except ImageRejected as why:
            gone[key] = str(why)
            return None
        try:
            with decoding:
                return decode(data, spec, tools.limits)
        except ImageRejected as why:
            bad[key] = str(why)
            return None

    threads = readers((tools.files[key] for key in task.keys), tools.decoders)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        results = dict(zip(task.keys, pool.map(one, task.keys), strict=True))
    _check_store(gone, tools)
    good = {key: picture for key, picture in results.items() if picture is not None}
    pixels = np.stack(list(good.values())) if good else np.empty((0, 3, spec.size, spec.size), np.uint8)
    return Images(tuple(good), pixels, bad, gone)


def _check_store(gone: Mapping[str, str], tools: Tools) -> None:
    """Raise UserError if so many objects cannot be read that a build without them would be of no use."""
    unread = [key for key, why in gone.items() if why.startswith("unreadable:") and tools.files[key].is_remote]
    if len(unread) >= GIVE_UP:
        first = tools.files[unread[0]]
        raise UserError(
            f"{first.location}: {gone[unread[0]]}; nor can {len(unread) - 1} other pictures of this shard be read. "
            "What is finished is kept: run the command again when the store lets you read."
        )


def _perturbed(keys: Sequence[str], spec: ImageSpec, store: FeatureStore, workers: int) -> NDArray[np.uint8]:
    """Return the perturbed pictures of these keys, (N, 3, S, S)."""
    how = spec.perturb
    assert how is not None
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return np.stack(list(pool.map(lambda picture, key: perturbed(picture, key, how), gather(store, keys), keys)))
