"""Compare ways to do the same work, in one process, in interleaved rounds; print medians and the ratio to the first way.

    python benchmarks/run.py [--rounds 5] [--json FILE]

Machines are noisy: read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.pipeline.adm_weights import load_adm
from distil_cache.pipeline.image_spec import ImageSpec
from distil_cache.pipeline.specs import AdmIdentity, EpsSpec

Ways = dict[str, Callable[[], object]]

SIDE = 256
ROWS = 128
BLOCK = 32


def compare(ways: Ways, items: int, rounds: int) -> dict[str, float]:
    """Run each way once to warm up, then ``rounds`` times in turn; return the median milliseconds an item."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - began) / items * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def adm_ways() -> Ways:
    """Eight images through the shipped ADM, one at a time and in batches."""
    adm = load_adm("demo").model
    x, t = torch.randn(8, 3, 32, 32), torch.full((8,), 50)

    def in_batches(size: int) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                for part, steps in zip(x.split(size), t.split(size), strict=True):
                    adm(part, steps)

        return run

    return {f"ADM demo, batch {size}": in_batches(size) for size in (1, 4, 8)}


def eps_store(folder: Path, rows: np.ndarray) -> tuple[FeatureStore, str]:
    """A cache with one shard of float16 noise of 256 pixels."""
    spec = EpsSpec(image=ImageSpec(size=SIDE), adm=AdmIdentity(weights="0" * 64, flags={}))
    store = Cache.create(folder).feature(spec)
    return store, store.commit([f"{number:032x}" for number in range(len(rows))], rows).shard


def read_ways(folder: Path, rows: np.ndarray) -> Ways:
    """Every row of a shard once: from a flat file, in contiguous blocks, and one by one in a random order."""
    store, shard = eps_store(folder / "cache", rows)
    flat = folder / "flat"
    rows.tofile(flat)
    mapped = np.memmap(flat, rows.dtype, "r", shape=rows.shape)
    order = np.random.default_rng(0).permutation(len(rows))
    starts = range(0, len(rows), BLOCK)
    return {
        f"numpy.memmap, blocks of {BLOCK}": lambda: [np.array(mapped[start : start + BLOCK]) for start in starts],
        f"zarr shard, blocks of {BLOCK}": lambda: [store.read(shard, start, start + BLOCK) for start in starts],
        "zarr shard, single rows at random": lambda: [store.read(shard, int(row), int(row) + 1) for row in order],
    }


def write_ways(folder: Path, rows: np.ndarray) -> Ways:
    """One shard: as a flat file flushed to the disk, and as a committed shard of a new cache."""
    counter = iter(range(1_000_000))

    def flat() -> None:
        with (folder / "written").open("wb") as file:
            rows.tofile(file)

    return {
        "flat file": flat,
        "committed zarr shard": lambda: eps_store(folder / f"new-{next(counter)}", rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = np.random.default_rng(0).standard_normal((ROWS, 3, SIDE, SIDE)).astype(np.float16)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        comparisons = [
            ("an image and ADM call, 32 pixels", adm_ways(), 8),
            (f"reading one eps row of {SIDE} pixels", read_ways(folder, rows), ROWS),
            (f"writing one eps row of {SIDE} pixels", write_ways(folder, rows), ROWS),
        ]
        print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
        for title, ways, items in comparisons:
            medians = compare(ways, items, options.rounds)
            first = next(iter(medians.values()))
            print(f"{title}\n{'':38}{'ms':>8}{'ratio':>8}")
            for way, median in medians.items():
                print(f"  {way:36}{median:8.3f}{median / first:8.2f}")
                results.append({"comparison": title, "way": way, "ms": median, "ratio": median / first})
            print()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
