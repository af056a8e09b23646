"""Compactions and collections of a cache on S3, killed at chosen requests and at random moments.

Each kill has a bucket and a process of its own. A chosen request stops at a proxy before the store saw it, or once the store
has carried it out and before the answer; then the process that asked is killed. Whatever runs or heads need must be there and
``verify`` must be clean, at once and after another run, when all that lies in the cache must equal, to the bit, what came of the
work undisturbed. A compaction is followed by a collection, which must leave nothing of what was killed.

As a program it prints one JSON line for each kill: ``python fault_store_kills.py FOLDER FORMAT CHOSEN RANDOM``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.store import Cache
from distil_cache.storage import AnyPath, RemotePath, read_many
from distil_cache.storage.filesystem import filesystem_of
from fault_checks import differences, lacking, needs_of, problems, snapshot
from fault_injection import stage_of
from fault_kills import spread
from faulty_proxy import FaultyProxy, Kind, Request, faulty_proxy
from maintained_cache import train
from patience import until
from s3_cache import build
from s3_server import SETTINGS, make_bucket, serving

MOMENTS: dict[str, Kind] = {"before": "hold", "after": "slow"}
"""When a process is killed: before the store saw its request, or once that is carried out and before it is answered."""
WORKS = ("compact", "gc")
WRITING = "[PD]*"
"""The methods PUT, POST and DELETE."""
Objects = dict[str, bytes]
"""What lies in a cache: content by name."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Server:
    """An S3 server and the proxy before it, through which the works ask that are to be killed."""

    address: str
    proxy: FaultyProxy

    def point(self, address: str) -> None:
        """Let this process ask at an address: the server's or the proxy's."""
        os.environ.update(SETTINGS)
        fsspec.config.conf["s3"] = {"endpoint_url": address}

    def put(self, objects: Objects, bucket: str) -> RemotePath:
        """Write a cache to a new bucket, and return its path."""
        make_bucket(self.address, bucket)
        root = RemotePath(f"s3://{bucket}/cache")
        filesystem, path = filesystem_of(str(root))
        filesystem.pipe({f"{path}/{name}": data for name, data in objects.items()})
        return root

    def begin(self, work: str, root: RemotePath) -> Any:
        """Start work on a cache in a process of its own, which asks through the proxy."""

        def behind_proxy() -> None:
            self.point(self.proxy.address)
            run(work, root)

        worker = _FORK.Process(target=behind_proxy)
        worker.start()
        return worker


@contextmanager
def serving_through_proxy() -> Iterator[Server]:
    """Run an S3 server and a proxy before it; this process asks the server itself."""
    with serving() as address, faulty_proxy(address) as proxy:
        server = Server(address, proxy)
        server.point(address)
        yield server


def files_of(root: Path) -> Objects:
    """Read all that lies in a cache on a disk."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def objects_of(root: RemotePath) -> Objects:
    """Read all that lies in a cache."""
    entries = root.below()
    found = {}
    for entry, data in zip(entries, read_many(entries), strict=True):
        assert isinstance(data, bytes), data
        found[str(entry.path.relative_to(root))] = data
    return found


@contextmanager
def on_disk(objects: Objects) -> Iterator[Path]:
    """The same cache on a disk, where looking at it costs no requests."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "cache")
        for name, data in objects.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for log in root.glob("features/*/log.jsonl"):  # in a store each line is an object
            for line in log.iterdir():
                line.unlink()
            log.rmdir()
        yield root


@dataclass(frozen=True)
class Scenario:
    """Work to disturb.

    work : ``compact`` or ``gc``. start : the cache that it starts from. needs : what of it must always be there. made : what
    lies in the cache afterwards. left : and what a collection leaves of that.
    """

    work: str
    start: Objects
    needs: dict[str, Any]
    made: dict[str, Any]
    left: dict[str, Any]


def run(work: str, root: AnyPath) -> None:
    """Do the work on a cache."""
    if work == "compact":
        compact(Cache.open(root), rows=16)
    else:
        collect(Cache.open(root), delete_them=True, grace_hours=0)


