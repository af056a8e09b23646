"""``map_ordered``: sequential on a disk, concurrent in an object store, ordered, bounded, stopped by the first error."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from distil_cache.storage import AnyPath, map_ordered, to_path
from patience import PATIENCE

DISK, STORE = Path("/a"), to_path("memory://a/b")


@pytest.mark.parametrize("path", [DISK, STORE])
def test_results_come_in_the_order_of_the_items(path: AnyPath) -> None:
    assert list(map_ordered(lambda number: number * number, range(200), path)) == [
        number * number for number in range(200)
    ]
    assert list(map_ordered(str, [], path)) == []


def test_on_a_disk_each_begins_when_it_is_asked_for_in_the_callers_thread() -> None:
    begun = []
    results = map_ordered(lambda number: begun.append((number, threading.get_ident())), range(3), DISK)
    next(results)
    assert begun == [(0, threading.get_ident())]


def test_in_a_store_several_are_in_work_at_a_time_and_never_more_than_allowed() -> None:
    together, lock, working, most = threading.Barrier(4), threading.Lock(), 0, 0

    def work(number: int) -> int:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        together.wait(PATIENCE)  # goes on when four have come
        with lock:
            working -= 1
        return number

    assert list(map_ordered(work, range(12), STORE, max_workers=4)) == list(range(12))
    assert most == 4


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> object:
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_ordered(int, items(), STORE, max_workers=3)  # type: ignore[arg-type]
    assert [next(results), next(results)] == [0, 1]
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 10


@pytest.mark.parametrize("path", [DISK, STORE])
def test_the_first_error_in_order_is_raised_and_what_has_not_begun_never_does(path: AnyPath) -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number in (5, 6):
            raise ValueError(f"number {number}")
        return number

    results = map_ordered(work, range(1000), path, max_workers=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="number 5"):
        next(results)
    assert len(begun) < 20
