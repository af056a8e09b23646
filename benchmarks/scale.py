"""Time and peak memory of scanning, opening, planning and selecting many samples, on simulated caches: no pixels.

    python benchmarks/scale.py [--samples 1_000_000 10_000_000] [--folder DIR] [--json FILE]

A cache with real markers and tables of four features is written below a temporary folder (about 160 bytes a sample and
feature), then each step runs in a process of its own. Scans take as many simulated files, whose entries come from the
scan memory or, if all are new, from a function in place of a reader; one file in a hundred has the bytes of another.
``CPU s`` is the processor time of all its threads, which other work on the machine lengthens less than the time on the
clock. Peak memory is that of the whole process, imports included; ``start`` is what it had before the step. Markers
have 512 rows. The files were written a moment ago, so they are read from the system's cache. ``--steps`` chooses some.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from distil_cache.cache.index.index import Index
from distil_cache.cache.records.datasets import SCHEMA, revision_of
from distil_cache.cache.shards.keys import BINARY, KeyArray, hex_keys
from distil_cache.cache.shards.marker import Marker, shard_id_of
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.pipeline.planning.plan import Samples, make_plan
from distil_cache.pipeline.scan.memory import ScanEntry
from distil_cache.pipeline.scan.scan import ScannedFile, ScanResult, scan
from distil_cache.pipeline.sources.file import ListedObject, SourceFile
from distil_cache.pipeline.sources.file_table import FileTable
from distil_cache.train.data.select import Selection, dataset_rows, training_parts

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
    from distil_cache.features.adm import AdmIdentity
    from distil_cache.features.builtin.dire import DireSpec
    from distil_cache.features.builtin.eps import EpsSpec
    from distil_cache.features.builtin.teacher import TeacherSpec
    from distil_cache.images.spec import ImageSpec
    from distil_cache.models.backbones import HALF

    cache = Cache.create(folder)
    keys = sorted_keys(samples)
    image, adm = ImageSpec(size=256), AdmIdentity(weights="0" * 64, flags={})
    dire = DireSpec(image=image, adm=adm, steps="ddim20")
    teacher = TeacherSpec(dire=dire, backbone="resnet50", weights="1" * 64, size=224, mean=HALF, std=HALF)
    for spec in (image, EpsSpec(image=image, adm=adm), dire, teacher):
        store = cache.feature(spec)
        for start in range(0, samples, ROWS):
            write_marker(store, tuple(hex_keys(keys[start : start + ROWS])))
    order = np.random.default_rng(0).permutation(keys)
    cache.datasets().move_head(NAME, cache.datasets().add(NAME, lambda: tables(order)))


def sorted_keys(samples: int) -> KeyArray:
    return np.sort(np.frombuffer(np.random.default_rng(samples).bytes(samples * BINARY.itemsize), BINARY))


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


def source_files(samples: int) -> Iterator[SourceFile]:
    """Yield the files of the dataset, listed as those of an object store are."""
    for number in range(samples):
        kind = GENERATORS[number % len(GENERATORS)]
        family, path = ("real", "diffusion")[kind != "real"], f"train/imagenet/{kind}/{number:08d}.png"
        listed = ListedObject(100_000 + number, 10**18 + number)
        yield SourceFile("/data/images", path, int(kind != "real"), "train", kind, family, "imagenet", listed=listed)


def scanned_keys(samples: int) -> KeyArray:
    """Return the keys of the files: those of the dataset, but each 100th is that of a file of the same class before."""
    keys = np.random.default_rng(0).permutation(sorted_keys(samples))
    repeated = np.arange(100, samples, 100)
    keys[repeated] = keys[repeated - len(GENERATORS)]
    keys[5_000::5_000] = keys[4_999:-1:5_000]  # of the other class
    return keys


def reader(files: Sequence[SourceFile], trusted: Sequence[ScanEntry | None]) -> Iterator[list[ScannedFile]]:
    """Scan files as if each were read."""
    keys = scanned_keys(len(files))
    traits = '["RGB","","IHDR IDAT IEND","plain",null,null,null]'
    for start in range(0, len(files), ROWS):
        found = []
        for file, key in zip(files[start : start + ROWS], hex_keys(keys[start : start + ROWS]), strict=True):
            assert file.listed is not None
            entry = ScanEntry(*file.listed, key, 256, 256, "png", metadata_bytes=0, traits=traits)
            found.append(ScannedFile(file, entry, known=False))
        yield found


def scan_new(cache: Cache, samples: int) -> str:
    files = FileTable(source_files(samples))
    return _described(scan(files, memory=cache.datasets().scan_file(NAME), scanner=reader))


def scan_known(cache: Cache, samples: int) -> str:
    files = FileTable(source_files(samples))
    return _described(scan(files, memory=cache.datasets().scan_file(NAME)))


def record_scan(cache: Cache, samples: int) -> str:
    """Scan known files, plan, and write the dataset's table: what a build does that has nothing to compute."""
    scanned = scan(FileTable(source_files(samples)), memory=cache.datasets().scan_file(NAME))
    planned = Samples.of_rows(scanned.rows)
    made = make_plan(planned, _wanted(), {store.feature: store.index() for store in cache.features()}, ROWS)
    revision = cache.datasets().add("scanned", scanned.rows.tables)
    return f"{_described(scanned)}, {len(made.tasks):,} tasks, revision {revision}"


