"""Samples a second that reach a training from a cache on a disk, in an object store, and by way of a local copy.

    python benchmarks/remote_loader.py [--samples 384] [--size 256] [--shard-rows 64] [--delay-ms 20] [--json FILE]

The store is that of ``delayed_store``: a server on loopback behind a proxy that holds each request back.

Batches of 64 with `image` (uint8) and `eps` (float16) in the order of a training, nothing is done with them. ``row by
row`` is by ranges too, but by one thread and with a request for each row, as a reader would that does not know where it
reads. Requests are those of the epoch, with the opening of the shards in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from delayed_store import BUCKET, delayed_store
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.store import Cache
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.images.spec import ImageSpec
from distil_cache.storage import AnyPath, to_path

BATCH = 64
NAME = "simulated"


def make(root: Path, samples: int, size: int, shard_rows: int) -> None:
    """Write a cache of smooth pictures and of noise."""
    cache = Cache.create(root)
    rng = np.random.default_rng(0)
    keys = sorted(rng.bytes(16).hex() for _ in range(samples))
    row = {"source": "s", "path": "p", "generator": "", "family": "", "group": "g", "format": "PNG", "bytes": 1}
    table = [
        {**row, "key": key, "label": place % 2, "split": "train", "width": size, "height": size}
        for place, key in enumerate(keys)
    ]
    revision = cache.datasets().write(NAME, pa.Table.from_pylist(table, schema=SCHEMA))
    image = ImageSpec(size=size)
    built = {}
    for spec in (image, EpsSpec(image=image, adm=AdmIdentity(weights="0" * 64, flags={}))):
        store = cache.feature(spec)
        shards = []
        for start in range(0, samples, shard_rows):
            some = keys[start : start + shard_rows]
            noise = rng.normal(size=(len(some), 3, size, size))
            wave = 100 + 60 * np.sin(np.arange(size) / 17) + 8 * noise
            rows = wave.clip(0, 255).astype(np.uint8) if spec is image else noise.astype(np.float16)
            shards.append(store.commit(some, rows).shard)
        built[str(spec.feature)] = BuiltFeature(
            fingerprint=store.fingerprint, folder=store.folder.name, shards=tuple(shards), splits=("train",)
        )
    cache.builds().write(BuildRecord.new(NAME, revision, built, {}))


def epochs(root: str, copy: str, plain: bool) -> list[dict[str, float]]:
    """Two epochs of one process, which opens the cache once."""
    from distil_cache.train.data import dataset, readers

    if plain:
        dataset.READ_OVER_REMOTE_BYTES, readers.REMOTE_THREADS = 0, 1
    place: AnyPath = to_path(root)
    cache = Cache.open(place, LocalCopy.at(Path(copy)) if copy else None)
    build = cache.builds().find(NAME)[0]
    part = dataset.FeatureDataset(
        cache, build, cache.datasets().read(NAME), ("image", "eps"), split="train", purpose="the benchmark"
    )
    found = []
    for epoch in (1, 2):
        began, cpu = time.perf_counter(), time.process_time()
        count = sum(len(batch.rows) for batch in part.epoch(0, epoch, BATCH))
        seconds = time.perf_counter() - began
        found.append({"samples_per_s": count / seconds, "cpu_ms": 1e3 * (time.process_time() - cpu) / count})
    return found


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Each way of reading in a process of its own, with an empty copy."""
    make(folder / "cache", options.samples, options.size, options.shard_rows)
    with delayed_store(options.delay_ms) as (address, asked):
        environment = {**os.environ, "AWS_ENDPOINT_URL": address}
        remote = to_path(f"{BUCKET}/cache")
        remote.upload(folder / "cache")  # type: ignore[union-attr]
        ways = {
            "local": (str(folder / "cache"), "", ""),
            "S3, row by row": (str(remote), "", "plain"),
            "S3, by ranges": (str(remote), "", ""),
            "S3, local copy": (str(remote), str(folder / "copy"), ""),
        }
        found = []
        for name, way in ways.items():
            before = asked()
            command = [sys.executable, __file__, "--epochs", *way]
            text = subprocess.check_output(command, env=environment, text=True)
            found += [{"way": name, "epoch": n, **one} for n, one in enumerate(json.loads(text), 1)]
            found[-1]["requests_of_both_and_opening"] = asked() - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epochs", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs:
        print(json.dumps(epochs(options.epochs[0], options.epochs[1], bool(options.epochs[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    for one in found:
        print(
            f"{one['way']:16} epoch {one['epoch']}: {one['samples_per_s']:8.0f} samples/s, {one['cpu_ms']:6.2f} ms of CPU a sample",
            end="",
        )
        print(f", {one['requests_of_both_and_opening']} requests in both" if one["epoch"] == 2 else "")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "results": found}, indent=2, default=str))


if __name__ == "__main__":
    main()
