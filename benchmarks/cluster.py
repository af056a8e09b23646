"""What handing tasks to workers costs, against the plain loop on the same work; and what plans of any size take.

    python benchmarks/cluster.py sleep [--workers 1 2 4 8 16 32 64] [--seconds 2] [--shards 8] [--json FILE]
    python benchmarks/cluster.py real [--workers 1 2 4] [--images 256] [--json FILE]
    python benchmarks/cluster.py table --rate 221 --price 3

``sleep``: shards of 8 images of 16 pixels, through scan, plan, messages, decoding and commit as in any build, with a model
that sleeps ``seconds`` a shard. Each worker gets ``shards`` shards; the plain loop does as many. Eight workers share a
process, so that 64 fit into a few gigabytes; each has its own models, and sleeping keeps none from another. The time is that
of the tasks, first to last: starting processes is told apart. Where the workers' decoding and writing alone fills the
machine's cores, the clock says nothing about the engine; processor time a shard does: of the loop, of this process (which
holds client and scheduler), and of the workers.

``real``: builds with the demo's ADM in worker processes, whole and tasks alone, against the loop with one thread.

``table``: markdown of hours and cost from a rate in ADM calls a second and a price per device-hour, as in docs/measurements/cluster.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import psutil
from compare import conditions
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.client import WorkerPool, connect, start_local_pool
from distil_cache.pipeline.cluster.executor import ClusterExecutor
from distil_cache.pipeline.cluster.local_workers import OVERLAP, QUIET_SETTINGS
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.tasks import InProcessExecutor
from distil_cache.pipeline.planning.estimate import device_hours
from distil_cache.pipeline.planning.prepare import prepare
from distil_cache.progress import Silent
from distributed import LocalCluster, Worker
from sleeping import sleeping, with_sleep
from whole_build import write_sources

ROWS = 8
SIDE = 16
TOGETHER = 8
"""Workers in one process."""
IMAGES = (10_000, 100_000, 1_000_000, 2_700_000, 10_000_000, 100_000_000)
DEVICES = (1, 8, 64, 256)
CALLS = 40


def config_of(sources: Path, cache: Path, **changes: object) -> BuildConfig:
    """A build of image and eps in shards of eight."""
    values: dict[str, object] = {
        "sources": (sources,), "cache": cache, "dataset": "benchmark", "adm": "demo", "image_size": SIDE,
        "features": ("image,eps",), "shard_size": ROWS, "batch_size": ROWS, "device": "cpu", "decode_threads": 1,
    }  # fmt: skip
    return BuildConfig.checked(**{**values, **changes})


def loop_seconds(config: BuildConfig, seconds: float) -> tuple[float, float]:
    """Return the time that the plain loop takes for all tasks, on the clock and of the processor."""
    with ExitStack() as held:
        ready = prepare(config, Silent(), held, dry_run=False)
        work = InProcessExecutor(config, ready, Silent())
        with_sleep(work.context, seconds / ROWS)
        began, cpu = time.perf_counter(), time.process_time()
        assert sum(1 for _ in work.reports()) == len(ready.plan.tasks)
        return time.perf_counter() - began, time.process_time() - cpu


def pool_seconds(
    pool: WorkerPool, config: BuildConfig, seconds: float, processes: list[psutil.Process]
) -> tuple[float, float, float]:
    """Return the time that a pool takes for all tasks: on the clock, and of this process' and the workers' processors."""
    with ExitStack() as held:
        ready = prepare(config, Silent(), held, dry_run=False, scanner=pool.scan_files)
        work = ClusterExecutor(pool, config, ready, Placement(), Silent(), sleeping(seconds / ROWS))
        held.enter_context(pool.plugin(work.plugin))
        began, cpu, theirs = time.perf_counter(), time.process_time(), cpu_of(processes)
        assert sum(1 for _ in work.reports()) == len(ready.plan.tasks)
        assert work.failures == 0
        return time.perf_counter() - began, time.process_time() - cpu, cpu_of(processes) - theirs


def cpu_of(processes: list[psutil.Process]) -> float:
    """Return the processor time of processes in seconds."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def many_workers(count: int) -> Iterator[tuple[WorkerPool, list[psutil.Process]]]:
    """Run a scheduler here and workers in a few other processes; yields them."""
    processes: list[psutil.Process] = []
    settings = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(n_workers=0, **settings) as cluster, ExitStack() as held:
        for start in range(0, count, TOGETHER):
            command = [sys.executable, __file__, "serve", cluster.scheduler_address, str(min(TOGETHER, count - start))]
            process = subprocess.Popen(command)
            held.callback(process.wait)
            held.callback(process.terminate)
            processes.append(psutil.Process(process.pid))
        with connect(cluster.scheduler_address) as pool:
            while len(pool.workers()) < count:
                time.sleep(0.1)
            yield pool, processes


