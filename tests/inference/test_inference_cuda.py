"""What a prediction queues on a GPU, on fake CUDA tensors: nothing on the host, no wait, no map reordered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.spec import fingerprint_of
from distil_cache.choices import Precision
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.dire import DireSpec
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.features.builtin.noise import NoiseSpec
from distil_cache.images.spec import ImageSpec
from distil_cache.inference import Detector, detector
from distil_cache.inference.detector import Options, Threshold
from distil_cache.models.device import HALF_TYPES
from distil_cache.models.diffusion.checkpoints import find_adm
from distil_cache.models.diffusion.unet import AdmConfig
from distil_cache.models.layout import memory_layout
from distil_cache.train.config import TrainConfig
from distil_cache.train.runs.folder import RECORD_VERSION, RunRecord, now, versions
from distil_cache.train.students.pixels import PixelStudent
from distil_cache.train.students.student import Student
from fake_cuda import CudaLog, fake_adm, fake_cuda, on_fake_cuda, on_host
from image_bytes import noise
from small_models import CONFIG, SIDE, write_adm
from torch.utils._python_dispatch import _disable_current_modes

CONDITIONAL = CONFIG.model_copy(update={"class_cond": True})
BATCH = 2
IMAGES = 5


def detector_on_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, config: AdmConfig, precision: Precision, **options: Any
) -> Detector:
    """Make the detector of a run on the GPU; its student sees images of 12 pixels, and 5 at a time."""
    label = "random:0" if config.class_cond else None
    with _disable_current_modes():
        adm = str(write_adm(folder / "adm.safetensors", config=config))
        identity = AdmIdentity.of(find_adm(adm, class_label=label).digest, config, label)
        student = PixelStudent.of("small", 3 * len(TrainConfig.checked(dataset="d", method=method).definition.inputs))
    shared: dict[str, Any] = {"image": ImageSpec(size=SIDE), "adm": identity, "precision": precision}
    specs = {
        "image": shared["image"], "eps": EpsSpec(**shared), "dire": DireSpec(**shared, steps="ddim2"),
        "noise": NoiseSpec(**shared, steps="ddim2"),
    }  # fmt: skip
    canonical = {name: spec.canonical() for name, spec in specs.items()}
    record = RunRecord(
        version=RECORD_VERSION,
        run="r",
        config=TrainConfig.checked(dataset="d", method=method, backbone="small", batch_size=3),
        cache="",
        dataset="d",
        revision="",
        build="",
        fingerprints={name: fingerprint_of(spec) for name, spec in canonical.items()},
        specs=canonical,
        train_size=12,
        teacher_channels=None,
        seen_generators=(),
        samples={"train": 0, "val": 0},
        validation="none",
        created=now(),
        versions=versions(),
    )

    def placed(student: Student, device: torch.device) -> Student:
        with _disable_current_modes():
            student.to("meta")
        return on_fake_cuda(student, memory_layout(device))  # type: ignore[no-any-return]

    monkeypatch.setattr(detector, "move_network", placed)
    monkeypatch.setattr(detector, "probability", lambda logits: on_host(lambda: np.full(len(logits), 0.75, np.float32)))
    settings = Options.checked(adm=adm, device="cuda:0", batch_size=BATCH, workers=1, **options)
    made = Detector(student, record, Threshold.of(0.5, None), settings)
    made.maker.adm = fake_adm(config, precision)
    return made


@pytest.mark.parametrize(
    ("method", "config", "precision", "options", "features"),
    [
        ("distildire", CONFIG, "fp32", {}, 0),
        ("distildire", CONDITIONAL, "tf32", {"transform": "resize"}, 0),
        ("eps", CONDITIONAL, "bf16", {}, 0),
        ("dnf", CONDITIONAL, "fp16", {}, 0),
        ("dire", CONDITIONAL, "fp32", {}, 0),
        ("eps", CONFIG, "fp16", {"explain": True}, 2),
        ("cnndet", CONFIG, "fp32", {}, 0),
    ],
)
def test_a_prediction_keeps_to_the_device_waits_for_nothing_and_copies_no_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: str, config: AdmConfig, precision: Precision, options: dict[str, Any], features: int,
) -> None:  # fmt: skip
    """With ``features`` of the explanation copied to the host beside the logits."""
    if options.get("explain"):
        options = {"explain": tmp_path / "explained"}
    with fake_cuda(monkeypatch), torch.no_grad():
        one = detector_on_gpu(tmp_path, monkeypatch, method, config, precision, **options)
        pictures = [noise(20, 24, seed) for seed in range(IMAGES)]
        with CudaLog() as log:
            found = one.predict(pictures)
    assert [(entry.score, entry.generated) for entry in found] == [(0.75, True)] * IMAGES
    assert (log.on_host, log.waits, log.reordered) == ([], [], [])
    assert log.counts["native_group_norm"] == 0
    assert log.largest < 2**31
    with_adm = method != "cnndet"
    assert log.dtypes == {torch.float32, *([HALF_TYPES.get(precision, torch.float32)] if with_adm else [])}
    of_adm = {(precision == "tf32",) * 2} if with_adm else set()
    assert log.tf32 == {(False, False), *of_adm}, "a student's float32 is float32"
    groups = 3 if with_adm else 1
    copies = (2 + config.class_cond) * with_adm + 1 + 1 + features
    assert log.copies == groups * copies, "of a group: pixels, classes and what is finite; pixels and logits; features"
