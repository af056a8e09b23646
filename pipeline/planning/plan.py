"""What a build has to do: one task an image shard, each naming just the rows that are missing.

A task is pure, idempotent and restartable: it holds keys and file names, never pixels, and what it makes depends on
nothing else. New images are cut into shards by split and in the order of their keys, which is the order of a hash and
so mixes classes and generators. The cut depends only on the keys that are not there yet, and finished shards are whole
pieces of it: a build that was killed goes on with the very pieces that an undisturbed one would have made.
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
"""Made by one fused pass of the ADM over the cached image."""


@dataclass(frozen=True)
class Task:
    """The work on one image shard.

    image_shard : id of the shard if the cache holds it, else None: then ``keys`` are decoded from ``files`` first.
    keys : the image rows that the task looks at, in row order.
    missing : feature -> the ordered subset of ``keys`` whose row the cache lacks (features without gaps are left out).
    """

    image_shard: str | None
    keys: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PlanPartition:
    """Part ``number`` (1 to ``of``) of a plan that several builds share out among them, without talking to each other."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> PlanPartition:
        """``2/8`` -> the second of eight. UsageError for anything else."""
        number, _, of = text.partition("/")
        if not (_is_count(number) and _is_count(of) and 1 <= int(number) <= int(of)):
            raise UsageError(f"--array {text}: write I/N, the I-th of N parts, with I from 1 to N, such as 1/8.")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        """Return the form in which it is asked for."""
        return f"{self.number}/{self.of}"


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def routes(
    keys: Sequence[str], missing: Mapping[str, Collection[str]], one_call: Collection[str]
) -> dict[str, list[str]]:
    """Divide keys by the shortest route that makes all that each of them lacks.

    one_call : the pass features that the first step of the inversion gives. Routes: ``path`` (inversion and sampling, for
    recon and dire), ``inversion`` (for noise over all steps), ``first``. Order is kept, empty routes are left out.
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
    """All tasks, and for each feature how many samples want it and how many the cache lacks."""

    tasks: tuple[Task, ...]
    wanted: Mapping[str, int]
    missing: Mapping[str, int] = field(default_factory=dict)


def with_dependencies(wanted: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Add what the wanted features are made of: every feature needs its image, the teacher needs DIRE.

    wanted : feature -> splits. Returns the same in the order of computation.
    """
    everywhere: frozenset[str] = frozenset().union(*wanted.values()) if wanted else frozenset()
    full = dict(wanted)
    full["image"] = everywhere
    if "teacher" in full:
        full["dire"] = full.get("dire", frozenset()) | full["teacher"]
    return {feature: full[feature] for feature in FEATURES if full.get(feature)}


@dataclass(frozen=True)
class Samples:
    """The samples of a dataset: keys (N,) binary, distinct and sorted; split (N,) numbers of the names in ``splits``."""

    keys: KeyArray
    split: NDArray[np.int32]
    splits: tuple[str, ...]

    @classmethod
    def of(cls, keys: Sequence[str] | KeyArray, splits: Sequence[str] | pa.ChunkedArray) -> Samples:
        """Take them from two columns of equal length, in any order; a key that is there often is in one split."""
        names = pa.chunked_array([splits]) if not isinstance(splits, pa.ChunkedArray) else splits
        coded = names.combine_chunks().dictionary_encode()
        distinct, first = np.unique(binary_keys(keys), return_index=True)
        found = coded.dictionary.to_pylist()
        place = {name: number for number, name in enumerate(sorted(found))}
        renumber = np.array([place[name] for name in found], np.int32)
        return cls(distinct, renumber[coded.indices.to_numpy()[first]], tuple(sorted(found)))

    def only(self, chosen: _Mask) -> Samples:
        """Return the chosen ones, a mask (N,)."""
        return Samples(self.keys[chosen], self.split[chosen], self.splits)

    def within(self, splits: Collection[str]) -> _Mask:
        """Say of each sample whether its split is one of these."""
        mask: _Mask = np.array([name in splits for name in self.splits], bool)[self.split]
        return mask


