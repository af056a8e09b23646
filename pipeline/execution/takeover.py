"""Take rows over from features whose images were decoded by an earlier algorithm, instead of computing them again.

The image of a task is compared with the old one of the same key. If the pixels are equal, all that derives from them is
right as it is: the old rows are copied bit for bit into the shards of the new specs, which are committed as any others,
and no model is called for them. The shards that rows are copied from are read whole and checked against their
checksums first, since a copy of a damaged row would carry a good checksum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from ...cache.gather import gather
from ...cache.shards.format import checksum
from ...cache.shards.marker import check_hint
from ...cache.store import FeatureStore
from ...errors import IntegrityError
from ...models.transfer import HostArray
from ..planning.plan import Task
from ..planning.predecessors import held_by_all

TakenRows = Mapping[str, Mapping[str, HostArray]]
"""Feature -> key -> row. The rows of ``image`` are those of the task, found equal to the old ones."""


@dataclass
class Takeover:
    """Reads old rows.

    Attributes
    ----------
    stores
        Feature -> store of an earlier algorithm, from :func:`..planning.predecessors.find_predecessors`.
    """

    stores: Mapping[str, FeatureStore]
    _sound: set[tuple[str, str]] = field(default_factory=set)
    _checking: Lock = field(default_factory=Lock)

    def rows(self, task: Task, keys: Sequence[str], pixels: HostArray) -> TakenRows:
        """Return the old rows of what a task lacks that are still right.

        Parameters
        ----------
        task
            The task.
        keys, pixels
            Keys of its images, N, and the images (N, 3, S, S).

        Raises
        ------
        IntegrityError
            If a shard with such a row is damaged.
        """
        if "image" not in self.stores:
            return {}
        row_of = {key: number for number, key in enumerate(keys)}
        lacking = {key for wanted in task.missing.values() for key in wanted} & row_of.keys()
        same = self._unchanged([key for key in keys if key in lacking], row_of, pixels)
        taken = {}
        for feature, wanted in task.missing.items():
            candidates = [key for key in wanted if key in same]
            if feature == "image":
                taken[feature] = {key: pixels[row_of[key]] for key in candidates}
                continue
            mask = held_by_all([self.stores.get(feature)], candidates)
            held = [key for key, there in zip(candidates, mask.tolist(), strict=True) if there]
            if held:
                self._check(self.stores[feature], held)
                taken[feature] = dict(zip(held, gather(self.stores[feature], held), strict=True))
        return taken

    def _unchanged(self, keys: Sequence[str], row_of: Mapping[str, int], pixels: HostArray) -> set[str]:
        """Return the keys whose old image has the same pixels."""
        mask = held_by_all([self.stores["image"]], list(keys))
        held = [key for key, there in zip(keys, mask.tolist(), strict=True) if there]
        if not held:
            return set()
        old = gather(self.stores["image"], held)
        return {key for key, row in zip(held, old, strict=True) if np.array_equal(row, pixels[row_of[key]])}

    def _check(self, store: FeatureStore, keys: Sequence[str]) -> None:
        """Compare the shards that hold these rows with their checksums, each once."""
        index = store.index()
        for shard in sorted({index.shards[number] for number in index.locate(keys)[0].tolist()}):
            with self._checking:
                if (store.feature, shard) in self._sound:
                    continue
                marker = store.marker(shard)
                data = store.shards / marker.data
                if checksum(data) != (marker.bytes, marker.sha256):
                    raise IntegrityError(
                        f"{data}: does not have the size and checksum of its marker, so no row is taken over from it. "
                        f"{check_hint(data)} --repair"
                    )
                self._sound.add((store.feature, shard))
