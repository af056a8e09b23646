"""Writing and reading one row of eps at 256 pixels: flat files against committed shards of both formats."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
from compare import Comparison
from distil_cache.cache.store import FORMATS, Cache, FeatureStore
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.images.spec import ImageSpec

SIDE = 256
ROWS = 128
BLOCK = 32


def shard_comparisons(folder: Path) -> list[Comparison]:
    """Reading and writing."""
    rows = np.random.default_rng(0).standard_normal((ROWS, 3, SIDE, SIDE)).astype(np.float16)
    return [_reading(folder, rows), _writing(folder, rows)]


def eps_store(folder: Path, rows: np.ndarray, form: str) -> tuple[FeatureStore, str]:
    """A cache with one shard of float16 noise."""
    spec = EpsSpec(image=ImageSpec(size=SIDE), adm=AdmIdentity(weights="0" * 64, flags={}))
    store = Cache.create(folder).feature(spec, form)
    return store, store.commit([f"{number:032x}" for number in range(len(rows))], rows).shard


def _reading(folder: Path, rows: np.ndarray) -> Comparison:
    flat = folder / "flat"
    rows.tofile(flat)
    mapped = np.memmap(flat, rows.dtype, "r", shape=rows.shape)
    order = np.random.default_rng(0).permutation(len(rows))
    starts = range(0, len(rows), BLOCK)
    ways: dict[str, Callable[[], object]] = {
        f"numpy.memmap, blocks of {BLOCK}": lambda: [np.array(mapped[start : start + BLOCK]) for start in starts]
    }
    for form in FORMATS:
        store, shard = eps_store(folder / form, rows, form)
        ways[f"{form}, blocks of {BLOCK}"] = _blocks(store, shard, starts)
        ways[f"{form}, single rows at random"] = _singles(store, shard, order)
    return Comparison(f"reading one eps row of {SIDE} pixels", ways, ROWS)


def _blocks(store: FeatureStore, shard: str, starts: range) -> Callable[[], object]:
    return lambda: [store.read(shard, start, start + BLOCK) for start in starts]


def _singles(store: FeatureStore, shard: str, order: np.ndarray) -> Callable[[], object]:
    return lambda: [store.read(shard, int(row), int(row) + 1) for row in order]


def _writing(folder: Path, rows: np.ndarray) -> Comparison:
    number = count()

    def flat() -> None:
        with (folder / "written").open("wb") as file:
            rows.tofile(file)

    def committed(form: str) -> Callable[[], object]:
        return lambda: eps_store(folder / f"new-{next(number)}", rows, form)

    return Comparison(
        f"writing one eps row of {SIDE} pixels",
        {"flat file": flat, **{f"{form}, committed": committed(form) for form in FORMATS}},
        ROWS,
    )
