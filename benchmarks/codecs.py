"""Compare codecs for the features of a real cache: bytes a sample, and how fast rows are written and read.

    python benchmarks/codecs.py CACHE... [--rows 512] [--rounds 3] [--json FILE]

The rows are cut into chunks as a zarr shard cuts them, each chunk is encoded by itself, and all go to one file. Speeds are
megabytes of rows for each second of one processor, from memory to the file and back: waiting for the disk does not count,
so a busy machine will do. The last lines of each feature are whole shards as the cache writes and reads them, with their
checksums and the checks of their values.
Every way gives the rows back to the bit, or the program ends with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import numpy as np
from compare import first_rows
from distil_cache.cache.shards.zarr import chunk_rows
from distil_cache.cache.store import FORMATS, Cache, FeatureStore, default_tail
from numcodecs import Blosc

Rows = np.ndarray[Any, Any]
Way = Callable[[Path, Rows], tuple[int, float, float]]
SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


class Line(NamedTuple):
    """One measurement."""

    feature: str
    way: str
    bytes_per_sample: float
    write: float
    read: float


def candidates(itemsize: int) -> dict[str, Any]:
    """Name -> codec with ``encode`` and ``decode``; all are lossless. Bytes cannot be shuffled, only their bits."""
    found: dict[str, Any] = {"none": None}
    for name, level in (("lz4", 5), ("lz4hc", 3), ("zstd", 1), ("zstd", 3), ("zstd", 5)):
        for shuffle, number in SHUFFLES.items():
            if itemsize > 1 or shuffle != "shuffle":
                found[f"{name}-{level}-{shuffle}"] = Blosc(name, level, number)
    return found


def chunked(codec: Any) -> Way:
    """Encode chunk by chunk into a file, and back."""

    def run(folder: Path, rows: Rows) -> tuple[int, float, float]:
        chunks = list(chunks_of(rows))
        path = folder / "chunks"
        began = time.process_time()
        sizes = []
        with path.open("wb") as file:
            for chunk in chunks:
                data = chunk.tobytes() if codec is None else codec.encode(chunk)
                file.write(data)
                sizes.append(len(data))
        wrote = time.process_time()
        with path.open("rb") as file:
            back = [
                np.frombuffer(raw if codec is None else codec.decode(raw), rows.dtype) for raw in map(file.read, sizes)
            ]
        read = time.process_time()
        assert all(one.tobytes() == other.tobytes() for one, other in zip(chunks, back, strict=True))
        return sum(sizes), wrote - began, read - wrote

    return run


def chunks_of(rows: Rows) -> list[Rows]:
    """Cut rows as a zarr shard does: some rows together, and of rows with views one view."""
    tail = default_tail(rows.shape[1:])
    step = chunk_rows(rows, tail)
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    if tail == rows.shape[1:]:
        return [np.ascontiguousarray(block) for block in blocks]
    return [np.ascontiguousarray(block[:, view]) for block in blocks for view in range(rows.shape[1])]


def committed(source: FeatureStore, form: str) -> Way:
    """A shard of a new cache, written with ``commit`` and read with ``read``."""

    def run(folder: Path, rows: Rows) -> tuple[int, float, float]:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            target = Path(name) / source.folder.name
            (target / "shards").mkdir(parents=True)
            (target / "spec.json").write_bytes((source.folder / "spec.json").read_bytes())
            store = FeatureStore(target, form)
            began = time.process_time()
            marker = store.commit([f"{number:032x}" for number in range(len(rows))], rows)
            wrote = time.process_time()
            back = store.read(marker.shard)
            read = time.process_time()
            assert back.tobytes() == rows.tobytes()
            return marker.bytes, wrote - began, read - wrote

    return run


def measure(store: FeatureStore, rows: Rows, folder: Path, rounds: int) -> list[Line]:
    """Every way in turn, ``rounds`` times; medians."""
    ways: dict[str, Way] = {name: chunked(codec) for name, codec in candidates(rows.dtype.itemsize).items()}
    ways |= {f"{form} shard": committed(store, form) for form in FORMATS}
    results: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            results[name].append(way(folder, rows))
    megabytes = rows.nbytes / 1e6
    lines = []
    for name, found in results.items():
        size, wrote, read = (statistics.median(values) for values in zip(*found, strict=True))
        title = f"{store.feature} {rows.dtype} {'x'.join(map(str, rows.shape[1:]))}"
        lines.append(Line(title, name, size / len(rows), megabytes / wrote, megabytes / read))
    return lines


def show(lines: list[Line]) -> None:
    print(f"{lines[0].feature}\n{'':22}{'bytes a sample':>15}{'write MB/s':>12}{'read MB/s':>11}")
    for line in lines:
        print(f"  {line.way:20}{line.bytes_per_sample:15,.0f}{line.write:12,.0f}{line.read:11,.0f}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, numcodecs {numcodecs.__version__}\n")
    lines = []
    with tempfile.TemporaryDirectory() as name:
        for store in (
            store for cache in options.caches for store in Cache.open(cache).features() if store.marker_ids()
        ):
            found = measure(store, first_rows(store, options.rows), Path(name), options.rounds)
            show(found)
            lines += found
    if options.json:
        options.json.write_text(json.dumps([line._asdict() for line in lines], indent=2) + "\n")


if __name__ == "__main__":
    main()
