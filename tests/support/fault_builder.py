"""A builder that needs no torch: the real scan, plan and cache, with features that are drawn from each key.

It does what a real build does, in the same order, so whatever can happen to one can happen to the other. Run it as a
program: ``python fault_builder.py CACHE --source FOLDER --dataset NAME [--at STAGE:N] [--act kill|full|broken|interrupt]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from distil_cache.cache.gather import gather
from distil_cache.cache.lease import lease
from distil_cache.cache.records.audit import HeaderAudit
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import UserError
from distil_cache.features.registry import with_inputs
from distil_cache.images.file import ImageRejected
from distil_cache.pipeline.planning.plan import Samples, Task, make_plan
from distil_cache.pipeline.record import write_record
from distil_cache.pipeline.scan.conflicts import Reject
from distil_cache.pipeline.scan.rows import ScannedRow
from distil_cache.pipeline.scan.scan import drop_files, scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.read import read_source
from fault_injection import ACTS, Watch

SIDE = 16
VIEWS = (2, 8, 4, 4)
COMPUTED = ("eps", "recon", "dire", "noise", "teacher")
"""Features besides the image, in the order in which they are committed."""


class FakeImage(Spec):
    feature: Literal["image"] = "image"
    algorithm: Literal[1] = 1
    size: int = SIDE


class FakeEps(Spec):
    feature: Literal["eps"] = "eps"
    algorithm: Literal[1] = 1
    image: FakeImage = FakeImage()


class FakeDire(Spec):
    feature: Literal["dire"] = "dire"
    algorithm: Literal[1] = 1
    image: FakeImage = FakeImage()


class FakeTeacher(Spec):
    feature: Literal["teacher"] = "teacher"
    algorithm: Literal[1] = 1
    dire: FakeDire = FakeDire()
    weights: str = "a"


@dataclass(frozen=True)
class Order:
    """What one fake build is asked for.

    pause : seconds that every image takes, as if a model ran. features : those that are made of the pictures, the teacher
    of the split train only; what they derive from is made too.
    """

    cache: Path
    sources: tuple[Path, ...]
    dataset: str = "d"
    form: str = "zarr"
    shard_size: int = 4
    teacher: str = "a"
    pause: float = 0.0
    nan_in: str = ""
    features: tuple[str, ...] = ("eps", "teacher")


def build(order: Order) -> dict[str, Any]:
    """Scan, plan, run the tasks and write the records; returns the build's id and the rows computed by feature."""
    cache = Cache.create(order.cache)
    files = [file for source in order.sources for file in discover(source, None).files]
    scanned = scan(files, memory=cache.datasets().scan_file(order.dataset), workers=1)
    splits = frozenset(row.file.split for row in scanned.rows)
    wanted = with_inputs(
        {feature: splits & {"train"} if feature == "teacher" else splits for feature in order.features}
    )
    specs: dict[str, Spec] = {
        "image": FakeImage(), "eps": FakeEps(), "dire": FakeDire(), "teacher": FakeTeacher(weights=order.teacher),
    }  # fmt: skip
    samples = Samples.of([row.key for row in scanned.rows], [row.file.split for row in scanned.rows])
    computed = dict.fromkeys(wanted, 0)
    with lease(cache.root, "build", [spec.folder for spec in specs.values()], order.dataset):
        stores = {feature: cache.feature(specs[feature], order.form) for feature in wanted}
        indexes = {feature: store.index() for feature, store in stores.items()}
        plan = make_plan(samples, wanted, indexes, order.shard_size)
        by_key = {row.key: row for row in scanned.rows}
        gone: set[str] = set()
        for task in plan.tasks:
            for feature, count in run_task(task, by_key, stores, order, gone).items():
                computed[feature] += count
        drop_files(cache.datasets().scan_file(order.dataset), [by_key[key].file for key in sorted(gone)])
        present = stores["image"].index(refresh=True)
        rows = [row for row in scanned.rows if row.key in present]
        bad = [Reject(row.file.path, "truncated", row.key) for row in scanned.rows if row.key not in present]
        record = write_record(cache, order.dataset, rows, [*scanned.rejects, *bad], wanted, stores, audit=no_finding)
        for feature, store in stores.items():
            if computed[feature]:
                store.log({"event": "build", "build": record.id, "computed": computed[feature]})
            with suppress(UserError):
                store.compact_index()
    cache.builds().add_ref(f"run-{record.id}", record.id, "nowhere")
    return {"build": record.id, "revision": record.revision, "computed": computed, "opened": scanned.opened}


