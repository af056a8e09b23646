"""A cache that is written in one go through the cache's own API: any specs, or simple ones with rows drawn at random. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache

SIDE = 32
SHARD_ROWS = 40
EVERYWHERE = ("image", "eps", "dire")

Row = dict[str, Any]


class Picture(Spec):
    feature: Literal["image"] = "image"
    algorithm: Literal[1, 2] = 1
    size: int = SIDE


class Eps(Spec):
    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    image: Picture = Picture()


class Dire(Spec):
    feature: Literal["dire"] = "dire"
    algorithm: Literal[1] = 1
    image: Picture = Picture()
    steps: str = "ddim20"


class Teacher(Spec):
    feature: Literal["teacher"] = "teacher"
    algorithm: Literal[1] = 1
    dire: Dire = Dire()
    views: tuple[str, ...] = ("identity", "hflip")


def rows(split: str, real: int, fake: Mapping[str, int], *, group: str = "scenes", real_of: str = "") -> list[Row]:
    """Rows of one split; the reals carry ``real_of`` as their generator."""
    found = [_row(f"{split} real {group} {real_of} {n}", 0, split, real_of, group) for n in range(real)]
    for generator, count in fake.items():
        found += [_row(f"{split} {generator} {group} {n}", 1, split, generator, group) for n in range(count)]
    return found


def make_cache(
    root: Path, table: Sequence[Row], *, steps: str = "ddim20", image_algorithm: Literal[1, 2] = 1, **options: Any
) -> tuple[Cache, BuildRecord]:
    """Write image, eps, dire and teacher with rows that follow from their keys; ``options`` as of :func:`write_cache`."""
    image = Picture(algorithm=image_algorithm)
    dire = Dire(steps=steps, image=image)
    specs = {"image": image, "eps": Eps(image=image), "dire": dire, "teacher": Teacher(dire=dire)}
    return write_cache(root, table, specs, _value_of, **options)


def write_cache(
    root: Path,
    table: Sequence[Row],
    specs: Mapping[str, Spec],
    value_of: Callable[[str, str, int], np.ndarray],
    *,
    features: Mapping[str, Sequence[str]] | None = None,
    name: str = "pictures",
    shard_rows: int = SHARD_ROWS,
    form: str = "zarr",
) -> tuple[Cache, BuildRecord]:
    """Write a dataset, its features and the build record.

    value_of : a row of a feature, from feature, key and label. features : feature -> splits; by default the teacher for
    train and all others for every split.
    """
    cache = Cache.create(root)
    revision = cache.datasets().write(name, pa.Table.from_pylist(list(table), schema=SCHEMA))
    splits = sorted({row["split"] for row in table})
    wanted = features or {**dict.fromkeys(EVERYWHERE, splits), "teacher": ["train"]}
    split_of = {row["key"]: row["split"] for row in table}
    label_of = {row["key"]: row["label"] for row in table}
    built = {}
    for feature, of_splits in wanted.items():
        store = cache.feature(specs[feature], form)
        shards = []
        for split in splits:
            keys = sorted(key for key, where in split_of.items() if where == split and where in of_splits)
            for start in range(0, len(keys), shard_rows):
                piece = keys[start : start + shard_rows]
                values = np.stack([value_of(feature, key, label_of[key]) for key in piece])
                shards.append(store.commit(piece, values).shard)
        built[feature] = BuiltFeature(
            fingerprint=store.fingerprint, folder=store.folder.name, shards=tuple(shards), splits=tuple(of_splits)
        )
    record = BuildRecord.new(name, revision, built, {})
    cache.builds().write(record)
    return cache, record


def _row(text: str, label: int, split: str, generator: str, group: str) -> Row:
    return {
        "key": hashlib.sha256(text.encode()).hexdigest()[:32],
        "source": "pictures folder",
        "path": f"{text}.png",
        "label": label,
        "split": split,
        "generator": generator,
        "family": "diffusion" if label else "",
        "group": group,
        "width": SIDE,
        "height": SIDE,
        "format": "PNG",
        "bytes": 1,
    }


def _value_of(feature: str, key: str, label: int) -> np.ndarray:
    rng = np.random.default_rng([int(key[:12], 16), len(feature)])
    if feature in ("image", "dire"):
        return rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    shape = (2, 128, 4, 4) if feature == "teacher" else (3, SIDE, SIDE)
    return rng.normal(size=shape).astype(np.float16)