def _described(scanned: ScanResult) -> str:
    return f"{scanned.opened:,} opened, {len(scanned.rows):,} rows, {scanned.label_conflicts:,} conflicts"


def rebuild(cache: Cache, samples: int) -> str:
    written = sum(store.compact_index() for store in cache.features())
    size = sum(path.stat().st_size for path in cache.root.glob("features/*/index/*"))
    return f"{written} files, {size / 2**20:,.0f} MiB"


def open_features(cache: Cache, samples: int) -> str:
    return f"{sum(len(store.index().shards) for store in cache.features()):,} shards"


def open_dataset(cache: Cache, samples: int) -> str:
    return f"{cache.datasets().read(NAME).num_rows:,} rows"


def revision(cache: Cache, samples: int) -> str:
    return revision_of(cache.datasets().pieces(NAME, columns=("key", "label", "split", "generator", "group")))


def plan(cache: Cache, samples: int) -> str:
    made = make_plan(_samples(cache), _wanted(), {store.feature: store.index() for store in cache.features()}, ROWS)
    return f"{made.wanted['eps']:,} wanted, {len(made.tasks)} tasks"


def plan_all(cache: Cache, samples: int) -> str:
    made = make_plan(_samples(cache), _wanted(), dict.fromkeys(SHAPES, Index.empty()), ROWS)
    return f"{sum(len(task.keys) for task in made.tasks):,} images in {len(made.tasks):,} tasks"


def _samples(cache: Cache) -> Samples:
    pieces = cache.datasets().pieces(NAME, columns=("key", "split"))
    return Samples.of_pieces(pieces)


def _wanted() -> dict[str, frozenset[str]]:
    return dict.fromkeys(SHAPES, frozenset({"train"}))


def select(cache: Cache, samples: int) -> str:
    store = cache.datasets()
    parts = training_parts(dataset_rows(store, NAME, store.head(NAME)), Selection(), 0.1, NAME)
    return f"{parts.train.num_rows:,} rows to train on, {parts.val.num_rows:,} to validate on"


STEPS: dict[str, Callable[[Cache, int], str]] = {
    "scan of new files": scan_new,
    "scan of known files": scan_known,
    "index made from markers": rebuild,
    "four features opened": open_features,
    "known files scanned, planned, recorded": record_scan,
    "plan with nothing to do": plan,
    "plan with all to do, and its tasks": plan_all,
    "dataset opened": open_dataset,
    "revision computed": revision,
    "training rows selected": select,
}


def measure(step: str, folder: Path, samples: int) -> dict[str, Any]:
    """Run one step in this process and say what it took."""
    cache = Cache.open(folder)
    before = _peak()
    began, busy = time.perf_counter(), time.process_time()
    what = STEPS[step](cache, samples)
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
    parser.add_argument(
        "--steps", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="STEP", help="by default all"
    )
    parser.add_argument("--make", nargs=2, metavar=("CACHE", "SAMPLES"), help="only write a cache")
    parser.add_argument(
        "--measure", nargs=3, metavar=("STEP", "CACHE", "SAMPLES"), help="run one step alone, print JSON"
    )
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]), int(options.measure[2]))))
        return
    if options.make:
        make(Path(options.make[0]), int(options.make[1]))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}")
    results = []
    for samples in options.samples:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            subprocess.run([sys.executable, __file__, "--make", name, str(samples)], check=True)
            print(f"\n{samples:,} samples\n{'':42}{'s':>8}{'CPU s':>8}{'start MiB':>11}{'peak MiB':>10}")
            for step in options.steps:
                command = [sys.executable, __file__, "--measure", step, name, str(samples)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                times = f"{found['seconds']:8.2f}{found['cpu']:8.2f}"
                print(f"  {step:40}{times}{found['start']:11.0f}{found['peak']:10.0f}  {found['what']}", flush=True)
                results.append({"samples": samples, **found})
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
