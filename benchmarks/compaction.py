"""Reading a feature that fifty small builds left, before and after `cache compact`, against one that a single build left.

    python benchmarks/compaction.py [--rounds 7]

Opening the feature and reading every row once, in blocks of 64 neighbours, as a training does; 500 rows of eps at 128 pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from compare import Comparison, compare, conditions, show
from distil_cache.cache.gather import read_rows
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.images.spec import ImageSpec

SIDE = 128
INCREMENTS = 50
ROWS = 10
BLOCK = 64


def specs() -> dict[str, Spec]:
    image = ImageSpec(size=SIDE)
    return {"image": image, "eps": EpsSpec(image=image, adm=AdmIdentity(weights="0" * 64, flags={}))}


def rows_of(feature: str, keys: list[str]) -> np.ndarray:
    rng = np.random.default_rng(int(keys[0], 16))
    if feature == "image":
        return rng.integers(0, 256, (len(keys), 3, SIDE, SIDE), dtype=np.uint8)
    return rng.standard_normal((len(keys), 3, SIDE, SIDE)).astype(np.float16)


def table_of(keys: list[str]) -> pa.Table:
    plain = dict.fromkeys(SCHEMA.names, "x") | {"split": "train", "label": 0, "width": 1, "height": 1, "bytes": 1}
    return pa.Table.from_pylist([plain | {"key": key} for key in keys], schema=SCHEMA)


def make(folder: Path, pieces: list[list[str]]) -> Cache:
    """A cache with one shard a piece and feature, and a dataset that uses them."""
    cache = Cache.create(folder)
    for piece in pieces:
        for feature, spec in specs().items():
            cache.feature(spec).commit(piece, rows_of(feature, piece))
    cache.datasets().write("benchmark", table_of(sorted(key for piece in pieces for key in piece)))
    return cache


def reading(cache: Cache, keys: list[str]) -> Callable[[], None]:
    """Open eps and read all rows in the order of storage."""
    folder = cache.root / "features" / specs()["eps"].folder

    def run() -> None:
        store = FeatureStore(folder)
        shard, row = store.index().locate(keys)
        order = np.lexsort((row, shard))
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            read_rows(store, store.index().shards, shard[block], row[block])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    digits = np.random.default_rng(0).bytes(16 * INCREMENTS * ROWS).hex()
    keys = [digits[start : start + 32] for start in range(0, len(digits), 32)]
    pieces = [sorted(keys[start : start + ROWS]) for start in range(0, len(keys), ROWS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, many, merged = (
            make(folder / "one", [sorted(keys)]),
            make(folder / "many", pieces),
            make(folder / "merged", pieces),
        )
        compact(merged)
        ways = {"one build": one, "fifty increments, compacted": merged, "fifty increments": many}
        comparison = Comparison(
            f"opening and reading one eps row of {SIDE} pixels, {len(keys)} in all",
            {way: reading(cache, keys) for way, cache in ways.items()},
            len(keys),
        )
        print(", ".join(f"{name} {value}" for name, value in conditions().items()), "\n")
        show(comparison, compare(comparison, options.rounds))


if __name__ == "__main__":
    main()