def scenarios(folder: Path, form: str) -> Iterator[Scenario]:
    """Prepare on a disk a compaction of many increments, and the collection of what it replaced."""
    root = folder / "cache"
    first = build(root, train(0, 1, 2, 3), shard_rows=2, form=form)[0]
    build(root, train(2, 3, 20, 21), shard_rows=2, form=form)  # nothing needs this one
    build(root, train(2, 3, 6, 7), shard_rows=2, form=form)
    Cache.open(root).builds().add_ref("run", first.id, "/runs/run")
    states = [(files_of(root), needs_of(root), snapshot(root))]
    for work in WORKS:
        run(work, root)
        assert problems(root) == []
        states.append((files_of(root), needs_of(root), snapshot(root)))
    for work, (start, needs, _), (_, _, made) in zip(WORKS, states[:-1], states[1:], strict=True):
        yield Scenario(work, start, needs, made, states[-1][2])


def undisturbed(scenario: Scenario, server: Server, bucket: str) -> tuple[int, int, float]:
    """Do the work to its end; return how many requests it makes, how many of them write or delete, and how long it takes."""
    root = server.put(scenario.start, bucket)
    server.proxy.calm()
    began = time.monotonic()
    worker = server.begin(scenario.work, root)
    worker.join()
    assert worker.exitcode == 0
    assert _wrong(root, scenario, scenario.made) == []
    return server.proxy.asked(), server.proxy.asked(WRITING), time.monotonic() - began


def kill(
    scenario: Scenario,
    server: Server,
    bucket: str,
    *,
    method: str = "*",
    at: int = 0,
    moment: str = "random",
    after: float = 0.0,
) -> dict[str, Any]:
    """Kill the work once and check all that must hold. Returns what happened, with the list ``wrong``, which should be empty.

    at : which request with such a ``method``, from 1, at which of the :data:`MOMENTS`. after : without ``at``, after so many
    seconds.
    """
    root = server.put(scenario.start, bucket)
    server.proxy.calm()
    if at:
        server.proxy.inject(MOMENTS[moment], method, skip=at - 1)
    worker = server.begin(scenario.work, root)
    if at:
        until(lambda: server.proxy.injected.total() or not worker.is_alive())
    else:
        worker.join(after)
    asked = [request for request in server.proxy.requests if fnmatchcase(request.method, method)]
    worker.kill()
    worker.join()
    server.proxy.calm()
    wrong = [f"after the kill: {what}" for what in _wrong(root, scenario)]
    run(scenario.work, root)
    wrong += [f"after the next run: {what}" for what in _wrong(root, scenario, scenario.made)]
    if scenario.work == "compact":
        for lease in (root / "builders").children():  # it would hold a collection up for ten minutes
            lease.path.unlink()
        run("gc", root)
        wrong += [f"after the collection: {what}" for what in _wrong(root, scenario, scenario.left)]
    return {
        "work": scenario.work, "at": at, "moment": moment, "request": named(asked[min(at, len(asked)) - 1]) if asked else "",
        "killed": worker.exitcode == -signal.SIGKILL, "wrong": wrong,
    }  # fmt: skip


def _wrong(root: RemotePath, scenario: Scenario, expected: dict[str, Any] | None = None) -> list[str]:
    with on_disk(objects_of(root)) as copy:
        wrong = [*problems(copy), *lacking(copy, scenario.needs)]
        return wrong + (differences(snapshot(copy), expected) if expected else [])


def named(request: Request) -> str:
    """Return what a request was about, such as ``PUT marker``; a listing is a GET of its own."""
    path, is_listing, _ = request.target.partition("?")
    below = path.lstrip("/").partition("/cache")[2].strip("/")
    return f"{request.method} {'listing' if is_listing else stage_of(below, request.method, '')}"


def campaign(
    folder: Path, server: Server, form: str, chosen: int, at_random: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Kill each work at ``chosen`` of its writing requests and at as many of all, before and after each, and at random moments."""
    draw = random.Random(seed)
    for scenario in scenarios(folder, form):
        requests, writes, seconds = undisturbed(scenario, server, f"{form}-{scenario.work}")
        points = [(WRITING, at) for at in spread(writes, chosen)] + [("*", at) for at in spread(requests, chosen)]
        places: list[dict[str, Any]] = [
            {"method": method, "at": at, "moment": moment} for method, at in points for moment in MOMENTS
        ]
        places += [{"after": draw.uniform(0, seconds)} for _ in range(at_random)]
        for number, place in enumerate(places):
            yield {"format": form, **kill(scenario, server, f"{form}-{scenario.work}-{number}", **place)}


def main() -> None:
    folder, form, *numbers = sys.argv[1:]
    with serving_through_proxy() as server:
        for result in campaign(Path(folder), server, form, *map(int, numbers)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
