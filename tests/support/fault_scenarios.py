"""Commands on small caches that have work for each of them, and what must hold when something fails."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.verify import list_garbage
from distil_cache.cache.store import Cache
from fault_builder import FakeTeacher, Order, build, values, write_images
from fault_checks import needs_of, snapshot
from fault_injection import in_child

OLD = 3 * 24 * 3600
"""Age of all that lies in a cache at the start, in seconds: longer than any grace period."""
LEASED = FakeTeacher(weights="leased")


@dataclass(frozen=True)
class Prepared:
    """A command and what it starts from.

    start : a folder with ``work`` (the cache, and what else the command may change) and ``beside`` (what it may not).
    arguments : of the command line, which runs in ``work``. needs : what must not be missing, see :func:`needs_of`.
    looks : returns what the command made, of ``work``.
    """

    name: str
    start: Path
    arguments: tuple[str, ...]
    needs: dict[str, Any]
    looks: Callable[[Path], dict[str, Any]]


def prepare(name: str, folder: Path) -> Prepared:
    """Prepare a command by its name, a key of ``COMMANDS``, below ``folder``."""
    start = folder / "start"
    arguments, make, looks, modules = COMMANDS[name]
    for module in modules:
        importlib.import_module(module)  # here, for all children
    needs = in_child(lambda: make(start))[1]
    return Prepared(name, start, tuple(arguments), needs, looks)


def cache_to_compact(start: Path) -> dict[str, Any]:
    """Make a cache with work for compact and gc below ``start``; returns its needs.

    Two datasets, zarr and tar shards, small ones, a merged one whose parts are gone, a run that uses an older revision,
    revisions and shards that nobody needs, and a feature that only the lease of a build at work protects.
    """
    pictures = start / "beside" / "pictures"
    first = write_images(pictures / "first", {"train": 2, "test": 1})
    more = write_images(pictures / "more", {"train": 2}, first=50)
    other = write_images(pictures / "other", {"train": 2}, first=62)
    tars = write_images(pictures / "tars", {"train": 2}, first=71)
    last = write_images(pictures / "last", {"train": 2}, first=80)
    (start / "beside" / "empty").mkdir()
    (start / "beside" / "canary.txt").write_text("Nobody may touch this.\n")
    root = start / "work" / "cache"
    order = Order(root, (first,), shard_size=4, features=("eps",))
    build(order)
    run = build(replace(order, sources=(first, more)))["build"]
    _keep_runs(root, run)
    compact(Cache.open(root), rows=16)
    collect(Cache.open(root), delete_them=True, grace_hours=0)  # the merged ones stand alone now
    build(replace(order, dataset="e", sources=(tars,), form="webdataset"))
    (root / "refs").rename(root / "kept")
    build(replace(order, sources=(first, other)))
    newest = build(replace(order, sources=(first, more, last)))["build"]
    (root / "kept" / f"run-{newest}.json").write_bytes((root / "refs" / f"run-{newest}.json").read_bytes())
    shutil.rmtree(root / "refs")
    (root / "kept").rename(root / "refs")
    _keep_runs(root, run, newest)
    _lease(root)
    return needs_of(root)


def _keep_runs(root: Path, *builds: str) -> None:
    for path in (root / "refs").glob("*.json"):
        if path.stem not in {f"run-{build}" for build in builds}:
            path.unlink()


def _lease(root: Path) -> None:
    """Leave what a build at work has made so far: a shard that no record names, and its lease."""
    cache = Cache.open(root)
    store = cache.feature(LEASED)
    keys = [f"{number:032x}" for number in (5, 6)]
    store.commit(keys, values("teacher", keys, Order(root, ())))
    lease = {"work": "build", "host": "elsewhere", "pid": 1, "dataset": None, "features": [LEASED.folder]}
    path = root / "builders" / "elsewhere-1-0000000000000000.json"
    path.write_text(json.dumps({**lease, "started": "2024-05-06T07:08:09Z"}))


def cache_to_collect(start: Path) -> dict[str, Any]:
    """Make the same cache, compacted, with its small shards still there."""
    cache_to_compact(start)
    compact(Cache.open(start / "work" / "cache"), rows=16)
    return needs_of(start / "work" / "cache")


def cache_without_runs(start: Path) -> dict[str, Any]:
    """Make the same cache, compacted, that no run uses."""
    cache_to_collect(start)
    shutil.rmtree(start / "work" / "cache" / "refs")
    return needs_of(start / "work" / "cache")


def cache_to_repair(start: Path) -> dict[str, Any]:
    """Make the same cache with two damaged shards, of which one has to be built again, and a needed one removed too early."""
    needs = cache_to_collect(start)
    cache = Cache.open(start / "work" / "cache")
    image, eps = (next(store for store in cache.features() if store.feature == feature) for feature in ("image", "eps"))
    merged = max(eps.markers(), key=lambda one: one.rows)  # its parts are still there
    _flip_a_bit(eps.shards / merged.data / "c" / "0" / "0" / "0" / "0")
    lost = next(one for one in eps.markers() if one.format == "webdataset")
    _flip_a_bit(eps.shards / lost.data)
    removed = next(one for one in image.markers() if one.format == "webdataset")
    image.removed.mkdir(exist_ok=True)
    (image.shards / f"{removed.shard}.json").rename(image.removed / f"{removed.shard}.json")
    gone = {f"{eps.folder.name} {key}" for key in lost.keys}
    return {**needs, "rows": {name: value for name, value in needs["rows"].items() if name not in gone}}


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cache_made(work: Path) -> dict[str, Any]:
    """Return what a cache holds, and the names in it, but for what is random, counts for nothing, or is garbage."""
    root = work / "cache"
    left_over = list_garbage(Cache.open(root))
    files = [path for path in root.rglob("*") if path.is_file() and not any(map(path.is_relative_to, left_over))]
    names = [path.relative_to(root).as_posix() for path in files]
    counted = [name for name in names if not re.search("^builders/|/index/|/log.jsonl$", name)]
    return {
        **snapshot(root, damaged=True),
        "names": sorted(re.sub(r"-[0-9a-f]{16}\.(zarr|tar)", r".\1", name) for name in counted),
    }


def cache_to_build(start: Path) -> dict[str, Any]:
    """Make a random ADM and teacher, pictures, and a cache with a build of some of them."""
    from small_models import write_adm, write_images, write_teacher

    beside = start / "beside"
    beside.mkdir(parents=True)
    (start / "work").mkdir()
    write_adm(beside / "adm.safetensors")
    write_teacher(beside / "teacher.safetensors")
    write_images(beside / "first", {"train": 2, "test": 1})
    write_images(beside / "second", {"train": 2}, seed=1)
    program = "from distil_cache.cli import main; main()"
    built = [argument for argument in BUILD if argument != "../beside/second"]
    subprocess.run([sys.executable, "-c", program, *built], cwd=start / "work", check=True, capture_output=True)
    return {**needs_of(start / "work" / "cache"), "heads": {}}  # the head moves on


def cache_to_train_from(start: Path) -> dict[str, Any]:
    """Make a cache to train a small student from."""
    from small_cache import make_cache, rows

    (start / "beside").mkdir(parents=True)
    (start / "work").mkdir()
    cache, build = make_cache(
        start / "work" / "cache", [*rows("train", 6, {"adm": 6}), *rows("val", 3, {"adm": 3})], shard_rows=8
    )
    cache.datasets().move_head(build.dataset, build.revision)
    return needs_of(cache.root)


def run_made(work: Path) -> dict[str, Any]:
    """Return what a training made: the weights to the bit, its lines without times, what evaluates it, its reference."""
    from safetensors.torch import load_file

    run = work / "run"
    record = json.loads((run / "config.json").read_text())
    newest = json.loads((run / "checkpoints" / "last.json").read_text())
    weights = {
        name: {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in load_file(path).items()}
        for name, path in (
            ("newest", run / "checkpoints" / newest["weights"]),
            ("optimiser", run / "checkpoints" / newest["optimiser"]),
            ("best", run / "checkpoints" / newest["best"]["weights"]["name"]),
        )
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": weights,
        "lines": [{name: value for name, value in line.items() if name != "seconds"} for line in lines],
        "config": {name: value for name, value in record.items() if name not in ("run", "created", "cache")},
        "calibration": {
            name: value for name, value in (newest["best"]["calibration"] or {}).items() if name != "checkpoint_sha256"
        },
        "references": [ref.build for ref in Cache.open(work / "cache").builds().refs() if ref.run == record["run"]],
    }


_GC = ("cache", "gc", "cache", "--yes", "--grace", "0", "--json")
BUILD = (
    "build", "../beside/first", "../beside/second", "--cache", "cache", "--dataset", "d", "--steps", "ddim4",
    "--adm", "../beside/adm.safetensors", "--teacher", "small", "--teacher-weights", "../beside/teacher.safetensors",
    "--shard-size", "4", "--batch-size", "2", "--device", "cpu", "--json",
)  # fmt: skip
TRAIN = (
    "train", "--cache", "cache", "--dataset", "pictures", "--run", "run", "--backbone", "small", "--epochs", "2",
    "--batch-size", "4", "--lr", "0.001", "--val-fraction", "0.4", "--device", "cpu", "--resume", "--json",
)  # fmt: skip
_Makes = Callable[[Path], dict[str, Any]]
COMMANDS: dict[str, tuple[tuple[str, ...], _Makes, _Makes, tuple[str, ...]]] = {
    "gc": (_GC, cache_to_collect, cache_made, ()),
    "gc-no-runs": (_GC, cache_without_runs, cache_made, ()),
    "compact": (("cache", "compact", "cache", "--rows", "16", "--json"), cache_to_compact, cache_made, ()),
    "verify": (("cache", "verify", "cache", "--json"), cache_to_repair, cache_made, ()),
    "repair": (("cache", "verify", "cache", "--repair", "--json"), cache_to_repair, cache_made, ()),
    "build": (
        BUILD,
        cache_to_build,
        cache_made,
        ("distil_cache.pipeline.execution.tasks", "distil_cache.pipeline.build"),
    ),
    "train": (TRAIN, cache_to_train_from, run_made, ("distil_cache.train.engine.loop", "distil_cache.train.sweep")),
}
"""Arguments of each command, what makes the folder that it starts from, what looks at what it made, and what it imports."""
