"""A small cache whose features need no torch, built in increments as a real builder does it: lease, plan, commit, record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from distil_cache.cache.lease import lease
from distil_cache.cache.maintenance.trash import ensure_shards
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.choices import CodecChoice
from distil_cache.storage import AnyPath

SIDE = 4
NAME = "pictures"


class Picture(Spec):
    feature: Literal["image"] = "image"
    algorithm: Literal[1] = 1
    size: int = SIDE


class Noise(Spec):
    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    image: Picture = Picture()
    steps: str = "ddim20"


class Backbone(Spec):
    feature: Literal["teacher"] = "teacher"
    algorithm: Literal[1] = 1
    eps: Noise = Noise()
    backbone: str = "resnet50"
    views: tuple[str, ...] = ("identity", "hflip")


SPECS: Mapping[str, Spec] = {"image": Picture(), "eps": Noise(), "teacher": Backbone()}


def key_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()[:32]


def keys_of(numbers: Sequence[int]) -> list[str]:
    return [key_of(number) for number in numbers]


def train(*numbers: int) -> dict[str, str]:
    """The keys of these numbers, all in the split ``train``."""
    return dict.fromkeys(keys_of(numbers), "train")


def value_of(feature: str, key: str) -> np.ndarray:
    """One row of a feature, from the key alone."""
    rng = np.random.default_rng([int(key[:12], 16), len(feature)])
    if feature == "image":
        return rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    shape = (2, 5, 1, 1) if feature == "teacher" else (3, SIDE, SIDE)
    return rng.normal(size=shape).astype(np.float16)


def values_of(feature: str, keys: Sequence[str]) -> np.ndarray:
    return np.stack([value_of(feature, key) for key in keys])


def table_of(split_of: Mapping[str, str], **columns: object) -> pa.Table:
    rows = [
        dict.fromkeys(SCHEMA.names, "x")
        | {
            "key": key,
            "split": split,
            "label": int(key[0], 16) % 2,
            "width": 1,
            "height": 1,
            "bytes": 1,
            "source": "/pictures",
        }
        | columns
        for key, split in sorted(split_of.items())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def build(
    root: Path,
    split_of: Mapping[str, str],
    *,
    name: str = NAME,
    specs: Mapping[str, Spec] = SPECS,
    shard_rows: int = 512,
    rejected: Mapping[str, str] | None = None,
    form: str = "zarr",
    codec: CodecChoice = "auto",
) -> tuple[BuildRecord, dict[str, int]]:
    """Build a dataset as the real builder does; the teacher for the split train alone.

    rejected : keys that cannot be decoded, with the reason; they are no rows of the dataset.
    Returns the record and the number of rows computed for each feature.
    """
    cache = Cache.create(root)
    computed = dict.fromkeys(specs, 0)
    with lease(root, "build", [spec.folder for spec in specs.values()], name):
        stores = {feature: cache.feature(spec, form, codec) for feature, spec in specs.items()}
        image = stores["image"]
        bad = {key: why for key, why in (rejected or {}).items() if key not in image.index(refresh=True).rejected}
        for split in sorted(set(split_of.values())):
            absent = _absent(image, [key for key in split_of if split_of[key] == split])
            planned = sorted([*absent, *bad]) if bad else sorted(absent)
            for start in range(0, len(planned), shard_rows):
                piece = planned[start : start + shard_rows]
                stored = [key for key in piece if key not in bad]
                refused = {key: bad[key] for key in piece if key in bad}
                rows = values_of("image", stored) if stored else np.empty((0, 3, SIDE, SIDE), np.uint8)
                image.commit(piece, rows, keys=stored, rejected=refused)
                computed["image"] += len(stored)
            bad = {}
        for feature in list(specs)[1:]:
            _derive(stores[feature], image, _wanted(feature, split_of), computed)
        record = _record(cache, name, split_of, stores)
    return record, computed


def rows_lacking(root: Path, record: BuildRecord) -> int:
    """The rows that a build names and that are not there, or not what they were."""
    cache = Cache.open(root)
    table = cache.datasets().read(record.dataset, record.revision)
    split_of = dict(zip(table.column("key").to_pylist(), table.column("split").to_pylist(), strict=True))
    lacking = 0
    for feature, built in record.features.items():
        store = cache.open_feature(built.folder)
        for key, values in _stored(store, _wanted(feature, split_of)):
            lacking += values is None or not np.array_equal(values, value_of(feature, key))
    return lacking


def _absent(store: FeatureStore, keys: Sequence[str]) -> list[str]:
    numbers, _ = store.index(refresh=True).locate(keys)
    return [key for key, number in zip(keys, numbers.tolist(), strict=True) if number < 0]


def _stored(store: FeatureStore, keys: Sequence[str]) -> list[tuple[str, np.ndarray | None]]:
    index = store.index(refresh=True)
    places = zip(keys, *(numbers.tolist() for numbers in index.locate(keys)), strict=True)
    return [
        (key, None if shard < 0 else store.read(index.shards[shard], row, row + 1)[0]) for key, shard, row in places
    ]


def _wanted(feature: str, split_of: Mapping[str, str]) -> list[str]:
    return sorted(key for key, split in split_of.items() if feature != "teacher" or split == "train")


def _derive(store: FeatureStore, image: FeatureStore, keys: Sequence[str], computed: dict[str, int]) -> None:
    """Commit what a derived feature lacks, shard by shard of the image."""
    index = image.index(refresh=True)
    absent = _absent(store, keys)
    places = sorted(zip(*(numbers.tolist() for numbers in index.locate(absent)), absent, strict=True))
    for shard in sorted({shard for shard, _, _ in places}):
        piece = [key for number, _, key in places if number == shard]
        store.commit(piece, values_of(store.feature, piece))
        computed[store.feature] += len(piece)


def _record(cache: Cache, name: str, split_of: Mapping[str, str], stores: Mapping[str, FeatureStore]) -> BuildRecord:
    revision = cache.datasets().add(name, table_of(split_of))
    built = {}
    for feature, store in stores.items():
        index = store.index(refresh=True)
        numbers = sorted(set(index.locate(_wanted(feature, split_of))[0].tolist()))
        splits = ("train",) if feature == "teacher" else tuple(sorted(set(split_of.values())))
        built[feature] = BuiltFeature(
            fingerprint=store.fingerprint, folder=store.folder.name,
            shards=tuple(index.shards[number] for number in numbers), splits=splits,
        )  # fmt: skip
        ensure_shards(store, built[feature].shards)
    record = BuildRecord.new(name, revision, built, {})
    cache.builds().write(record)
    cache.datasets().move_head(name, revision)
    return record


def checksums(root: AnyPath) -> dict[str, str]:
    """Checksum of each shard, by feature and id."""
    return {
        f"{store.feature} {marker.shard}": marker.sha256
        for store in Cache.open(root).features()
        for marker in store.markers()
    }
