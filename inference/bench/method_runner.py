"""One method at work, from a decoded image to a probability: the whole of what is timed.

The features are those of a build: computed by the same pass, brought to the type in which the cache stores them, cropped
and scaled as an evaluation does. Only the students' weights are drawn at random: speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...choices import Precision
from ...models.device import set_precision
from ...models.diffusion.checkpoints import read_adm
from ...models.diffusion.ddim import extract
from ...models.diffusion.noise_schedule import NoiseSchedule
from ...models.diffusion.unet import Adm, AdmConfig
from ...pipeline.execution.compute import to_signal
from ...pipeline.execution.networks import placed
from ...pipeline.execution.transfer import to_device
from ...train.data.augment import test_input
from ...train.methods import METHODS, Method
from ...train.runs.checkpoint import load_weights
from ...train.student import Student, build_student
from .timing import PassTimer

ARRIVE, ADM, STUDENT, LEAVE = "to the device", "ADM", "student", "to the host"
"""Stages of a pass. ``ADM`` holds the DDIM arithmetic between the calls too."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class MethodJob:
    """What a process needs to know to load and run one method, in plain values.

    adm : weights file. student : a file of `save_weights`. size : side of the decoded image. threads : of the CPU.
    """

    method: str
    adm: str
    flags: dict[str, Any]
    student: str
    backbone: str
    size: int
    steps: str
    batch_size: int
    device: str
    precision: Precision
    threads: int

    def plain(self) -> dict[str, Any]:
        """The same as a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class MethodRunner:
    """A method ready to run. ``adm`` is not asked where no feature needs it; ``side`` is the student's, in pixels."""

    method: Method
    student: Student
    adm: Adm | None
    schedule: NoiseSchedule
    side: int
    device: torch.device

    def __call__(self, pixels: Pixels, clock: PassTimer) -> NDArray[np.float32]:
        """Probability of generated, (B,), of decoded images (B, 3, S, S)."""
        with torch.inference_mode():
            image = to_device(pixels, self.device)
            clock.mark(ARRIVE)
            features = {"image": image}
            if self.method.inputs != ("image",):
                features |= self._extracted(image)
                clock.mark(ADM)
            logit, _ = self.student(test_input(features, self.method, self.side, "crop"))
            probability = torch.sigmoid(logit)
            clock.mark(STUDENT)
            values: NDArray[np.float32] = probability.cpu().numpy()
            clock.mark(LEAVE)
            return values

    def _extracted(self, image: Tensor) -> dict[str, Tensor]:
        """What the method sees besides the image, as the cache would hold it."""
        assert self.adm is not None
        wanted = set(self.method.inputs) - {"image"}
        found = extract(self.adm, to_signal(image), self.schedule, wanted)
        made = {"eps": found.eps, "noise": found.noise_mean, "dire": found.dire}
        kept = {name: made[name] for name in wanted}
        return {name: x.half() if x.is_floating_point() else x for name, x in kept.items() if x is not None}


def set_up_process(job: MethodJob) -> torch.device:
    """Set a process up for a job; returns its device. Raises UsageError for a precision that the device lacks."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    set_precision(job.precision, device)
    return device


def load_job_adm(job: MethodJob, device: torch.device) -> Adm:
    """Load the job's diffusion model onto the device."""
    model = read_adm(Path(job.adm), AdmConfig.model_validate(job.flags))
    return placed(model, job.precision, device)


def load_method_runner(job: MethodJob, device: torch.device, adm: Callable[[], Adm]) -> MethodRunner:
    """Load a job's student onto the device, and the diffusion model by ``adm`` if the method asks it."""
    method = METHODS[job.method]
    student = build_student(job.backbone, method.channels)
    load_weights(Path(job.student), student)
    return MethodRunner(
        method=method,
        student=student.eval().requires_grad_(False).to(device),
        adm=adm() if method.inputs != ("image",) else None,
        schedule=AdmConfig.model_validate(job.flags).schedule(job.steps),
        side=method.side(job.size, None),
        device=device,
    )


def some_images(count: int, size: int) -> Pixels:
    """Pictures (N, 3, S, S) of noise, always the same: what they show changes no time."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
