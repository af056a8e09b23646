"""The plan in plain Python, sample by sample: what the vectorised one must give for any input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from distil_cache.cache.index.index import Index
from distil_cache.pipeline.planning.plan import Plan, Task


def plain_plan(
    split_of: Mapping[str, str],
    wanted: Mapping[str, frozenset[str]],
    indexes: Mapping[str, Index],
    shard_size: int,
) -> Plan:
    """As ``make_plan``, from a mapping of keys to splits."""
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