def make_plan(
    samples: Samples,
    wanted: Mapping[str, frozenset[str]],
    indexes: Mapping[str, Index],
    shard_size: int,
    part: PlanPartition | None = None,
) -> Plan:
    """Compare what is wanted with what the cache holds.

    wanted : feature -> splits (with its dependencies).
    indexes : feature -> index of the rows that its spec's folder holds. Keys that the image shards record as
        undecodable are wanted by nobody.
    part : plan only these shards. Whatever of the plan is finished meanwhile, a shard stays in the same part.
    """
    image = indexes["image"]
    samples = samples.only(samples.within(wanted["image"]))
    places = _places(samples, shard_size)
    decodable = ~_among(samples.keys, list(image.rejected))
    samples, places = samples.only(decodable), places[decodable]
    asked = {feature: samples.within(splits) for feature, splits in wanted.items()}
    shard, row = image.locate(samples.keys)
    lacking = {"image": shard < 0}
    for feature in wanted.keys() - {"image"}:
        lacking[feature] = asked[feature].copy()
        lacking[feature][asked[feature]] = indexes[feature].locate(samples.keys[asked[feature]])[0] < 0

    held = np.lexsort((row, shard))[np.count_nonzero(lacking["image"]) :]
    groups = [(image.shards[shard[piece[0]]], piece) for piece in _runs(held, shard)]
    new = np.flatnonzero(lacking["image"])
    for same_split in _runs(new[np.argsort(samples.split[new], kind="stable")], samples.split):
        groups += [(None, same_split[start : start + shard_size]) for start in range(0, len(same_split), shard_size)]
    if part is not None:
        groups = [group for group in groups if _place_of(group[1], places) % part.of == part.number - 1]

    incomplete = np.logical_or.reduce(list(lacking.values()))
    tasks = tuple(
        _task(image_shard, samples.keys[piece], {feature: lacking[feature][piece] for feature in wanted})
        for image_shard, piece in groups
        if incomplete[piece].any()
    )
    missing = {feature: sum(len(task.missing.get(feature, ())) for task in tasks) for feature in wanted}
    return Plan(tasks, _counts(asked), missing)


def _places(samples: Samples, shard_size: int) -> NDArray[np.int64]:
    """Number the shards that a cache without any of these samples would get, and return each sample's number, (N,)."""
    places = np.empty(len(samples.keys), np.int64)
    first = 0
    for split in range(len(samples.splits)):
        inside = np.flatnonzero(samples.split == split)
        places[inside] = first + np.arange(len(inside)) // shard_size
        first += -(-len(inside) // shard_size)
    return places


def _place_of(piece: NDArray[np.intp], places: NDArray[np.int64]) -> int:
    """Return the number of a shard: that of its middle sample, which a few that left or came do not change."""
    return int(places[np.sort(piece)[len(piece) // 2]])


def _among(keys: KeyArray, few: Sequence[str]) -> _Mask:
    """Say of each of the sorted, distinct keys whether it is one of a few."""
    among = np.zeros(len(keys), bool)
    place = np.searchsorted(keys, binary_keys(few))
    inside = place < len(keys)
    place = place[inside]
    among[place[keys[place] == binary_keys(few)[inside]]] = True
    return among


def _runs(order: NDArray[np.intp], value: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Cut an order where the value changes. No run is empty."""
    return np.split(order, np.flatnonzero(np.diff(value[order])) + 1) if len(order) else []


def _task(image_shard: str | None, keys: KeyArray, lacking: Mapping[str, _Mask]) -> Task:
    names = hex_keys(keys)
    missing = {
        feature: tuple(names[place] for place in np.flatnonzero(lacks))
        for feature, lacks in lacking.items()
        if lacks.any()
    }
    return Task(image_shard, tuple(names), missing)


def _counts(masks: Mapping[str, _Mask]) -> dict[str, int]:
    return {feature: int(np.count_nonzero(mask)) for feature, mask in masks.items()}


TRAIN_DEFAULT = ("image", "eps", "dire", "teacher")
OTHER_DEFAULT = ("image", "eps")


def parse_features(options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``["image,eps,dire", "test:image,eps"]`` -> ``{"*": (…), "test": (…)}``.

    A list without a split is for every split that has no list of its own. Raises UsageError for an unknown feature, an
    empty list, or two lists for one split.
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
    """Say whether the lists ask for images alone, whatever splits a dataset has. Then no diffusion model is needed."""
    return "*" in lists and {name for names in lists.values() for name in names} == {"image"}


def wanted_features(lists: dict[str, tuple[str, ...]], splits: Iterable[str]) -> dict[str, frozenset[str]]:
    """Feature -> splits for the splits that the dataset has, with dependencies, in order of computation.

    Without a list, train gets image, eps, dire and teacher, every other split image and eps. Raises UsageError if a
    list names a split that the dataset lacks.
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
