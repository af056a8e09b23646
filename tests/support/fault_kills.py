"""Builds, compactions and collections killed at chosen events of each write stage and at random moments.

Each kill has a cache and a process of its own. After it ``verify`` must be clean; then the same is run again, ``verify``
must be clean once more, and all that lies in the cache must equal, to the bit, what came of it undisturbed. After
every second kill the power fails too: names and contents that nobody had flushed are lost.

As a program it runs a plan of kills and prints one JSON line for each: ``python fault_kills.py FOLDER FORMAT PER_STAGE RANDOM IN_A_ROW``.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.store import Cache
from fault_builder import Order, build, write_images
from fault_checks import differences, problems, snapshot
from fault_injection import STAGES, Watch, in_child, lose_unflushed


@dataclass(frozen=True)
class Scenario:
    """Work to disturb: the cache that it starts from, what is asked for, and what comes of it when undisturbed.

    work : ``build``, ``compact`` or ``gc``. counts : stage -> events. seconds : what it takes.
    """

    work: str
    name: str
    start: Path
    order: Order
    expected: dict[str, Any]
    counts: dict[str, int]
    seconds: float

    def run(self, cache: Path) -> None:
        """Do the work on a cache in this process."""
        run(self.work, replace(self.order, cache=cache))


def run(work: str, order: Order) -> None:
    if work == "compact":
        compact(Cache.open(order.cache), rows=16)
    elif work == "gc":
        collect(Cache.open(order.cache), delete_them=True, grace_hours=0)
    else:
        build(order)


def scenarios(folder: Path, form: str) -> Iterator[Scenario]:
    """Prepare a first build, one that adds pictures and changes the teacher, and its compaction and collection."""
    old = write_images(folder / "old", {"train": 9, "test": 5})
    new = write_images(folder / "new", {"train": 5}, first=50)
    order = Order(folder / "once", (old,), form=form)
    (folder / "empty").mkdir()
    yield _scenario("build", "first build", folder / "empty", order)
    grown = replace(order, cache=folder / "grown", sources=(old, new), teacher="b")
    yield _scenario("build", "second build", folder / "once", grown)
    _copy(folder / "grown", folder / "unused")  # the first build, and the first teacher's features, are used no more
    shutil.rmtree(folder / "unused" / "refs")
    yield _scenario("compact", "compact", folder / "unused", replace(grown, cache=folder / "compacted"))
    yield _scenario("gc", "gc", folder / "compacted", replace(grown, cache=folder / "collected"))


def _scenario(work: str, name: str, start: Path, order: Order) -> Scenario:
    _copy(start, order.cache)

    def undisturbed() -> list[Any]:
        watch = Watch(order.cache)
        began = time.monotonic()
        run(work, order)
        return [dict(watch.counts), time.monotonic() - began]

    counts, seconds = in_child(undisturbed)[1]
    found, made = in_child(lambda: [problems(order.cache), snapshot(order.cache)])[1]
    assert found == []
    return Scenario(work, name, start, order, made, counts, seconds)


def _copy(cache: Path, target: Path) -> None:
    """Copy a cache; of one that is empty, not even the folder."""
    if any(cache.iterdir()):
        shutil.copytree(cache, target)


def spread(count: int, chosen: int) -> list[int]:
    """Return up to ``chosen`` numbers from 1 to ``count``, evenly spread."""
    return sorted({1 + (2 * place + 1) * count // (2 * chosen) for place in range(chosen)}) if count else []


def kill(
    scenario: Scenario, folder: Path, *, at: str | None = None, after: float = 0.0, power: bool = False
) -> dict[str, Any]:
    """Kill the work once and check all that must hold. at : ``STAGE:N``; without it, ``after`` so many seconds.

    power : lose what was not flushed, too. Returns what happened, with the list ``wrong``, which should be empty.
    """
    _copy(scenario.start, folder)
    result = _disturb(scenario, folder, at=at, after=after, power=power)
    result["wrong"] += _after_another_run(scenario, folder)
    return result


def kill_in_a_row(scenario: Scenario, folder: Path, seconds: list[float]) -> Iterator[dict[str, Any]]:
    """Kill the work, start it again on what it left, kill it again, and so on; at the end all must hold."""
    _copy(scenario.start, folder)
    for number, after in enumerate(seconds):
        result = _disturb(scenario, folder, after=after)
        if number + 1 == len(seconds):
            result["wrong"] += _after_another_run(scenario, folder)
        yield result


def _disturb(
    scenario: Scenario, folder: Path, *, at: str | None = None, after: float = 0.0, power: bool = False
) -> dict[str, Any]:
    """Kill the work in a child, and see whether the cache is sound."""
    trace = folder.with_name(f"{folder.name}-trace")
    stage = mmap.mmap(-1, 64)

    def tell(name: str) -> None:
        stage[:] = name.encode().ljust(64)

    def disturbed() -> None:
        Watch(folder, at=at, trace=trace if power else None, tell=tell)
        scenario.run(folder)

    ended = in_child(disturbed)[0] if at else _killed_after(disturbed, after)
    wrong = [] if ended in (signal.SIGKILL, 0 if at is None else signal.SIGKILL) else [f"ended with {ended}"]
    lost = lose_unflushed(folder, trace) if power else 0
    trace.unlink(missing_ok=True)
    if (folder / "cache.json").exists():
        wrong += [f"after the kill: {problem}" for problem in in_child(lambda: problems(folder))[1]]
    return {
        "scenario": scenario.name, "format": scenario.order.form, "at": at, "stage": stage[:].decode().strip(" \0"),
        "killed": ended == signal.SIGKILL, "power": power, "lost": lost, "wrong": wrong,
    }  # fmt: skip


def _after_another_run(scenario: Scenario, folder: Path) -> list[str]:
    def again() -> list[Any]:
        scenario.run(folder)
        found = problems(folder)
        return [found, snapshot(folder) if not found else scenario.expected]

    found, held = in_child(again)[1]
    return [f"after the next run: {problem}" for problem in found] + differences(held, scenario.expected)


def _killed_after(work: Any, seconds: float) -> int:
    """Fork, let the child work, kill it after a time, and return the signal that ended it (0: it was ready before)."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def campaign(
    folder: Path, form: str, per_stage: int, at_random: int, in_a_row: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Kill at up to ``per_stage`` events of each stage of each scenario, at so many random moments, and so many in a row."""
    draw = random.Random(seed)
    for scenario in scenarios(folder, form):
        places = [(f"{stage}:{n}", 0.0) for stage in STAGES for n in spread(scenario.counts.get(stage, 0), per_stage)]
        places += [("", draw.uniform(0, scenario.seconds)) for _ in range(at_random)]
        for number, (at, after) in enumerate(places):
            place = folder / f"{scenario.work}-{number}"
            yield kill(scenario, place, at=at or None, after=after, power=number % 2 == 1)
            shutil.rmtree(place)
        if in_a_row:
            seconds = [draw.uniform(0, scenario.seconds / 2) for _ in range(in_a_row)]
            yield from kill_in_a_row(scenario, folder / f"{scenario.work}-row", seconds)
            shutil.rmtree(folder / f"{scenario.work}-row")


def main() -> None:
    folder, form, *numbers = sys.argv[1:]
    for result in campaign(Path(folder), form, *map(int, numbers)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
