"""What fewer bits for eps and noise cost: bytes, time to read, error, and the average precision of students.

    python benchmarks/storage.py CACHE DATASET [--seeds 0 1 2] [--epochs 12] [--methods distildire eps dnf]
        [--kd-weight 0] [--out FOLDER] [--only-rows] [--json FILE]

CACHE holds a build of DATASET with image, eps and noise as float16 in all splits (and ``teacher`` for a distillation
weight above 0). The first tables compare ways to store its rows; ``float8`` and ``pcodec`` (lossless; left out where it
is not installed) are no choices of the program. Then each ``--storage`` is stored beside the float16 rows, just as a
build with that option stores it, and every method is trained and evaluated on it. Finished runs in --out are kept, so
the program may be interrupted, and several processes may share the seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from compare import first_rows
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.shards.keys import keys_of_column
from distil_cache.cache.shards.packed import BITS, PackedStorage, pack, unpack
from distil_cache.cache.store import Cache
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.features.builtin.noise import NoiseSpec
from distil_cache.metrics.measures import average_precision
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import evaluation_folder, run_evaluation
from distil_cache.train.runs.folder import RunFolder

Rows = np.ndarray[Any, Any]
SPECS = {"eps": EpsSpec, "noise": NoiseSpec}
METHODS = ("distildire", "eps", "dnf")
ROUNDS = 5


class Way(NamedTuple):
    """One way to store rows of float16: to bytes, and back into an array of them."""

    encode: Callable[[Rows], Any]
    decode: Callable[[Any, Rows], None]


def ways() -> dict[str, Way]:
    """Name -> way, for rows (N, 3, S, S) float16."""
    found = {"float16": Way(lambda rows: rows.copy(), lambda stored, out: np.copyto(out, stored))}
    found |= {name: _packed(name) for name in BITS}
    for name, dtype in (("float8 e4m3", torch.float8_e4m3fn), ("float8 e5m2", torch.float8_e5m2)):
        found[name] = _float8(dtype)
    if importlib.util.find_spec("pcodec"):
        found["pcodec"] = _pcodec()
    return found


def _packed(storage: PackedStorage) -> Way:
    return Way(lambda rows: pack(rows, storage), lambda stored, out: unpack(stored, storage, out))


def _float8(dtype: torch.dtype) -> Way:
    return Way(lambda rows: torch.from_numpy(rows).to(dtype), lambda stored, out: torch.from_numpy(out).copy_(stored))


def _pcodec() -> Way:
    from pcodec import ChunkConfig, standalone

    def decode(stored: list[bytes], out: Rows) -> None:
        for one, row in zip(stored, out, strict=True):
            standalone.simple_decompress_into(one, row.reshape(-1))

    return Way(lambda rows: [standalone.simple_compress(row.reshape(-1), ChunkConfig()) for row in rows], decode)


def size_of(stored: Any) -> int:
    return sum(map(len, stored)) if isinstance(stored, list) else stored.nbytes


def compare_rows(title: str, rows: Rows) -> list[dict[str, object]]:
    """Print and return bytes a sample, time and error of each way; the values survive a second time unchanged."""
    print(f"{title}\n{'':14}{'bytes a sample':>16}{'encode ms':>11}{'decode ms':>11}{'relative error':>16}")
    lines: list[dict[str, object]] = []
    exact = rows.astype(np.float64)
    for name, way in ways().items():
        back = np.empty_like(rows)
        spent = []
        for _ in range(ROUNDS):
            began = time.process_time()
            stored = way.encode(rows)
            encoded = time.process_time()
            way.decode(stored, back)
            spent.append((encoded - began, time.process_time() - encoded))
        encode, decode = (statistics.median(values) / len(rows) * 1e3 for values in zip(*spent, strict=True))
        error = float(np.linalg.norm(exact - back) / np.linalg.norm(exact))
        size = size_of(stored) / len(rows)
        print(f"  {name:12}{size:16,.0f}{encode:11.3f}{decode:11.3f}{error:16.4f}", flush=True)
        lines.append(
            {"rows": title, "way": name, "bytes": size, "encode_ms": encode, "decode_ms": decode, "error": error}
        )
    return lines


def stored_as(cache: Cache, record: BuildRecord, storage: str) -> BuildRecord:
    """Store the rows of a build's eps and noise once more, and record the build that has them."""
    table = cache.datasets().read(record.dataset, record.revision)
    features = dict(record.features)
    for name in SPECS.keys() & features.keys():
        source = cache.open_feature(features[name].folder)
        target = cache.feature(SPECS[name].model_validate({**source.spec, "storage": storage}))
        for marker in source.markers():
            target.commit(marker.planned, source.read(marker.shard), keys=marker.keys, rejected=marker.rejected)
        inside = table.filter(pc.is_in(table["split"], pa.array(features[name].splits)))
        features[name] = target.built([keys_of_column(inside["key"])], features[name].splits)
    made = BuildRecord.new(record.dataset, record.revision, features, record.versions)
    cache.builds().write(made)
    return made


