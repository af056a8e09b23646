"""Plan a build: one task per image shard that names only the missing rows.

A task is pure, idempotent and restartable: it holds keys and file names, never pixels, and its result depends on
nothing else. New images are divided into shards by split and in the order of their keys, which are hashes, so that a
shard mixes classes and generators. The division depends only on the keys that are missing, and finished shards are
whole pieces of it: a build that was killed continues with the same shards as an undisturbed one.

Samples and tasks are on disk, see :mod:`...storage.disk_array`; memory holds a block of them at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...cache.index.index import Index
from ...cache.records.datasets import RowKinds
from ...cache.shards.keys import BINARY, KeyArray, binary_keys, hex_keys, keys_of_column
from ...errors import UsageError
from ...storage.disk_array import DiskArray, Records, group_starts, sort_records, whole_groups
from ...storage.lazy_sequence import LazySequence
from ..scan.rows import RowTable, ScannedRow

_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """The work on one image shard.

    Attributes
    ----------
    image_shard
        Id of the shard if the cache holds it; None if the images must be decoded first.
    keys
        Keys of the image rows, in row order.
    missing
        Feature -> the ordered subset of ``keys`` without a row in the cache. Complete features are left out.
    """

    image_shard: str | None
    keys: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PlanPartition:
    """Part ``number`` (1 to ``of``) of a plan that several builds divide among them without communication."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> PlanPartition:
        """Parse ``I/N``, such as ``2/8``. Raises UsageError for anything else."""
        number, _, of = text.partition("/")
        if not (_is_count(number) and _is_count(of) and 1 <= int(number) <= int(of)):
            raise UsageError(f"--array {text}: write I/N, the I-th of N parts, with I from 1 to N, such as 1/8.")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        """Return it as written on the command line."""
        return f"{self.number}/{self.of}"


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


@dataclass(frozen=True)
class Plan:
    """All tasks, and for each feature how many samples need it and how many of these the cache lacks."""

    tasks: Sequence[Task]
    wanted: Mapping[str, int]
    missing: Mapping[str, int] = field(default_factory=dict)


_SAMPLE = np.dtype([("key", BINARY), ("split", "<u2")])
_OCCURRENCE = np.dtype([("key", BINARY), ("row", ">u8"), ("split", ">u2")])


class Samples:
    """The samples of a dataset, sorted by key; on disk, see :mod:`...storage.disk_array`.

    Parameters
    ----------
    occurrences
        Sorted records of the rows, with the fields ``key``, ``row`` and ``split``. The first row of a key counts.
    splits
        The names that the numbers in ``split`` stand for.

    Attributes
    ----------
    splits
        Names of the splits, sorted.
    """

    def __init__(self, occurrences: DiskArray, splits: Sequence[str]) -> None:
        self.splits = tuple(sorted(set(splits)))
        number_of = {name: number for number, name in enumerate(self.splits)}
        renumber = np.array([number_of[name] for name in splits], np.uint16)
        self._samples = DiskArray(_SAMPLE)
        last = np.empty(0, BINARY)
        for block in occurrences.blocks():
            keys = np.concatenate([last, block["key"]])
            first = np.concatenate([np.ones(1 - len(last), bool), keys[1:] != keys[:-1]])
            samples = np.empty(np.count_nonzero(first), _SAMPLE)
            samples["key"], samples["split"] = block["key"][first], renumber[block["split"][first]]
            self._samples.append(samples)
            last = keys[-1:]

    @classmethod
    def of(cls, keys: Sequence[str] | KeyArray, splits: Sequence[str] | pa.ChunkedArray) -> Samples:
        """Make samples from two columns of equal length, in any order. A key that occurs repeatedly is in one split."""
        names = pa.chunked_array([splits]) if not isinstance(splits, pa.ChunkedArray) else splits
        coded = names.combine_chunks().dictionary_encode()
        occurrences = _occurrences(binary_keys(keys), coded.indices.to_numpy(), 0)
        return cls(sort_records([occurrences], _OCCURRENCE), coded.dictionary.to_pylist())

    @classmethod
    def of_pieces(cls, pieces: Iterable[pa.Table]) -> Samples:
        """Make samples from the pieces of a dataset's table, with the columns ``key`` and ``split``."""
        kinds = RowKinds(("split",))

        def occurrences() -> Iterator[Records]:
            start = 0
            for piece in pieces:
                yield _occurrences(keys_of_column(piece["key"]), kinds.numbers(piece), start)
                start += len(piece)

        ordered = sort_records(occurrences(), _OCCURRENCE)
        return cls(ordered, [split for (split,) in kinds.found])

    @classmethod
    def of_rows(cls, rows: Iterable[ScannedRow], without: Collection[str] = ()) -> Samples:
        """Make samples from the rows of a scan, leaving out the keys in ``without``."""
        table = RowTable.of(rows)
        names = sorted({kind.split for kind in table.kinds})
        split_of = np.array([names.index(kind.split) for kind in table.kinds], np.int64)
        left_out = binary_keys(list(without))

        def occurrences() -> Iterator[Records]:
            start = 0
            for block in table.blocks():
                found = _occurrences(block["key"], split_of[block["kind"]], start)
                start += len(block)
                yield found[~np.isin(block["key"], left_out)] if len(left_out) else found

        return cls(sort_records(occurrences(), _OCCURRENCE), names)

    def __len__(self) -> int:
        """Return the number of samples, which are distinct."""
        return len(self._samples)

    def blocks(self) -> Iterator[Records]:
        """Yield the samples in order, with the fields ``key`` and ``split``, an index into ``splits``."""
        return self._samples.blocks()

    def within(self, splits: Collection[str]) -> _Mask:
        """Return which of ``splits`` are among these, (splits,) bool."""
        return np.array([name in splits for name in self.splits], bool)

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split."""
        counts = np.zeros(len(self.splits), np.int64)
        for block in self.blocks():
            counts += np.bincount(block["split"], minlength=len(counts))
        return dict(zip(self.splits, counts.tolist(), strict=True))

    def keys_within(self, splits: Collection[str]) -> Iterator[KeyArray]:
        """Yield the keys of the samples in these splits, sorted, in several arrays."""
        inside = self.within(splits)
        for block in self.blocks():
            yield block["key"][inside[block["split"]]]


def _occurrences(keys: KeyArray, splits: NDArray[np.integer[Any]], first: int) -> Records:
    found = np.empty(len(keys), _OCCURRENCE)
    found["key"], found["split"] = keys, splits
    found["row"] = np.arange(first, first + len(keys))
    return found


_PLANNED = np.dtype([("group", ">u8"), ("row", ">u8"), ("number", ">u8"), ("missing", ">u4"), ("key", BINARY)])
"""A sample of a task: its group, its row there, its shard's number, and a bit for each feature that it lacks.

