"""The memory of images that are being decoded is bounded over all threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from distil_cache.choices import MAX_PIXELS
from distil_cache.images import decode as decoding
from distil_cache.images import upright
from distil_cache.images.budget import BUDGET_BYTES, MemoryBudget, decoding_bytes
from distil_cache.images.decode import decode
from distil_cache.images.spec import ImageSpec
from image_bytes import noise, saved
from patience import PATIENCE


def most_held(budget: MemoryBudget, requests: list[int]) -> tuple[int, int]:
    """Return the most bytes and the most requests that were held at a time."""
    lock, held, most_bytes, most = threading.Lock(), [], 0, 0

    def work(wanted: int) -> None:
        nonlocal most_bytes, most
        with budget.hold(wanted):
            with lock:
                held.append(wanted)
                most_bytes, most = max(most_bytes, sum(held)), max(most, len(held))
            time.sleep(0.002)
            with lock:
                held.remove(wanted)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, requests))
    return most_bytes, most


def test_requests_wait_until_the_budget_has_room_for_them() -> None:
    most_bytes, most = most_held(MemoryBudget(100), [40, 10, 70, 100, 5, 30, 60, 20] * 20)
    assert most_bytes <= 100
    assert most > 1


def test_a_request_above_the_budget_is_served_alone() -> None:
    most_bytes, most = most_held(MemoryBudget(100), [500] * 8)
    assert most == 1
    assert most_bytes == 500
    assert most_held(MemoryBudget(100), [500, 1, 1, 1] * 8)[0] == 500


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    budget, served = MemoryBudget(10), threading.Event()
    stop = threading.Event()

    def small() -> None:
        while not stop.is_set():
            with budget.hold(6):
                time.sleep(0.001)

    threads = [threading.Thread(target=small) for _ in range(4)]
    for thread in threads:
        thread.start()
    large = threading.Thread(target=lambda: budget.hold(10).__enter__() or served.set())
    large.start()
    found = served.wait(PATIENCE)
    stop.set()
    assert found


def test_the_budget_is_given_back_when_the_holder_fails() -> None:
    budget = MemoryBudget(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="of the holder"), budget.hold(10):
            raise ValueError("of the holder")
    with budget.hold(10):
        pass


def test_the_largest_image_fits_the_stated_bound() -> None:
    assert decoding_bytes(MAX_PIXELS, 1) <= BUDGET_BYTES * 1.01


def test_every_decoder_takes_its_share_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MemoryBudget(1000)
    monkeypatch.setattr(decoding, "PIXELS_IN_FLIGHT", budget)
    monkeypatch.setattr(upright, "PIXELS_IN_FLIGHT", budget)
    files = [saved(noise(30, 40, seed), name) for seed, name in enumerate(["PNG", "JPEG", "WEBP", "GIF", "TIFF"])]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda data: decode(data, ImageSpec(size=16)), files * 3))
    assert len(images) == 15
    assert all(np.array_equal(first, again) for first, again in zip(images[:5], images[5:10], strict=True))
    assert budget._free == budget.total


def test_a_budget_that_changes_while_it_is_held_counts_what_is_held() -> None:
    budget = MemoryBudget(100)
    with budget.hold(60):
        budget.resize(70)
        assert budget._free == 10
        with budget.hold(10):
            budget.resize(50)
            assert budget._free == -20, "nothing more is handed out until enough is given back"
    assert (budget.total, budget._free) == (50, 50)
    assert most_held(budget, [30, 30, 500] * 4)[0] == 500
