"""Time and requests of looking after a cache in an object store: one thing at a time, and many at a time as it is done.

    python benchmarks/remote_upkeep.py [--shards 200] [--delay-ms 20] [--json FILE]

The store is that of ``delayed_store``: a server on loopback behind a proxy that holds each request back. The cache has
three features in so many shards each, of tiny rows, because it is the waiting that is measured. ``record`` is what a build
with nothing to do asks before it names the shards; ``gc`` runs with the remains of a second build, then with those of a
compaction, each without a grace period. Both ways work on the same cache, copied, each piece of work in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from delayed_store import BUCKET, delayed_store
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.maintenance.trash import ensure_shards
from distil_cache.cache.maintenance.verify import report
from distil_cache.cache.store import Cache
from distil_cache.storage import parallel, to_path
from maintained_cache import build, keys_of

SHARD_ROWS = 2
MERGED_ROWS = 64


def record(cache: Cache) -> None:
    for feature in cache.builds().all()[-1].features.values():
        ensure_shards(cache.open_feature(feature.folder), feature.shards)


WORK: dict[str, Callable[[Cache], object]] = {
    "record": record,
    "ls": summary,
    "gc, dry": lambda cache: collect(cache, grace_hours=0),
    "verify": report,
    "gc": lambda cache: collect(cache, delete_them=True, grace_hours=0),
    "compact": lambda cache: compact(cache, MERGED_ROWS),
    "gc after it": lambda cache: collect(cache, delete_them=True, grace_hours=0),
}
"""In this order, as each leaves what the next needs."""


def make(root: Path, shards: int) -> None:
    """Write a cache whose second build leaves a tenth of the first one's shards to nobody."""
    rows = SHARD_ROWS * shards
    for start in (0, max(SHARD_ROWS, rows // 10)):
        build(root, dict.fromkeys(keys_of(range(start, start + rows)), "train"), shard_rows=SHARD_ROWS)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    make(folder / "cache", options.shards)
    found = []
    with delayed_store(options.delay_ms) as (address, asked):
        environment = {**os.environ, "AWS_ENDPOINT_URL": address}
        ways = (1, parallel.MAX_WORKERS)
        for way in ways:
            to_path(f"{BUCKET}/{way}").upload(folder / "cache")  # type: ignore[union-attr]
        for work in WORK:
            for way in ways:
                before = asked()
                command = [sys.executable, __file__, "--work", work, f"{BUCKET}/{way}", str(way)]
                text = subprocess.check_output(command, env=environment, text=True)
                found.append({"work": work, "at_once": way, "requests": asked() - before, **json.loads(text)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work, root, at_once = options.work
        parallel.MAX_WORKERS = int(at_once)
        cache = Cache.open(to_path(root))
        began, cpu = time.perf_counter(), time.process_time()
        WORK[work](cache)
        print(json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    for one in found:
        way = "one at a time" if one["at_once"] == 1 else f"{one['at_once']} at a time"
        times = f"{one['seconds']:8.1f} s, {one['cpu_seconds']:6.1f} s of CPU"
        print(f"{one['work']:12} {way:14} {one['requests']:7,} requests {times}")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "results": found}, indent=2, default=str))


if __name__ == "__main__":
    main()
