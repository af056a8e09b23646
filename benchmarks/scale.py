"""Time and peak memory of opening and planning for many samples, on simulated caches: real markers and tables, no pixels.

    python benchmarks/scale.py [--samples 1_000_000 10_000_000] [--folder DIR] [--json FILE]

A cache with four features is written below a temporary folder (about 160 bytes a sample and feature), then each step
runs in a process of its own. ``CPU s`` is the processor time of all its threads, which other work on the machine
lengthens less than the time on the clock. Peak memory is that of the whole process, imports included; ``start`` is what it
had before the step. Markers have 512 rows. The files were written a moment ago, so they are read from the system's
cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from distil_cache.cache.records.datasets import SCHEMA, revision_of
from distil_cache.cache.shards.keys import BINARY, KeyArray, hex_keys, keys_of_column
from distil_cache.cache.shards.marker import Marker, shard_id_of
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.pipeline.planning.plan import Samples, make_plan

ROWS = 512
NAME = "simulated"
GENERATORS = ("real", "adm", "sdv1", "biggan")
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "image": ("uint8", (3, 256, 256)),
    "eps": ("float16", (3, 256, 256)),
    "dire": ("uint8", (3, 256, 256)),
    "teacher": ("float16", (2, 2048, 7, 7)),
}
_PART = 1_000_000


def make(folder: Path, samples: int) -> None:
    """Write a cache whose markers name data that is not there."""
    from distil_cache.images.spec import ImageSpec
    from distil_cache.models.backbones import HALF
    from distil_cache.pipeline.specs import AdmIdentity, DireSpec, EpsSpec, TeacherSpec

    cache = Cache.create(folder)
    keys = np.sort(np.frombuffer(np.random.default_rng(samples).bytes(samples * BINARY.itemsize), BINARY))
    image, adm = ImageSpec(size=256), AdmIdentity(weights="0" * 64, flags={})
    dire = DireSpec(image=image, adm=adm, steps="ddim20")
    teacher = TeacherSpec(dire=dire, backbone="resnet50", weights="1" * 64, size=224, mean=HALF, std=HALF)
    for spec in (image, EpsSpec(image=image, adm=adm), dire, teacher):
        store = cache.feature(spec)
        for start in range(0, samples, ROWS):
            write_marker(store, tuple(hex_keys(keys[start : start + ROWS])))
    cache.datasets().write(NAME, pa.concat_tables(tables(np.random.default_rng(0).permutation(keys))))


def write_marker(store: FeatureStore, keys: tuple[str, ...]) -> None:
    """Write one marker as a commit would, but neither checked nor flushed."""
    shard = shard_id_of(store.fingerprint, keys)
    dtype, shape = SHAPES[store.feature]
    marker = Marker.model_construct(
        shard=shard, data=f"{shard}-{'0' * 16}.zarr", format="zarr", keys=keys, dtype=dtype, shape=shape,
        codec="blosc-zstd-3-noshuffle", bytes=50_000_000, sha256="2" * 64,
    )  # fmt: skip
    (store.shards / f"{shard}.json").write_bytes(marker.model_dump_json().encode() + b"\n")


def tables(keys: KeyArray) -> Iterator[pa.Table]:
    """Yield the dataset in pieces, in the order of the files."""
    for start in range(0, len(keys), _PART):
        part = hex_keys(keys[start : start + _PART])
        kinds = [GENERATORS[number % len(GENERATORS)] for number in range(len(part))]
        columns = {
            "key": part,
            "source": ["/data/images"] * len(part),
            "path": [f"train/imagenet/{kind}/{start + number:08d}.png" for number, kind in enumerate(kinds)],
            "label": [int(kind != "real") for kind in kinds],
            "split": ["train"] * len(part),
            "generator": kinds,
            "family": ["real" if kind == "real" else "diffusion" for kind in kinds],
            "group": ["imagenet"] * len(part),
            "width": [256] * len(part),
            "height": [256] * len(part),
            "format": ["PNG"] * len(part),
            "bytes": list(range(100_000, 100_000 + len(part))),
        }
        yield pa.table(columns, schema=SCHEMA)


def rebuild(cache: Cache) -> str:
    written = sum(store.compact_index() for store in cache.features())
    size = sum(path.stat().st_size for path in cache.root.glob("features/*/index/*"))
    return f"{written} files, {size / 2**20:,.0f} MiB"


def open_features(cache: Cache) -> str:
    return f"{sum(len(store.index().shards) for store in cache.features()):,} shards"


def open_dataset(cache: Cache) -> str:
    return f"{cache.datasets().read(NAME).num_rows:,} rows"


def revision(cache: Cache) -> str:
    return revision_of(cache.datasets().read(NAME, columns=("key", "label", "split", "generator", "group")))


def plan(cache: Cache) -> str:
    table = cache.datasets().read(NAME, columns=("key", "split"))
    samples = Samples.of(keys_of_column(table["key"]), table["split"])
    indexes = {store.feature: store.index() for store in cache.features()}
    made = make_plan(samples, dict.fromkeys(SHAPES, frozenset({"train"})), indexes, ROWS)
    return f"{made.wanted['eps']:,} wanted, {len(made.tasks)} tasks"


STEPS: dict[str, Callable[[Cache], str]] = {
    "index made from markers": rebuild,
    "four features opened": open_features,
    "plan with nothing to do": plan,
    "dataset opened": open_dataset,
    "revision computed": revision,
}


def measure(step: str, folder: Path) -> dict[str, Any]:
    """Run one step in this process and say what it took."""
    cache = Cache.open(folder)
    before = _peak()
    began, busy = time.perf_counter(), time.process_time()
    what = STEPS[step](cache)
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    return {"step": step, "seconds": seconds, "cpu": cpu, "start": before, "peak": _peak(), "what": what}


def _peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--make", nargs=2, metavar=("CACHE", "SAMPLES"), help="only write a cache")
    parser.add_argument("--measure", nargs=2, metavar=("STEP", "CACHE"), help="run one step alone, print JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    if options.make:
        make(Path(options.make[0]), int(options.make[1]))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}")
    results = []
    for samples in options.samples:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            subprocess.run([sys.executable, __file__, "--make", name, str(samples)], check=True)
            print(f"\n{samples:,} samples\n{'':30}{'s':>8}{'CPU s':>8}{'start MiB':>11}{'peak MiB':>10}")
            for step in STEPS:
                command = [sys.executable, __file__, "--measure", step, name]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                times = f"{found['seconds']:8.2f}{found['cpu']:8.2f}"
                print(f"  {step:28}{times}{found['start']:11.0f}{found['peak']:10.0f}  {found['what']}", flush=True)
                results.append({"samples": samples, **found})
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