def average_precision_of(run: Path, cache: Path, build: BuildRecord, config: TrainConfig) -> float:
    """Train and evaluate one student, as far as that is not done yet, and return its average precision in percent."""
    run_training(config, cache, run, resume=True)
    run_evaluation(run, cache, build.dataset, build=build.id)
    folder = evaluation_folder(RunFolder(run).evaluations, build.dataset, "test", "crop", None)
    scores = pq.read_table(folder / "scores.parquet")
    found = average_precision(scores["label"].to_numpy(), scores["score"].to_numpy())
    assert found is not None
    return 100 * found


def compare_students(cache: Cache, record: BuildRecord, options: argparse.Namespace) -> list[dict[str, object]]:
    builds = {"float16": record} | {storage: stored_as(cache, record, storage) for storage in BITS}
    found: dict[tuple[str, str], list[float]] = {}
    for seed in options.seeds:
        for method in options.methods:
            for storage, build in builds.items():
                config = TrainConfig.checked(
                    dataset=(build.dataset,), build=(build.id,), method=method, seed=seed, epochs=options.epochs,
                    backbone="small32", train_size=64, kd_weight=options.kd_weight,
                )  # fmt: skip
                run = options.out / f"{method}-{storage}-{seed}"
                found.setdefault((method, storage), []).append(average_precision_of(run, options.cache, build, config))
                print(f"{run.name}: {found[method, storage][-1]:.1f}", flush=True)
    print(f"\nAverage precision in percent, mean and standard deviation over the seeds {options.seeds}")
    for (method, storage), values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"  {method:12}{storage:10}{statistics.mean(values):6.1f} ± {spread:.1f}  ({each})")
    return [{"method": method, "storage": storage, "ap": values} for (method, storage), values in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--kd-weight", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("storage-runs"))
    parser.add_argument("--only-rows", action="store_true", help="no students")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cache = Cache.open(options.cache)
    floats = [record for record in cache.builds().find(options.dataset) if _is_float16(cache, record)]
    lines: list[dict[str, object]] = []
    for name in SPECS:
        rows = first_rows(cache.open_feature(floats[-1].features[name].folder), 256)
        lines += compare_rows(f"{name}, {rows.shape[-1]} pixels, {len(rows)} rows", rows)
    large = np.random.default_rng(0).normal(size=(32, 3, 256, 256)).astype(np.float16)
    lines += compare_rows("Gaussian noise, 256 pixels, 32 rows", large)
    if not options.only_rows:
        lines += compare_students(cache, floats[-1], options)
    if options.json:
        options.json.write_text(json.dumps(lines, indent=2) + "\n")


def _is_float16(cache: Cache, record: BuildRecord) -> bool:
    return all(
        name in record.features and cache.open_feature(record.features[name].folder).spec["storage"] == "float16"
        for name in SPECS
    )


if __name__ == "__main__":
    main()