def no_finding() -> HeaderAudit:
    """An audit that found nothing, so that its file is written as in a real build."""
    return HeaderAudit(real=1, fake=1, sample=1, found=False, sentence="", checks=(), told=())


def run_task(
    task: Task,
    rows: Mapping[str, ScannedRow],
    stores: Mapping[str, FeatureStore],
    order: Order,
    all_gone: set[str],
) -> dict[str, int]:
    """Make what a task lacks, feature by feature, as a real task does. Keys whose file has changed go to ``all_gone``."""
    bad: dict[str, str] = {}
    gone: set[str] = set()
    made: dict[str, int] = {}
    if task.image_shard is None:
        for key in task.keys:
            try:
                read_source(rows[key].file, key)
            except ImageRejected:
                gone.add(key)
        bad = {
            key: "truncated: its pixels end too early" for key in task.keys if key not in gone and is_undecodable(key)
        }
        planned = [key for key in task.keys if key not in gone]
        good = [key for key in planned if key not in bad]
        if planned:
            stores["image"].commit(planned, values("image", good, order), keys=good, rejected=bad)
        made["image"] = len(good)
    else:
        gather(stores["image"], task.keys)
    all_gone |= gone
    for feature in COMPUTED:
        keys = [key for key in task.missing.get(feature, ()) if key not in gone and key not in bad]
        if keys:
            time.sleep(order.pause * len(keys))
            stores[feature].commit(keys, values(feature, keys, order))
            made[feature] = len(keys)
    return made


def values(feature: str, keys: Sequence[str], order: Order) -> np.ndarray:
    """Rows of a feature, from the keys alone (the teacher's also from its weights)."""
    shape, dtype = {
        "image": ((3, SIDE, SIDE), np.uint8), "dire": ((3, SIDE, SIDE), np.uint8),
        "eps": ((3, SIDE, SIDE), np.float16), "teacher": (VIEWS, np.float16),
    }[feature]  # fmt: skip
    name = feature + (order.teacher if feature == "teacher" else "")
    rows = np.empty((len(keys), *shape), dtype)
    for row, key in zip(rows, keys, strict=True):
        rng = np.random.default_rng([int(key, 16), zlib.crc32(name.encode())])
        row[...] = rng.integers(0, 256, shape) if dtype is np.uint8 else rng.normal(size=shape)
    if feature == order.nan_in:
        rows[-1].reshape(-1)[5] = np.nan
    return rows


def is_undecodable(key: str) -> bool:
    """A file in eight has a good header and bad pixels."""
    return int(key[:2], 16) % 8 == 3


def write_images(folder: Path, counts: Mapping[str, int], first: int = 0) -> Path:
    """Write PNG noise of 8 x 9 pixels in the layout cnndet, numbered from ``first``: half real, half of generator ``gen``."""
    from image_bytes import noise, saved

    for split, count in counts.items():
        for number in range(first, first + count):
            place = folder / split / "gen" / ("0_real", "1_fake")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:03d}.png").write_bytes(saved(noise(8, 9, zlib.crc32(f"{split} {number}".encode()))))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--source", type=Path, action="append", required=True)
    parser.add_argument("--dataset", default="d")
    parser.add_argument("--format", default="zarr")
    parser.add_argument("--shard-size", type=int, default=4)
    parser.add_argument("--teacher", default="a")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--nan-in", default="")
    parser.add_argument("--at", help="STAGE:N, the N-th event of a stage")
    parser.add_argument("--act", choices=sorted(ACTS), default="kill")
    parser.add_argument("--start-at", type=float, help="wait for this time of the clock, to race with others")
    given = parser.parse_args()
    order = Order(
        given.cache, tuple(given.source), given.dataset, given.format, given.shard_size, given.teacher, given.pause,
        given.nan_in,
    )  # fmt: skip
    if given.at:
        Watch(given.cache, at=given.at, act=ACTS[given.act])
    if given.start_at:
        time.sleep(max(0.0, given.start_at - time.time()))
    try:
        print(json.dumps(build(order)))
    except UserError as error:
        print(f"distil-cache: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
