"""Several processes on one cache at once, clocks that jump, and files that change while they are read.

As a program it does what its first argument names and prints one JSON list: ``python fault_races.py WHAT FOLDER FORMAT``.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distil_cache.cache import lease
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.verify import list_garbage
from distil_cache.cache.records import builds
from distil_cache.cache.store import Cache
from distil_cache.errors import UserError
from fault_builder import Order, build, write_images
from fault_checks import differences, problems, rows, snapshot
from fault_injection import Watch, in_child

ROUNDS = 2


def together(*works: Callable[[], Any]) -> list[str]:
    """Run each piece of work in a process of its own, all at once, and return how each ended: ``done`` or its error.

    An error that is not meant for a user comes with its traceback.
    """
    start, go = os.pipe()
    children = []
    for work in works:
        answer, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(start, 1)  # returns when the parent closes the other end
            try:
                work()
                text = "done"
            except UserError as error:
                text = f"{type(error).__name__}: {error}"
            except BaseException as error:  # a child never returns
                text = f"unexpected {''.join(traceback.format_exception(error))}"
            os.write(tell, text.encode())
            os._exit(0)
        os.close(tell)
        children.append((child, answer))
    os.close(start)
    os.close(go)
    answers = []
    for child, answer in children:
        with os.fdopen(answer) as file:
            answers.append(file.read())
        os.waitpid(child, 0)
    return answers


def undisturbed(order: Order) -> dict[str, Any]:
    in_child(lambda: build(order))
    return dict(in_child(lambda: snapshot(order.cache))[1])


def litter(cache: Path) -> list[str]:
    return [path.name for path in list_garbage(Cache.open(cache))]


def same_dataset(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Three builders of the same dataset."""
    order = Order(folder / "whole", (write_images(folder / "images", {"train": 9, "test": 5}),), form=form)
    expected = undisturbed(order)
    for number in range(ROUNDS):
        racing = replace(order, cache=folder / f"round-{number}")
        ended = together(*[lambda racing=racing: build(racing)] * 3)
        wrong = in_child(lambda racing=racing: problems(racing.cache))[1]
        wrong += differences(in_child(lambda racing=racing: snapshot(racing.cache))[1], expected)
        left = in_child(lambda racing=racing: litter(racing.cache))[1]
        yield {"ended": ended, "wrong": wrong, "litter": left}


