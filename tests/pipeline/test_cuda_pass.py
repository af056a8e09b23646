"""What a build queues on a GPU, on fake CUDA tensors: nothing on the host, no wait, no map reordered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.choices import Precision
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.teacher import teacher_views
from distil_cache.features.contract import Single
from distil_cache.features.registry import make_specs, producers_of
from distil_cache.images.spec import ImageSpec
from distil_cache.models.backbones import BackboneSource, build_backbone
from distil_cache.models.device import HALF_TYPES, arithmetic
from distil_cache.models.diffusion.checkpoints import OFFICIAL
from distil_cache.models.diffusion.unet import AdmConfig
from distil_cache.models.layout import memory_layout
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution import compute, networks
from distil_cache.pipeline.execution.batches import BatchSize
from distil_cache.pipeline.execution.networks import given_batch
from distil_cache.progress import Silent
from distil_cache.train.students.pixels import PixelStudent
from fake_cuda import GPU, CudaLog, fake_adm, fake_cuda, on_fake_cuda
from small_models import CONFIG, TINY_FLAGS
from torch.utils._python_dispatch import _disable_current_modes

ADM256 = OFFICIAL["adm256"].config
ADDITIVE = CONFIG.model_copy(update={"use_scale_shift_norm": False})
ONE_LEVEL_MORE = AdmConfig.from_flags(TINY_FLAGS)
CONDITIONAL = CONFIG.model_copy(update={"class_cond": True})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_cuda(monkeypatch), torch.no_grad():
        yield


def specs_of(config: AdmConfig, precision: Precision) -> dict[str, Any]:
    settings = {
        "adm": AdmIdentity.of("0" * 64, config), "precision": precision, "steps": "ddim2", "backbone": "resnet50",
        "weights": "0" * 64, "preset": "paper", "train_size": 56,
    }  # fmt: skip
    if config.class_cond:
        settings["adm"] = AdmIdentity.of("0" * 64, config, "random:0")
    image = {"image": ImageSpec(size=config.image_size)}
    return dict(make_specs(["eps", "recon", "dire", "noise", "teacher"], settings, image))


def run(features: Sequence[str], config: AdmConfig, precision: Precision, images: int, size: int) -> dict[str, Any]:
    """Run the pass of a task of ``images`` images, in batches of ``size``; return the rows that it made."""
    keys = [str(number) for number in range(images)]
    specs = specs_of(config, precision)
    adm, batch = fake_adm(config, precision), BatchSize(size)
    context = SimpleNamespace(
        models=SimpleNamespace(network=lambda producer: adm, batch=lambda producer: batch, device=GPU),
        producers=producers_of({name: specs[name] for name in features}),
        progress=Silent(),
    )
    pixels = np.zeros((images, 3, config.image_size, config.image_size), np.uint8)
    loaded = SimpleNamespace(
        keys=keys, pixels=pixels, to_compute=lambda task, feature: keys if feature in features else []
    )
    with arithmetic(precision, GPU):
        made, _ = compute.compute(None, loaded, context)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("features", "config", "precision"),
    [
        (["eps"], CONFIG, "bf16"),
        (["eps", "recon", "dire", "noise"], CONFIG, "fp32"),
        (["eps", "recon", "dire", "noise"], ONE_LEVEL_MORE, "bf16"),
        (["dire"], ADDITIVE, "fp16"),
        (["eps"], CONDITIONAL, "fp32"),
        (["dire"], CONDITIONAL, "tf32"),
        (["eps"], CONDITIONAL, "bf16"),
        (["eps"], CONDITIONAL, "fp16"),
    ],
)
def test_a_pass_keeps_to_the_device_waits_for_nothing_and_copies_no_map(
    gpu: None, features: list[str], config: AdmConfig, precision: Precision
) -> None:
    with CudaLog() as log:
        made = run(features, config, precision, images=5, size=2)
    assert {name: rows.dtype for name, rows in made.items()} == {
        name: np.uint8 if name in ("recon", "dire") else np.float16 for name in features
    }
    assert (log.on_host, log.waits, log.reordered) == ([], [], [])
    assert log.counts["native_group_norm"] == 0
    assert log.dtypes == {torch.float32, HALF_TYPES.get(precision, torch.float32)}
    assert log.tf32 == {(precision == "tf32",) * 2}
    batches = 3
    assert log.copies == batches * (1 + config.class_cond + len(features) + 1), (
        "pixels, classes; features, whether finite"
    )


@pytest.mark.parametrize("name", ["adm256", "adm256-cond"])
def test_a_call_of_adm256_copies_no_map_and_its_largest_batch_has_no_tensor_that_cuda_cannot_count(
    gpu: None, name: str
) -> None:
    config = OFFICIAL[name].config
    model = fake_adm(config, "bf16")
    images = given_batch(63, GPU, config, 256).size
    x = torch.empty(images, 3, 256, 256, device=GPU).to(memory_format=torch.channels_last)
    classes = (torch.zeros(images, dtype=torch.int64, device=GPU),) if config.class_cond else ()
    with CudaLog() as log:
        made = model(x, torch.full((images,), 950, device=GPU), *classes)
    assert (made.shape, made.dtype, made.device) == ((images, 6, 256, 256), torch.float32, GPU)
    assert (log.on_host, log.waits, log.reordered) == ([], [], [])
    assert log.largest == images * config.largest_map(256) < 2**31 <= 64 * config.largest_map(256)
    assert log.counts["fused_norm"] == 101


def test_without_the_kernels_the_maps_of_adm256_are_reordered_which_the_log_sees(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.execution.networks.fault_on", lambda here: "Triton is not installed")
    model = fake_adm(ADM256, "bf16")
    x = torch.empty(1, 3, 256, 256, device=GPU).to(memory_format=torch.channels_last)
    with CudaLog() as log:
        model(x, torch.zeros(1, dtype=torch.int64, device=GPU))
    assert len(log.reordered) > 80
    assert log.counts["native_group_norm"] == 101


def test_the_teacher_keeps_to_the_device_and_waits_for_nothing(gpu: None) -> None:
    with _disable_current_modes(), torch.device("meta"):
        teacher = build_backbone("resnet50").eval()
    teacher = on_fake_cuda(teacher, memory_layout(GPU))
    dire = torch.empty(2, 3, 64, 64, dtype=torch.uint8, device=GPU)
    with CudaLog() as log:
        maps = teacher_views(teacher, dire, specs_of(CONFIG, "fp32")["teacher"])
    assert (maps.shape, maps.dtype, maps.device) == ((2, 2, 2048, 2, 2), torch.float16, GPU)
    assert (log.on_host, log.waits, log.reordered) == ([], [], [])


def test_a_teacher_is_placed_with_channels_innermost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted:
        def to(self, device: torch.device, memory_format: torch.memory_format) -> tuple[object, ...]:
            return device, memory_format

    monkeypatch.setattr(BackboneSource, "load", lambda _: Noted())
    config = BuildConfig.checked(cache=Path("c"), dataset="d", origin="d", teacher="small")
    (producer,) = producers_of({"teacher": specs_of(CONFIG, "fp32")["teacher"]})
    assert isinstance(producer, Single)
    assert networks.network_on(producer, config, GPU) == (GPU, torch.channels_last)


def test_a_student_keeps_to_the_device_and_waits_for_nothing(gpu: None) -> None:
    with _disable_current_modes(), torch.device("meta"):
        student = PixelStudent.of("resnet50", 6).eval()
    student = on_fake_cuda(student, memory_layout(GPU))
    with CudaLog() as log:
        logit, _ = student({"x": torch.empty(2, 6, 64, 64, device=GPU).to(memory_format=memory_layout(GPU))})
        assert torch.sigmoid(logit).device == GPU
    assert (log.on_host, log.waits, log.reordered) == ([], [], [])
