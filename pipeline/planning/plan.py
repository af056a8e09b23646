"""Plan a build: which features are wanted, and one task per image shard that names only the missing rows.

A task is pure, idempotent and restartable: it holds keys and file names, never pixels, and its result depends on
nothing else. New images are divided into shards by split and in the order of their keys, which are hashes, so that a
shard mixes classes and generators. The division depends only on the keys that are missing, and finished shards are
whole pieces of it: a build that was killed continues with the same shards as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...cache.index.index import Index
from ...cache.shards.keys import KeyArray, binary_keys, hex_keys
from ...errors import UsageError

_Mask = NDArray[np.bool_]

FEATURES = ("image", "eps", "recon", "dire", "noise", "teacher")
PASS_FEATURES = ("eps", "recon", "dire", "noise")
"""Features of one fused pass of the ADM over the cached image."""
TRAIN_DEFAULT = ("image", "eps", "dire", "teacher")
OTHER_DEFAULT = ("image", "eps")


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


def routes(
    keys: Sequence[str], missing: Mapping[str, Collection[str]], one_call: Collection[str]
) -> dict[str, list[str]]:
    """Divide keys by the shortest route that gives all features that each of them lacks.

    The routes are ``path`` (inversion and sampling, for recon and dire), ``inversion`` (for noise over all steps) and
    ``first`` (one ADM call).

    Parameters
    ----------
    keys
        Keys of a task.
    missing
        Feature -> keys without a row.
    one_call
        Features that the first step of the inversion gives.

    Returns
    -------
    dict of str to list of str
        Route -> keys, in their order; without empty routes.
    """
    needing = {
        "path": [missing.get("recon", ()), missing.get("dire", ())],
        "inversion": [missing.get(feature, ()) for feature in ("eps", "noise") if feature not in one_call],
        "first": [missing.get(feature, ()) for feature in one_call],
    }
    lacking = {route: frozenset().union(*lists) for route, lists in needing.items()}
    divided: dict[str, list[str]] = {}
    for key in keys:
        for route, wanting in lacking.items():
            if key in wanting:
                divided.setdefault(route, []).append(key)
                break
    return divided


@dataclass(frozen=True)
class Plan:
    """All tasks, and for each feature how many samples need it and how many of these the cache lacks."""

    tasks: tuple[Task, ...]
    wanted: Mapping[str, int]
    missing: Mapping[str, int] = field(default_factory=dict)


def with_dependencies(wanted: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Add the features that the wanted ones (feature -> splits) need, and sort them in the order of computation.

    Every feature needs its image; the teacher needs DIRE.
    """
    everywhere: frozenset[str] = frozenset().union(*wanted.values()) if wanted else frozenset()
    full = dict(wanted)
    full["image"] = everywhere
    if "teacher" in full:
        full["dire"] = full.get("dire", frozenset()) | full["teacher"]
    return {feature: full[feature] for feature in FEATURES if full.get(feature)}


@dataclass(frozen=True)
class Samples:
    """The samples of a dataset.

    Attributes
    ----------
    keys
        Binary keys (N,), distinct and sorted.
    split
        int32 (N,), indices into ``splits``.
    splits
        Names of the splits, sorted.
    """

    keys: KeyArray
    split: NDArray[np.int32]
    splits: tuple[str, ...]

    @classmethod
    def of(cls, keys: Sequence[str] | KeyArray, splits: Sequence[str] | pa.ChunkedArray) -> Samples:
        """Make samples from two columns of equal length, in any order. A key that occurs repeatedly is in one split."""
        names = pa.chunked_array([splits]) if not isinstance(splits, pa.ChunkedArray) else splits
        coded = names.combine_chunks().dictionary_encode()
        distinct, first = np.unique(binary_keys(keys), return_index=True)
        found = coded.dictionary.to_pylist()
        number_of = {name: number for number, name in enumerate(sorted(found))}
        renumber = np.array([number_of[name] for name in found], np.int32)
        return cls(distinct, renumber[coded.indices.to_numpy()[first]], tuple(sorted(found)))

    def only(self, chosen: _Mask) -> Samples:
        """Return the samples that a bool mask (N,) selects."""
        return Samples(self.keys[chosen], self.split[chosen], self.splits)

    def within(self, splits: Collection[str]) -> _Mask:
        """Return a bool mask (N,) of the samples in these splits."""
        mask: _Mask = np.array([name in splits for name in self.splits], bool)[self.split]
        return mask


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
    image = indexes["image"]
    samples = samples.only(samples.within(wanted["image"]))
    shard_numbers = _shard_numbers(samples, shard_size)
    decodable = ~_among(samples.keys, list({*image.rejected, *unusable}))
    samples, shard_numbers = samples.only(decodable), shard_numbers[decodable]
    requested = {feature: samples.within(splits) for feature, splits in wanted.items()}
    shard, row = image.locate(samples.keys)
    lacking = {"image": shard < 0}
    for feature in wanted.keys() - {"image"}:
        lacking[feature] = requested[feature].copy()
        lacking[feature][requested[feature]] = indexes[feature].locate(samples.keys[requested[feature]])[0] < 0

    held = np.lexsort((row, shard))[np.count_nonzero(lacking["image"]) :]
    groups = [(image.shards[shard[piece[0]]], piece) for piece in _runs(held, shard)]
    new = np.flatnonzero(lacking["image"])
    for same_split in _runs(new[np.argsort(samples.split[new], kind="stable")], samples.split):
        groups += [(None, same_split[start : start + shard_size]) for start in range(0, len(same_split), shard_size)]
    if part is not None:
        groups = [group for group in groups if _shard_number(group[1], shard_numbers) % part.of == part.number - 1]

    incomplete = np.logical_or.reduce(list(lacking.values()))
    tasks = tuple(
        _task(image_shard, samples.keys[piece], {feature: lacking[feature][piece] for feature in wanted})
        for image_shard, piece in groups
        if incomplete[piece].any()
    )
    missing = {feature: sum(len(task.missing.get(feature, ())) for task in tasks) for feature in wanted}
    return Plan(tasks, _counts(requested), missing)