The group is the number of the image shard, or for new images ``_NEW`` and more: the split times ``_PIECES``, and the
number of the new shard.
"""
_NEW = 2**40
_PIECES = 2**40
_TASK_ROW = np.dtype([("key", BINARY), ("missing", ">u4")])


class TaskList(LazySequence[Task]):
    """The tasks of a plan, whose rows are on disk.

    Parameters
    ----------
    features
        The wanted features; the bits of ``missing`` are in their order.
    """

    def __init__(self, features: Iterable[str]) -> None:
        self._features = tuple(features)
        self._rows = DiskArray(_TASK_ROW)
        self._ends: list[int] = []
        self._image_shards: list[str | None] = []

    def add(self, image_shard: str | None, records: Records) -> None:
        """Add a task with these rows, which have the fields ``key`` and ``missing``."""
        rows = np.empty(len(records), _TASK_ROW)
        rows["key"], rows["missing"] = records["key"], records["missing"]
        self._rows.append(rows)
        self._ends.append(len(self._rows))
        self._image_shards.append(image_shard)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self._ends)

    def items(self, start: int, stop: int) -> list[Task]:
        """See :class:`LazySequence`."""
        return [self._task(number) for number in range(start, stop)]

    def __iter__(self) -> Iterator[Task]:
        """Yield the tasks, one of which is in memory at a time."""
        return map(self._task, range(len(self)))

    def missing(self) -> dict[str, int]:
        """Return for each feature the rows that all tasks lack."""
        counts = dict.fromkeys(self._features, 0)
        for block in self._rows.blocks():
            for number, feature in enumerate(self._features):
                counts[feature] += int(np.count_nonzero(block["missing"] >> number & 1))
        return counts

    def _task(self, number: int) -> Task:
        rows = self._rows.read(self._ends[number - 1] if number else 0, self._ends[number])
        names = hex_keys(rows["key"])
        missing = {}
        for bit, feature in enumerate(self._features):
            lacking = np.flatnonzero(rows["missing"] >> bit & 1)
            if len(lacking):
                missing[feature] = tuple(names[position] for position in lacking)
        return Task(self._image_shards[number], tuple(names), missing)


def make_plan(
    samples: Samples,
    wanted: Mapping[str, frozenset[str]],
    indexes: Mapping[str, Index],
    shard_size: int,
    part: PlanPartition | None = None,
    unusable: Collection[str] = (),
) -> Plan:
    """Compare the wanted rows with those in the cache.

    Parameters
    ----------
    samples
        Samples of the dataset.
    wanted
        Feature -> splits, with dependencies.
    indexes
        Feature -> index of the rows in the cache. Keys that image shards record as undecodable are not planned.
    shard_size
        Images in a new shard.
    part
        Plan only this part of the shards. A shard stays in the same part while others of the plan are finished.
    unusable
        Keys that are not planned either, though the cache may hold their images; see :mod:`...cache.set_aside`.
    """
    image_shards = indexes["image"].shards
    incomplete = np.zeros(len(image_shards) + 1, bool)  # the last: images that no shard holds
    counts = dict.fromkeys(wanted, 0)
    for found in _looked_up(samples, wanted, indexes, shard_size, unusable):
        incomplete[found.shard[found.missing != 0]] = True
        for feature, requested in found.requested.items():
            counts[feature] += int(np.count_nonzero(requested))

    def planned() -> Iterator[Records]:
        new = [0] * len(samples.splits)
        for found in _looked_up(samples, wanted, indexes, shard_size, unusable):
            group, row = found.shard.astype(np.int64), found.row.astype(np.int64)
            for split in range(len(samples.splits)):
                here = np.flatnonzero((found.shard < 0) & (found.split == split))
                place = np.arange(new[split], new[split] + len(here))
                group[here], row[here] = _NEW + split * _PIECES + place // shard_size, place % shard_size
                new[split] += len(here)
            records = np.empty(len(group), _PLANNED)
            columns = {"group": group, "row": row, "number": found.number, "missing": found.missing, "key": found.keys}
            for name, values in columns.items():
                records[name] = values
            yield records[incomplete[found.shard]]

    tasks = TaskList(wanted)
    for block in whole_groups(sort_records(planned(), _PLANNED).blocks(), "group") if incomplete.any() else ():
        for group in np.split(block, group_starts(block["group"])[1:]):
            if part is None or _shard_number(group) % part.of == part.number - 1:
                first = int(group["group"][0])
                tasks.add(None if first >= _NEW else image_shards[first], group)
    return Plan(tasks, counts, tasks.missing())


@dataclass(frozen=True)
class _LookedUp:
    """Samples that may be planned, and where the cache has them.

    Attributes
    ----------
    keys, split
        The samples, (N,).
    number
        int64 (N,), the number of each sample's shard in a build into an empty cache.
    shard, row
        int32 (N,), shard and row of its image; -1 if the cache lacks it.
    missing
        uint32 (N,), a bit for each wanted feature that the cache lacks.
    requested
        Feature -> bool (N,), whether it is wanted.
    """

    keys: KeyArray
    split: NDArray[np.uint16]
    number: NDArray[np.int64]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    missing: NDArray[np.uint32]
    requested: Mapping[str, _Mask]


def _looked_up(
    samples: Samples,
    wanted: Mapping[str, frozenset[str]],
    indexes: Mapping[str, Index],
    shard_size: int,
    unusable: Collection[str],
) -> Iterator[_LookedUp]:
    """Yield the samples in the order of their keys with what the cache has of them."""
    image = indexes["image"]
    left_out = np.sort(binary_keys(list({*image.rejected, *unusable})))
    within = {feature: samples.within(splits) for feature, splits in wanted.items()}
    sizes = [count if inside else 0 for count, inside in zip(samples.counts().values(), within["image"], strict=True)]
    shards = [-(-size // shard_size) for size in sizes]
    first = np.cumsum([0, *shards])
    before = np.zeros(len(sizes), np.int64)
    for block in samples.blocks():
        block = block[within["image"][block["split"]]]
        split = block["split"]
        number = np.empty(len(block), np.int64)
        for each in range(len(sizes)):
            here = np.flatnonzero(split == each)
            number[here] = first[each] + (before[each] + np.arange(len(here))) // shard_size
            before[each] += len(here)
        decodable = ~np.isin(block["key"], left_out) if len(left_out) else np.ones(len(block), bool)
        keys, split, number = block["key"][decodable], split[decodable], number[decodable]
        shard, row = image.locate(keys)
        missing = np.zeros(len(keys), np.uint32)
        requested = {feature: inside[split] for feature, inside in within.items()}
        for bit, feature in enumerate(wanted):
            lacks = shard < 0
            if feature != "image":
                asked = np.flatnonzero(requested[feature])
                lacks = np.zeros(len(keys), bool)
                lacks[asked] = indexes[feature].locate(keys[asked])[0] < 0
            missing |= lacks.astype(np.uint32) << np.uint32(bit)
        yield _LookedUp(keys, split, number, shard, row, missing, requested)


def _shard_number(group: Records) -> int:
    """Return the number of a shard: that of its middle sample, which a few added or removed samples do not change."""
    return int(group["number"][np.argsort(group["key"])[len(group) // 2]])