async def serve(scheduler: str, count: int) -> None:
    """Be several workers."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker(
                scheduler,
                nthreads=OVERLAP,
                memory_limit=0,
                silence_logs=logging.CRITICAL,
                local_directory=f"{folder}/{number}",
            )
            for number in range(count)
        ]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))


def measure_sleep(counts: list[int], seconds: float, shards: int) -> list[dict[str, object]]:
    """Compare a pool of each size with the loop."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = write_sources(folder / "few", ROWS * shards, side=24)
        plain, plain_cpu = loop_seconds(config_of(few, folder / "loop"), seconds)
        each = 1000 / shards
        print(
            f"plain loop: {shards} shards of {seconds} s in {plain:.2f} s, processor {plain_cpu * each:.0f} ms a shard"
        )
        print(f"{'':46}processor, ms a shard")
        print(f"{'workers':>8}{'shards':>8}{'seconds':>9}{'over loop':>11}{'start':>8}{'here':>8}{'workers':>9}")
        for count in counts:
            sources = write_sources(folder / f"images-{count}", ROWS * shards * count, side=24)
            began = time.perf_counter()
            with many_workers(count) as (pool, processes):
                pool_seconds(pool, config_of(few, folder / f"warm-{count}", shard_size=1), 0.0, processes)
                start = time.perf_counter() - began
                config = config_of(sources, folder / f"cache-{count}")
                spent, here, theirs = pool_seconds(pool, config, seconds, processes)
            each = 1000 / (shards * count)
            over, made = spent / plain - 1, shards * count
            print(
                f"{count:8}{made:8}{spent:9.2f}{over:11.1%}{start:8.1f}{here * each:8.1f}{theirs * each:9.1f}",
                flush=True,
            )
            rows.append(
                {
                    "workers": count,
                    "shards": made,
                    "seconds": spent,
                    "loop_seconds": plain,
                    "start_seconds": start,
                    "cpu_ms_a_shard": {
                        "loop": plain_cpu * 1000 / shards,
                        "here": here * each,
                        "workers": theirs * each,
                    },
                }
            )
    return rows


def measure_real(counts: list[int], images: int) -> list[dict[str, object]]:
    """Compare builds in worker processes with the loop, on the demo's ADM; give all of them one thread."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_sources(folder / "images", images)

        def config(cache: str) -> BuildConfig:
            return config_of(sources, folder / cache, features=("image,eps,dire",), image_size=None)

        began, cpu = time.perf_counter(), time.process_time()
        run_build(config("loop"), Silent())
        plain, plain_cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"plain loop: {images} images in {plain:.1f} s, {images / plain:.2f} images/s; {plain_cpu:.1f} s of processor"
        )
        for count in counts:
            with start_local_pool(count, "cpu") as pool:
                run_on(
                    pool, config_of(sources, folder / f"warm-{count}", features=("image,eps",), image_size=None), count
                )
                everybody = [psutil.Process(), *psutil.Process().children(recursive=True)]
                began, cpu = time.perf_counter(), cpu_of(everybody)
                run_on(pool, config(f"cache-{count}"), count)
                spent, spent_cpu = time.perf_counter() - began, cpu_of(everybody) - cpu
            print(
                f"{count} workers: {spent:.1f} s, {images / spent:.2f} images/s, {plain / spent:.2f} of the loop's rate; "
                f"{spent_cpu:.1f} s of processor, {spent_cpu / plain_cpu:.2f} of the loop's",
                flush=True,
            )
            rows.append(
                {
                    "workers": count, "images": images, "seconds": spent, "loop_seconds": plain, "cpu_seconds": spent_cpu,
                    "loop_cpu_seconds": plain_cpu,
                }
            )  # fmt: skip
    return rows


def run_on(pool: WorkerPool, config: BuildConfig, count: int) -> None:
    """Run the tasks of a build on a pool."""
    with ExitStack() as held:
        ready = prepare(config, Silent(), held, dry_run=False, scanner=pool.scan_files)
        work = ClusterExecutor(pool, config, ready, Placement(workers=count), Silent())
        held.enter_context(pool.plugin(work.plugin))
        assert sum(1 for _ in work.reports()) == len(ready.plan.tasks)


def print_table(rate: float, price: float) -> None:
    """Print hours on 1 to 256 devices, and cost, of image, eps and DIRE (40 calls an image)."""
    print("| images | device-hours | cost |" + "".join(f" {count} |" for count in DEVICES))
    print("|---|---|---|" + "---|" * len(DEVICES))
    for images in IMAGES:
        hours = device_hours(images * CALLS, 0, rate, None)
        assert hours is not None
        clock = "".join(f" {duration(hours / count)} |" for count in DEVICES)
        print(f"| {images:,} | {hours:,.1f} | {hours * price:,.0f} |{clock}")


def duration(hours: float) -> str:
    """Write a time in the unit that keeps it readable."""
    if hours < 1 / 20:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sleep", "real", "table", "serve"))
    parser.add_argument("scheduler", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("count", nargs="?", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rate", type=float, help="ADM calls a second of one device")
    parser.add_argument("--price", type=float, help="of one device for an hour")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "serve":
        dask.config.set(QUIET_SETTINGS)  # as for the workers that a build starts itself
        asyncio.run(serve(options.scheduler, options.count))
        return
    if options.what == "table":
        print_table(options.rate, options.price)
        return
    where = conditions()
    print(", ".join(f"{name} {value}" for name, value in where.items()), "\n")
    if options.what == "sleep":
        rows = measure_sleep(options.workers or [1, 2, 4, 8, 16, 32, 64], options.seconds, options.shards)
    else:
        rows = measure_real(options.workers or [1, 2, 4], options.images)
    if options.json:
        options.json.write_text(json.dumps({"conditions": where, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