def _shard_numbers(samples: Samples, shard_size: int) -> NDArray[np.int64]:
    """Return for each sample (N,) the number of its shard in a build into an empty cache."""
    numbers = np.empty(len(samples.keys), np.int64)
    first = 0
    for split in range(len(samples.splits)):
        inside = np.flatnonzero(samples.split == split)
        numbers[inside] = first + np.arange(len(inside)) // shard_size
        first += -(-len(inside) // shard_size)
    return numbers


def _shard_number(piece: NDArray[np.intp], numbers: NDArray[np.int64]) -> int:
    """Return the number of a shard: that of its middle sample, which a few added or removed samples do not change."""
    return int(numbers[np.sort(piece)[len(piece) // 2]])


def _among(keys: KeyArray, few: Sequence[str]) -> _Mask:
    """Return a bool mask of the sorted, distinct keys that are among ``few``."""
    among = np.zeros(len(keys), bool)
    position = np.searchsorted(keys, binary_keys(few))
    inside = position < len(keys)
    position = position[inside]
    among[position[keys[position] == binary_keys(few)[inside]]] = True
    return among


def _runs(order: NDArray[np.intp], value: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Split indices where the value changes. No run is empty."""
    return np.split(order, np.flatnonzero(np.diff(value[order])) + 1) if len(order) else []


def _task(image_shard: str | None, keys: KeyArray, lacking: Mapping[str, _Mask]) -> Task:
    names = hex_keys(keys)
    missing = {
        feature: tuple(names[position] for position in np.flatnonzero(lacks))
        for feature, lacks in lacking.items()
        if lacks.any()
    }
    return Task(image_shard, tuple(names), missing)


def _counts(masks: Mapping[str, _Mask]) -> dict[str, int]:
    return {feature: int(np.count_nonzero(mask)) for feature, mask in masks.items()}


def parse_features(options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``--features``: ``["image,eps,dire", "test:image,eps"]`` -> ``{"*": (…), "test": (…)}``.

    A list without a split applies to every split without a list of its own.

    Raises
    ------
    UsageError
        For an unknown feature, an empty list, or two lists for one split.
    """
    lists: dict[str, tuple[str, ...]] = {}
    for option in options:
        split, colon, text = option.rpartition(":")
        split = split.strip() if colon else "*"
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        for name in names:
            if name not in FEATURES:
                raise UsageError(f"--features {option}: unknown feature {name!r}; there are {', '.join(FEATURES)}.")
        if not names or not split:
            raise UsageError(f"--features {option}: write a list such as image,eps or test:image,eps.")
        if split in lists:
            raise UsageError(f"--features {option}: the split {split!r} has a list already.")
        lists[split] = names
    return lists


def only_images(lists: dict[str, tuple[str, ...]]) -> bool:
    """Check whether only images are wanted, for any splits of the dataset. Then no diffusion model is needed."""
    return "*" in lists and {name for names in lists.values() for name in names} == {"image"}


def wanted_features(lists: dict[str, tuple[str, ...]], splits: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return feature -> splits for the splits of a dataset, with dependencies, in the order of computation.

    Without a list, train gets image, eps, dire and teacher, every other split image and eps. Raises UsageError if a
    list names a split that the dataset does not have.
    """
    present = sorted(set(splits))
    absent = sorted(set(lists) - {"*", *present})
    if absent:
        raise UsageError(
            f"--features {absent[0]}:…: the dataset has no split {absent[0]!r}, only {', '.join(present)}."
        )
    wanted: dict[str, set[str]] = {}
    for split in present:
        default = lists.get("*", TRAIN_DEFAULT if split == "train" else OTHER_DEFAULT)
        for feature in lists.get(split, default):
            wanted.setdefault(feature, set()).add(split)
    return with_dependencies({feature: frozenset(splits) for feature, splits in wanted.items()})
