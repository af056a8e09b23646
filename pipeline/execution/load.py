"""Load the images of a task: from the cache, by perturbing cached images, or by decoding their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray

from ...cache.gather import gather
from ...cache.store import FeatureStore
from ...errors import UserError
from ...images.decode import decode
from ...images.file import ImageRejected, Limits, rejection
from ...images.perturb import perturb
from ...images.spec import ImageSpec
from ...models.transfer import HostArray
from ..planning.plan import Task
from ..sources.file import SourceFile
from ..sources.read import MAX_UNREADABLE, read_source, readers, reading_order
from .takeover import TakenRows, Takeover


@dataclass(frozen=True)
class TaskImages:
    """The images of a task, and why the other planned keys have none.

    Attributes
    ----------
    keys
        Keys of the images, N.
    pixels
        uint8 (N, 3, S, S).
    bad
        Key -> ``reason: detail`` for files that cannot be decoded. This is final: it depends on the bytes alone.
    gone
        Key -> ``reason: detail`` for files that could not be read or have changed since the scan.
    taken
        Rows that the task lacks and that are taken over from an earlier algorithm.
    """

    keys: tuple[str, ...]
    pixels: HostArray
    bad: Mapping[str, str]
    gone: Mapping[str, str]
    taken: TakenRows = field(default_factory=dict)

    def lacking(self, task: Task, feature: str) -> list[str]:
        """Return the task's keys that have an image and lack the feature, in row order."""
        return [key for key in task.missing.get(feature, ()) if key not in self.bad and key not in self.gone]

    def to_compute(self, task: Task, feature: str) -> list[str]:
        """Return the keys that lack the feature and for which no row is taken over, in row order."""
        taken = self.taken.get(feature, {})
        return [key for key in self.lacking(task, feature) if key not in taken]


@dataclass(frozen=True)
class TaskImageLoader:
    """Reads the images of tasks from the cache, or makes them. Nothing is written here.

    Attributes
    ----------
    spec, store
        Spec and store of the images.
    originals
        Store of the images to perturb; None if images are decoded from files.
    files
        Key -> file.
    threads
        Number of threads that decode at a time.
    limits
        Size limits for images.
    takeover
        Takes rows over from features of an earlier algorithm.
    """

    spec: ImageSpec
    store: FeatureStore
    originals: FeatureStore | None
    files: Mapping[str, SourceFile]
    threads: int
    limits: Limits
    takeover: Takeover

    def load(self, task: Task) -> TaskImages:
        """Return the task's images, and the rows that can be taken over.

        Raises
        ------
        UserError
            If an object store stops answering.
        IntegrityError
            If a shard of the cache is damaged.
        """
        images = self._images(task)
        return replace(images, taken=self.takeover.rows(task, images.keys, images.pixels))

    def _images(self, task: Task) -> TaskImages:
        if task.image_shard is not None:
            return TaskImages(task.keys, gather(self.store, task.keys), {}, {})
        if self.originals is not None:
            return TaskImages(task.keys, self._perturbed(task.keys, self.originals), {}, {})
        return self._decoded(task.keys)

    def _perturbed(self, keys: Sequence[str], originals: FeatureStore) -> NDArray[np.uint8]:
        """Return the perturbed images of these keys, (N, 3, S, S)."""
        how = self.spec.perturb
        assert how is not None
        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            return np.stack(list(pool.map(lambda image, key: perturb(image, key, how), gather(originals, keys), keys)))

    def _decoded(self, keys: Sequence[str]) -> TaskImages:
        bad: dict[str, str] = {}
        gone: dict[str, str] = {}
        decoding = Semaphore(self.threads)  # more threads may read, but decoded images are large

        def load_one(key: str) -> NDArray[np.uint8] | None:
            try:
                data = read_source(self.files[key], key)
            except Exception as error:  # whatever it is, it costs this image alone
                gone[key] = str(rejection(b"", error))
                return None
            try:
                with decoding:
                    return decode(data, self.spec, self.limits)
            except ImageRejected as rejected:
                bad[key] = str(rejected)
                return None
            except Exception as error:  # it may not be the file's fault: the next build tries again
                gone[key] = str(rejection(data, error))
                return None

        threads = readers((self.files[key] for key in keys), self.threads)
        with ThreadPoolExecutor(max_workers=threads) as pool:
            ordered = sorted(keys, key=lambda key: reading_order(self.files[key]))
            results = dict(zip(ordered, pool.map(load_one, ordered), strict=True))
        self._check_store(gone)
        good = {key: image for key in keys if (image := results[key]) is not None}
        size = self.spec.size
        pixels = np.stack(list(good.values())) if good else np.empty((0, 3, size, size), np.uint8)
        return TaskImages(tuple(good), pixels, bad, gone)

    def _check_store(self, gone: Mapping[str, str]) -> None:
        """Raise UserError if so many objects are unreadable that the store itself must have failed."""
        unread = [key for key, why in gone.items() if why.startswith("unreadable:") and self.files[key].by_requests]
        if len(unread) >= MAX_UNREADABLE:
            first = self.files[unread[0]]
            raise UserError(
                f"{first.location}: {gone[unread[0]]}; nor can {len(unread) - 1} other images of this shard be read. "
                "Finished shards are kept. Check the store and your access to it, then run the command again."
            )