def overlapping(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Two builders of datasets that share pictures, with shards of different sizes, so that they also share keys."""
    one, two, both = (
        write_images(folder / name, {"train": 6}, first=first) for first, name in ((0, "1"), (20, "2"), (40, "3"))
    )
    orders = [
        Order(folder, (one, both), dataset="one", form=form, shard_size=3),
        Order(folder, (two, both), dataset="two", form=form, shard_size=4),
    ]
    alone = [undisturbed(replace(order, cache=folder / f"alone-{order.dataset}")) for order in orders]
    expected = alone[0]["rows"] | alone[1]["rows"]
    for number in range(ROUNDS):
        racing = [replace(order, cache=folder / f"round-{number}") for order in orders]
        ended = together(*[lambda order=order: build(order) for order in racing])
        yield _both_there(racing, ended, alone, expected)


def _both_there(
    racing: Sequence[Order], ended: list[str], alone: list[Any], expected: dict[str, str]
) -> dict[str, Any]:
    cache = racing[0].cache
    for order in racing:
        in_child(lambda order=order: build(order))
    wrong = in_child(lambda: problems(cache))[1]
    held = in_child(lambda: snapshot(cache))[1]
    wrong += differences(held, {"rows": expected, "tables": alone[0]["tables"] | alone[1]["tables"]})
    return {"ended": ended, "wrong": wrong, "litter": in_child(lambda: litter(cache))[1]}


def heads(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Two builders of one dataset from different sources: both revisions are kept, one of them is the newest."""
    old, new = (write_images(folder / name, {"train": 5}, first=first) for first, name in ((0, "old"), (20, "new")))
    for number in range(ROUNDS):
        cache = folder / f"round-{number}"
        orders = [Order(cache, sources, form=form) for sources in ((old,), (old, new))]
        ended = together(*[lambda order=order: build(order) for order in orders])
        wrong = in_child(lambda cache=cache: problems(cache))[1]

        def known(cache: Path = cache) -> list[Any]:
            datasets = Cache.open(cache).datasets()
            served = {record.revision for record in Cache.open(cache).builds().find("d")}
            return [datasets.revisions("d"), sorted(served), datasets.head("d")]

        revisions, served, head = in_child(known)[1]
        yield {"ended": ended, "wrong": wrong, "revisions": revisions, "served": served, "head": head}


def beside_maintenance(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """A builder, a compaction and a collection without any grace at once, on a cache with much to compact and collect."""
    old, new = (write_images(folder / name, {"train": 8}, first=first) for first, name in ((0, "old"), (20, "new")))
    start = Order(folder / "start", (old,), form=form, shard_size=2)
    undisturbed(start)
    undisturbed(replace(start, dataset="other", teacher="z"))
    shutil.rmtree(start.cache / "refs")
    more = replace(start, sources=(old, new), teacher="b")
    whole = replace(more, cache=folder / "whole")
    expected = undisturbed(whole)
    for number in range(ROUNDS):
        cache = Path(shutil.copytree(start.cache, folder / f"round-{number}"))
        racing = replace(more, cache=cache, pause=0.005)
        ended = together(
            lambda racing=racing: build(racing),
            lambda cache=cache: compact(Cache.open(cache), rows=16),
            lambda cache=cache: collect(Cache.open(cache), delete_them=True, grace_hours=0),
        )
        in_child(lambda racing=racing: build(racing))
        wrong = in_child(lambda cache=cache: problems(cache))[1]
        held = in_child(lambda cache=cache: rows(cache))[1]
        lost = [name for name, value in expected["rows"].items() if held.get(name) != value]
        yield {"ended": ended, "wrong": wrong, "lost": lost}


def clock(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Builds under clocks that jump between them, from files with times of the future and of the past."""
    images = write_images(folder / "images", {"train": 8})
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        os.utime(path, ns=(0, (-(10**17), 4 * 10**18, 1, 10**18)[number % 4]))
    order = Order(folder / "whole", (images,), form=form)
    expected = undisturbed(order)
    jumping = replace(order, cache=folder / "jumping")
    for number, year in enumerate((2090, 1971, 2030)):

        def at(year: int = year, number: int = number) -> Any:
            set_clock(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC))
            if number == 0:
                Watch(jumping.cache, at="marker:20")
            return build(jumping)

        ended, result = in_child(at)
        yield {"year": year, "killed": ended == signal.SIGKILL, "opened": result and result["opened"]}
    wrong = in_child(lambda: problems(jumping.cache))[1]
    wrong += differences(in_child(lambda: snapshot(jumping.cache))[1], expected)
    yield {"wrong": wrong}


def set_clock(now: datetime.datetime) -> None:
    """Let this process believe that it is another time."""

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:  # type: ignore[override]
            return now.astimezone(tz)

    time.time = now.timestamp
    time.time_ns = lambda: int(now.timestamp() * 1e9)
    builds.datetime = lease.datetime = Then  # type: ignore[attr-defined, misc]


def lease_jump(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """The clock jumps an hour ahead while a builder works, so that its lease looks dead to a collection."""
    old, new = (write_images(folder / name, {"train": 6}, first=first) for first, name in ((0, "old"), (20, "new")))
    start = Order(folder / "start", (old,), form=form, shard_size=2)
    undisturbed(start)
    undisturbed(replace(start, sources=(new,)))  # now nothing needs the old pictures but the builder to come
    shutil.rmtree(start.cache / "refs")
    again = replace(start, pause=0.02, teacher="b")
    expected = undisturbed(replace(again, cache=folder / "whole", pause=0))
    built = len(in_child(lambda: Cache.open(start.cache).builds().ids())[1])

    def gc() -> None:
        leases: list[Path] = []
        while (
            not leases and len(Cache.open(start.cache).builds().ids()) == built
        ):  # it may have been faster than these looks
            leases = list((start.cache / "builders").glob("*.json"))
        for path in leases[:1]:
            with suppress(FileNotFoundError):
                os.utime(path, (time.time() - 3600,) * 2)
        collect(Cache.open(start.cache), delete_them=True, grace_hours=0)

    ended = together(lambda: build(again), gc)
    in_child(lambda: build(replace(again, pause=0)))
    held = in_child(lambda: rows(start.cache))[1]
    lost = [name for name, value in expected["rows"].items() if held.get(name) != value]
    yield {"ended": ended, "wrong": in_child(lambda: problems(start.cache))[1], "lost": lost}


def changing(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """A program rewrites a picture in place again and again, half by half, while it is scanned, hashed and decoded."""
    images = write_images(folder / "images", {"train": 8})
    victim = sorted(images.rglob("*.png"))[3]
    versions = [
        path.read_bytes() for path in sorted(write_images(folder / "other", {"train": 6}, first=90).rglob("*.png"))
    ]
    length = max(map(len, versions))
    versions = [version.ljust(length, b"\0") for version in versions]  # bytes after a PNG's end do no harm
    fixed = victim.stat().st_mtime_ns
    order = Order(folder / "cache", (images,), form=form)

    def rewrite() -> None:
        for turn in range(10**9):
            version = versions[turn % len(versions)]
            with victim.open("r+b", buffering=0) as file:
                file.write(version[: length // 2])
                time.sleep(0.0005)
                file.write(version[length // 2 :])
            if turn % 3:
                os.utime(victim, ns=(fixed, fixed))

    victim.write_bytes(versions[0])
    writer = os.fork()
    if writer == 0:
        rewrite()
    wrong: list[str] = []
    try:
        for _ in range(4):
            in_child(lambda: build(order))
            wrong += in_child(lambda: problems(order.cache))[1]
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    victim.write_bytes(versions[1])
    os.utime(victim, ns=(fixed, fixed))  # of this size and time there were many versions
    in_child(lambda: build(order))
    in_child(lambda: build(order))
    wrong += in_child(lambda: problems(order.cache))[1]
    expected = undisturbed(replace(order, cache=folder / "whole"))
    held = in_child(lambda: rows(order.cache))[1]
    lost = [name for name, value in expected["rows"].items() if held.get(name) != value]

    def newest() -> list[Any]:
        table = Cache.open(order.cache).datasets().read("d").to_pylist()
        return [table, Cache.open(folder / "whole").datasets().read("d").to_pylist()]

    found, wanted = in_child(newest)[1]
    yield {"wrong": wrong, "lost": lost, "same table": found == wanted, "is there": victim.name in str(found)}


def main() -> None:
    what, folder, form = sys.argv[1:]
    works = {
        "same": same_dataset, "overlapping": overlapping, "heads": heads, "maintenance": beside_maintenance,
        "clock": clock, "lease": lease_jump, "changing": changing,
    }  # fmt: skip
    print(json.dumps(list(works[what](Path(folder), form))))


if __name__ == "__main__":
    main()
