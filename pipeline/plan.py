"""What a build has to do: one task an image shard, each naming just the rows that are missing.

A task is pure, idempotent and restartable: it holds keys and file names, never pixels, and what it makes depends on
nothing else. New images are cut into shards by split and in the order of their keys, which is the order of a hash and
so mixes classes and generators. The cut depends only on the keys that are not there yet, and finished shards are whole
pieces of it: a build that was killed goes on with the very pieces that an undisturbed one would have made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..cache.index import Index

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


def make_plan(
    split_of: Mapping[str, str],
    wanted: Mapping[str, frozenset[str]],
    indexes: Mapping[str, Index],
    shard_size: int,
) -> Plan:
    """Compare what is wanted with what the cache holds.

    split_of : key -> split, for every sample of the dataset.
    wanted : feature -> splits (with its dependencies).
    indexes : feature -> index of the rows that its spec's folder holds. Keys that the image shards record as
        undecodable are wanted by nobody.
    """
    image = indexes["image"]
    rejected = image.rejected
    keys = sorted(key for key in split_of if key not in rejected and split_of[key] in wanted["image"])
    shard_numbers, rows = image.locate(keys)

    new: defaultdict[str, list[str]] = defaultdict(list)
    held: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for key, shard_number, row in zip(keys, shard_numbers.tolist(), rows.tolist(), strict=True):
        if shard_number < 0:
            new[split_of[key]].append(key)
        else:
            held[shard_number].append((row, key))

    groups: list[tuple[str | None, tuple[str, ...]]] = [
        (image.shards[number], tuple(key for _, key in sorted(held[number]))) for number in sorted(held)
    ]
    for split in sorted(new):
        groups += [(None, piece) for piece in _cut(new[split], shard_size)]

    tasks = []
    missing_counts = dict.fromkeys(wanted, 0)
    for image_shard, piece in groups:
        missing = _missing(piece, split_of, wanted, indexes, is_new=image_shard is None)
        for feature, gaps in missing.items():
            missing_counts[feature] += len(gaps)
        if missing:
            tasks.append(Task(image_shard, piece, missing))

    counts = {feature: sum(split_of[key] in splits for key in keys) for feature, splits in wanted.items()}
    return Plan(tuple(tasks), counts, missing_counts)


def _cut(keys: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(keys[start : start + size]) for start in range(0, len(keys), size))


def _missing(
    piece: tuple[str, ...],
    split_of: Mapping[str, str],
    wanted: Mapping[str, frozenset[str]],
    indexes: Mapping[str, Index],
    *,
    is_new: bool,
) -> dict[str, tuple[str, ...]]:
    missing: dict[str, tuple[str, ...]] = {}
    for feature, splits in wanted.items():
        if feature == "image":
            gaps = piece if is_new else ()
        else:
            asked = [key for key in piece if split_of[key] in splits]
            shard_numbers, _ = indexes[feature].locate(asked)
            gaps = tuple(key for key, number in zip(asked, shard_numbers.tolist(), strict=True) if number < 0)
        if gaps:
            missing[feature] = gaps
    return missing
