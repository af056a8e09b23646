"""One arithmetic in all commands: float32 without TF32 unless it is asked for, whatever else the process has set."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.choices import Precision
from distil_cache.errors import UsageError
from distil_cache.models.backbones import build_backbone
from distil_cache.models.device import arithmetic, check_precision, is_out_of_memory
from distil_cache.models.diffusion.unet import Adm
from distil_cache.pipeline.importing.import_config import ImportConfig
from distil_cache.pipeline.importing.importer import run_import
from distil_cache.progress import Silent
from distil_cache.train.students.pixels import PixelStudent
from loose_files import write_distildire
from predict_runs import build, detector, train
from small_models import write_adm, write_images, write_teacher

GPU = torch.device("cuda", 1)
KINDS = {Adm: "Adm", PixelStudent: "Student", type(build_backbone("small")): "Backbone"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Simulate a new GPU, and return the devices that were made the current one."""
    chosen: list[torch.device] = []

    def current(here: torch.device) -> nullcontext[None]:
        chosen.append(here)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", current)
    simulate(monkeypatch, "H", (9, 0))
    return chosen


def simulate(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda here: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda here: capability)


def settings() -> tuple[bool, ...]:
    """TF32 of matrix products and of cuDNN, and whether cuDNN's kernels are measured and deterministic."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_tf32_is_used_only_where_it_is_asked_for_and_the_settings_are_restored(
    precision: Precision, gpu: list[torch.device]
) -> None:
    before = settings()
    with arithmetic(precision, GPU):
        assert settings() == (precision == "tf32", precision == "tf32", False, True)
    assert settings() == before
    assert gpu == [GPU], "the device is the current one"


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has flags alone")
def test_settings_that_a_program_has_left_in_contradiction_to_the_flags_are_overruled_and_restored(
    gpu: list[torch.device],
) -> None:
    matmul, conv, rnn = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    libraries, flags = (matmul, conv, rnn), settings()
    before = [library.fp32_precision for library in libraries]
    try:
        matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"
        with arithmetic("fp32", GPU):
            assert [library.fp32_precision for library in libraries] == ["ieee"] * 3
            assert settings()[:2] == (False, False)
        assert [library.fp32_precision for library in libraries] == ["tf32", "ieee", before[2]]
    finally:
        matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags[:2]
        for library, precision in zip(libraries, before, strict=True):
            library.fp32_precision = precision


def test_a_thread_that_needs_the_other_arithmetic_waits_and_one_that_needs_the_same_does_not(
    gpu: list[torch.device],
) -> None:
    seen: list[tuple[bool, bool]] = []
    other_ended = threading.Event()

    def compute(precision: Precision, expected: bool) -> None:
        with arithmetic(precision, GPU):
            seen.append((settings()[0], expected))
        if expected:
            other_ended.set()

    other = threading.Thread(target=compute, args=("tf32", True))
    with arithmetic("fp32", GPU):
        other.start()
        same = threading.Thread(target=compute, args=("bf16", False))
        same.start()
        same.join()
        assert not other_ended.is_set()
        assert settings()[0] is False
    other.join()
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_that_is_older_than_a_precision_is_a_sentence(
    precision: Precision, gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_precision(precision, GPU)
    simulate(monkeypatch, "Tesla T4", (7, 5))
    check_precision("fp16", GPU)
    check_precision("fp32", GPU)
    with pytest.raises(UsageError, match=f"--precision {precision}: Tesla T4 does not have it .* 7.5, and .* 8.0"):
        check_precision(precision, GPU)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Unable to find an engine to execute this computation"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_recognised_in_all_its_forms(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this PyTorch raises RuntimeError")
def test_an_error_of_the_accelerator_may_mean_too_little_memory() -> None:
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: unspecified launch failure"))


class Blocks:
    """Stands in for `arithmetic`: notes in which block each kind of network runs."""

    def __init__(self) -> None:
        self.open: list[Precision] = []
        self.seen: dict[str, set[tuple[Precision, ...]]] = {}

    @contextmanager
    def block(self, precision: Precision, where: torch.device) -> Iterator[None]:
        self.open.append(precision)
        yield
        self.open.pop()

    def note(self, module: torch.nn.Module, inputs: Any) -> None:
        first = next(iter(inputs[0].values())) if isinstance(inputs[0], dict) else inputs[0]
        if type(module) in KINDS and not first.is_meta:  # where shapes are asked for, nothing is computed
            self.seen.setdefault(KINDS[type(module)], set()).add(tuple(dict.fromkeys(self.open)))

    def taken(self) -> dict[str, set[tuple[Precision, ...]]]:
        seen, self.seen = self.seen, {}
        return seen


def test_every_network_of_every_command_runs_in_the_block_of_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adm(tmp_path / "adm.safetensors")
    images = write_images(tmp_path / "images", {"train": 4, "test": 2})
    teacher = {"teacher": "small", "teacher_weights": write_teacher(tmp_path / "teacher.safetensors")}
    blocks = Blocks()
    for name, module in list(sys.modules.items()):
        if name.startswith("distil_cache.") and getattr(module, "arithmetic", None) is arithmetic:
            monkeypatch.setattr(module, "arithmetic", blocks.block)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(blocks.note)
    try:
        build(tmp_path, images, "image,eps,dire,teacher", precision="bf16", **teacher)
        assert blocks.taken() == {"Adm": {("bf16",)}, "Backbone": {("bf16",)}}
        loose = write_distildire(tmp_path / "loose", {"train": 1})
        run_import(
            ImportConfig.checked(
                sources=(loose,), cache=tmp_path / "imported", dataset="d", kind="distildire", device="cpu", **teacher
            ),
            Silent(),
        )
        assert blocks.taken() == {"Backbone": {("fp32",)}}
        train(tmp_path, "eps")
        assert blocks.taken()["Student"] == {("fp32",)}
        detector(tmp_path, "eps").predict([str(file) for file in images.rglob("*.png")])
        assert {name: seen for name, seen in blocks.taken().items() if name != "Backbone"} == {
            "Adm": {("bf16",)},
            "Student": {("fp32",)},
        }
    finally:
        hook.remove()
