"""Run one method from a decoded image to a probability: everything that is timed.

The features are those of a build: computed by the same pass, converted to the stored dtype, and cropped and scaled as
in an evaluation. Only the students' weights are random, since the speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...choices import Precision
from ...features.adm import AdmIdentity
from ...features.registry import make_specs, walk_of
from ...features.walk import Walk
from ...images.spec import ImageSpec
from ...models.device import STUDENT_PRECISION, arithmetic, check_precision
from ...models.diffusion.checkpoints import read_adm
from ...models.diffusion.unet import Adm, AdmConfig
from ...models.layout import move_network
from ...models.transfer import to_device
from ...pipeline.execution.networks import placed
from ...train.data.augment import test_input
from ...train.methods.method import Method
from ...train.methods.registry import METHODS
from ...train.runs.checkpoint import load_weights
from ...train.student import Student, build_student
from .timing import PassTimer

TO_DEVICE, ADM, STUDENT, TO_HOST = "to the device", "ADM", "student", "to the host"
"""Stages of a pass. ``ADM`` includes the DDIM arithmetic between the calls."""
UNKNOWN_WEIGHTS = "0" * 64
"""Digest of weights whose values do not matter."""


@dataclass(frozen=True)
class MethodJob:
    """What a process needs to load and run one method, in plain values.

    Attributes
    ----------
    method : str
    adm : str
        File with the ADM's weights.
    flags : dict
        Guided-diffusion flags of the ADM.
    student : str
        File with the student's weights, written by `save_weights`.
    backbone : str
    size : int
        Side length of the decoded image in pixels.
    steps : str
        DDIM respacing.
    batch_size : int
    device : str
    precision : str
        Precision of the ADM.
    threads : int
        CPU threads.
    choice : str or None
        Which set of weights of the file.
    class_label : str or None
        Choice of classes for a class-conditional ADM; the images of a benchmark have no keys.
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
    choice: str | None = None
    class_label: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the job as a dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MethodRunner:
    """A method that is ready to run.

    Attributes
    ----------
    adm, walk : Adm and Walk, or None
        The diffusion model and the pass through it; None if no feature needs them.
    side : int
        Side length of the student's input in pixels.
    """

    method: Method
    student: Student
    adm: Adm | None
    walk: Walk | None
    side: int
    device: torch.device

    def __call__(self, pixels: NDArray[np.uint8], clock: PassTimer) -> NDArray[np.float32]:
        """Return the probability of generated, (B,) float32, for decoded images (B, 3, S, S) uint8."""
        with torch.inference_mode():
            image = to_device(pixels, self.device)
            clock.mark(TO_DEVICE)
            features = {"image": image}
            if self.walk is not None and self.adm is not None:
                with arithmetic(self.walk.precision, self.device):
                    route = self.walk.route(frozenset(self.walk.specs))
                    features |= self.walk.queue(self.adm, features, [""] * len(image), list(self.walk.specs), route)
                clock.mark(ADM)
            with arithmetic(STUDENT_PRECISION, self.device):
                logit, _ = self.student(test_input(features, self.method, self.side, "crop"))
                probability = torch.sigmoid(logit)
            clock.mark(STUDENT)
            values: NDArray[np.float32] = probability.cpu().numpy()
            clock.mark(TO_HOST)
            return values


def set_up_process(job: MethodJob) -> torch.device:
    """Set the threads for a job and return its device. UsageError if the device lacks the precision."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    check_precision(job.precision, device)
    return device


def load_job_adm(job: MethodJob, device: torch.device) -> Adm:
    """Load the job's diffusion model onto the device."""
    model = read_adm(Path(job.adm), AdmConfig.model_validate(job.flags), job.choice)
    return placed(model, job.precision, device)


def load_method_runner(job: MethodJob, device: torch.device, adm: Callable[[], Adm]) -> MethodRunner:
    """Load a job's student onto the device, and the diffusion model by calling ``adm`` if the method needs it."""
    method = METHODS[job.method]
    student = build_student(job.backbone, method.channels)
    load_weights(Path(job.student), student)
    walk = walk_for(method, AdmConfig.model_validate(job.flags), job.size, job.steps, job.class_label, job.precision)
    return MethodRunner(
        method=method,
        student=move_network(student.eval().requires_grad_(False), device),
        adm=None if walk is None else adm(),
        walk=walk,
        side=method.side(job.size, None),
        device=device,
    )


def walk_for(
    method: Method,
    config: AdmConfig,
    size: int,
    steps: str,
    class_label: str | None = None,
    precision: Precision = "fp32",
) -> Walk | None:
    """Return the pass that makes a method's inputs from images of ``size`` pixels; None for a method that needs none."""
    adm = AdmIdentity.of(UNKNOWN_WEIGHTS, config, class_label)
    settings = {"adm": adm, "steps": steps, "precision": precision}
    return walk_of(make_specs(method.inputs, settings, {"image": ImageSpec(size=size)}))


def noise_images(count: int, size: int) -> NDArray[np.uint8]:
    """Return ``count`` images of noise, (N, 3, S, S), always the same: the content does not affect the time."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
