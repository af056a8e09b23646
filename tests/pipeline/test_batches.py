"""Batches: launched one ahead, halved when memory runs out, and of a size that is found once and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.transfer import HostArray, HostCopy, to_device
from distil_cache.pipeline.execution import batches
from distil_cache.pipeline.execution.batches import BatchSize, pad_batch, remembered_size, run_batches

CPU = torch.device("cpu")


class Device:
    """Doubles numbers, has memory for ``room`` of them at a time, and notes the order of events."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.events: list[str] = []
        self.landed: list[int] = []

    def launch(self, batch: Sequence[int], size: int) -> HostCopy:
        if size > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.events.append(f"launch {len(batch)} of {size}")
        return HostCopy({"doubled": torch.tensor(pad_batch(batch, size)) * 2})

    def land(self, batch: Sequence[int], values: dict[str, HostArray]) -> None:
        self.events.append(f"land {len(batch)}")
        self.landed += values["doubled"][: len(batch)].tolist()


def test_a_batch_is_launched_before_the_one_before_it_lands_and_the_last_is_padded() -> None:
    device = Device(room=4)
    run_batches(range(10), BatchSize(4), device.launch, device.land)
    assert device.landed == [2 * number for number in range(10)]
    assert device.events == ["launch 4 of 4", "launch 4 of 4", "land 4", "launch 2 of 4", "land 4", "land 2"]


def test_running_out_of_memory_halves_the_batch_and_loses_nothing() -> None:
    shrunk: list[int] = []
    device = Device(room=8)
    size = BatchSize(8, shrunk.append)

    def launch(batch: Sequence[int], images: int) -> HostCopy:
        if len(device.landed) + len(device.events) > 1:
            device.room = 3  # something else took the memory meanwhile
        return device.launch(batch, images)

    run_batches(range(30), size, launch, device.land)
    assert device.landed == [2 * number for number in range(30)]
    assert (size.size, shrunk) == (2, [4, 2])


def test_a_device_that_cannot_hold_one_image_is_a_sentence() -> None:
    with pytest.raises(UserError, match="has too little memory for a batch of one image"):
        run_batches(range(3), BatchSize(4), Device(room=0).launch, Device(room=0).land)


@pytest.mark.parametrize("said", ["Unable to find an engine to execute this computation", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_too_little_memory_in_the_words_of_a_library_halves_the_batch_too(said: str) -> None:
    device = Device(room=8)

    def launch(batch: Sequence[int], images: int) -> HostCopy:
        if images > 2:
            raise RuntimeError(said)
        return device.launch(batch, images)

    run_batches(range(5), BatchSize(8), launch, device.land)
    assert device.landed == [0, 2, 4, 6, 8]
    with pytest.raises(UserError, match=f"too little memory for a batch of one image \\({said}\\)"):
        run_batches(range(5), BatchSize(1), lambda batch, images: launch(batch, 4), device.land)


def test_another_error_of_the_device_is_not_taken_for_too_little_memory() -> None:
    def launch(batch: Sequence[int], images: int) -> HostCopy:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    size = BatchSize(8)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_batches(range(5), size, launch, Device(room=8).land)
    assert size.size == 8


def test_nothing_to_do_launches_nothing() -> None:
    device = Device(room=1)
    run_batches([], BatchSize(4), device.launch, device.land)
    assert device.events == []


def test_the_size_is_doubled_up_to_the_cap_where_memory_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 1 << 60)
    tried: list[int] = []
    assert batches.find_size(CPU, tried.append) == batches.CPU_BATCH
    assert tried == [1, 2], "larger batches are extrapolated on a CPU"


class Gpu:
    """Stands in for the memory of a GPU whose peak an earlier build has left high; a batch takes its images times 10."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.allocated, self.peak, self.tried = 100, 5000, []
        for name, value in {
            "mem_get_info": lambda device: (free - 40, 10**6),
            "memory_reserved": lambda device: self.allocated + 40,
            "memory_allocated": lambda device: self.allocated,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", self.allocated),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def attempt(self, images: int) -> None:
        self.tried.append(images)
        self.peak = max(self.peak, self.allocated + 10 * images)


GPU = torch.device("cuda", 1)


def test_on_cuda_every_size_is_tried_and_32_is_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, free=10**6)
    assert batches.find_size(GPU, gpu.attempt) == 32
    assert gpu.tried == [1, 2, 4, 8, 16, 32]


def test_what_an_earlier_build_took_and_freed_does_not_hide_what_a_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, free=100)  # of which 80 may be used, 40 of them kept by PyTorch
    assert batches.find_size(GPU, gpu.attempt) == 8


@pytest.mark.parametrize(("values", "size"), [(2**25, 32), (2**27, 8), (2**31 - 1, 1), (2**40, 1)])
def test_no_automatic_batch_has_a_tensor_of_two_to_the_31_values(
    monkeypatch: pytest.MonkeyPatch, values: int, size: int
) -> None:
    gpu = Gpu(monkeypatch, free=10**6)
    assert batches.find_size(GPU, gpu.attempt, batches.most_images(values, GPU)) == size
    assert max(gpu.tried) == size, "none is tried either"
    assert batches.most_images(values, CPU) is None


def test_the_size_stops_where_twice_as_many_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = iter([1000, 1060, 1090])  # at first, after a batch of one, after a batch of two
    monkeypatch.setattr(batches, "_highest_bytes", lambda device: next(highest))
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 200)  # of which 160 may be used
    assert batches.find_size(CPU, lambda size: None) == 4


@pytest.mark.parametrize(
    ("measured", "size", "expected"), [([10], 2, 20), ([10, 14], 4, 22), ([10, 14, 22], 8, 38), ([5, 5], 64, 5)]
)
def test_memory_is_extrapolated_along_the_last_two_sizes(measured: list[int], size: int, expected: int) -> None:
    assert batches._expected(measured, size) == expected


def test_a_size_is_found_once_and_a_smaller_one_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 1 << 60)
    tried: list[int] = []
    first = remembered_size({"model": "m", "size": 32, "precision": "fp32"}, CPU, tried.append)
    first.halve()
    again = remembered_size({"model": "m", "size": 32, "precision": "fp32"}, CPU, tried.append)
    assert (again.size, tried) == (batches.CPU_BATCH // 2, [1, 2])
    remembered_size({"model": "m", "size": 32, "precision": "bf16"}, CPU, tried.append)
    assert tried == [1, 2, 1, 2]


@pytest.mark.parametrize("content", ["", "[]", '{"x": 99999}', '{"x": "8"}', "{"])
def test_a_damaged_memory_of_sizes_counts_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "distil-cache").mkdir()
    (tmp_path / "distil-cache" / "batch-sizes.json").write_text(content)
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 1 << 60)
    tried: list[int] = []
    assert remembered_size({"model": "m"}, CPU, tried.append).size == batches.CPU_BATCH
    assert tried == [1, 2]


def test_rows_come_and_go_unchanged() -> None:
    rows = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1]
    arrays = HostCopy({"same": to_device(rows, CPU)}).arrays()
    assert np.array_equal(arrays["same"], rows)
