"""Run one method from a decoded image to a probability: everything that is timed.

The features are those of a build: computed by the same pass, converted to the stored dtype, and cropped and scaled as
in an evaluation. Only the students' weights are random, since the speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...cache.records.about import Layout
from ...cache.spec import Spec
from ...choices import Precision
from ...features.adm import AdmIdentity
from ...features.contract import Network, Producer, Single
from ...features.registry import layout_of, make_specs, networks_of, producers_of, with_their_inputs
from ...features.walk import Walk
from ...images.spec import ImageSpec
from ...models.device import STUDENT_PRECISION, arithmetic, check_precision
from ...models.diffusion.checkpoints import read_adm
from ...models.diffusion.unet import Adm, AdmConfig
from ...models.layout import move_network
from ...models.transfer import to_device
from ...pipeline.config import BuildConfig
from ...pipeline.execution.networks import placed
from ...train.data.augment import test_input
from ...train.methods.method import Method
from ...train.methods.registry import METHODS
from ...train.runs.checkpoint import load_weights
from ...train.students.student import Student, input_shapes
from ..features import plain_view
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
    networks : Mapping
        Network of each producer of ``plan``, by the unit that it counts; None for one without a network.
    """

    plan: MethodPlan
    student: Student
    networks: Mapping[str, Network | None]
    device: torch.device

    def __call__(self, pixels: NDArray[np.uint8], clock: PassTimer) -> NDArray[np.float32]:
        """Return the probability of generated, (B,) float32, for decoded images (B, 3, S, S) uint8."""
        with torch.inference_mode():
            image = to_device(pixels, self.device)
            clock.mark(TO_DEVICE)
            rows = {"image": image}
            for producer in self.plan.producers:
                with arithmetic(self.plan.precision, self.device):
                    rows |= producer.queue_all(self.networks[producer.unit], rows, [""] * len(image))
                clock.mark(ADM if isinstance(producer, Walk) else producer.unit)
            with arithmetic(STUDENT_PRECISION, self.device):
                logit, _ = self.student(self.plan.student_input(rows))
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
    model = placed(read_adm(Path(job.adm), AdmConfig.model_validate(job.flags), job.choice), job.precision, device)
    assert isinstance(model, Adm)
    return model


def load_method_runner(job: MethodJob, device: torch.device, adm: Callable[[], Adm]) -> MethodRunner:
    """Load a job's student onto the device, and the diffusion model by calling ``adm`` if the method needs it."""
    config = AdmConfig.model_validate(job.flags)
    plan = MethodPlan.of(METHODS[job.method], config, job.size, job.steps, job.class_label, job.precision)
    student = plan.random_student(job.backbone)
    load_weights(Path(job.student), student)
    networks: dict[str, Network | None] = {}
    for producer in plan.producers:
        found = plan.random_network(producer) if isinstance(producer, Single) else adm()
        networks[producer.unit] = found if found is None or isinstance(producer, Walk) else move_network(found, device)
    return MethodRunner(plan, move_network(student.eval().requires_grad_(False), device), networks, device)


@dataclass(frozen=True)
class MethodPlan:
    """What makes a method's inputs, from images of a size by a diffusion model.

    Attributes
    ----------
    specs : Mapping
        Specs of the inputs and of all that they are made of, by feature.
    layouts : Mapping
        Of the inputs, by feature.
    producers : sequence of Producer
        What makes them, in the order of computation.
    side : int
        Side length of what lies over the image in the student's input, in pixels.
    """

    method: Method
    specs: Mapping[str, Spec]
    layouts: Mapping[str, Layout]
    producers: Sequence[Producer]
    side: int
    precision: Precision

    @classmethod
    def of(
        cls,
        method: Method,
        config: AdmConfig,
        size: int,
        steps: str,
        class_label: str | None = None,
        precision: Precision = "fp32",
    ) -> Self:
        """Return the plan with the default options of a build."""
        wanted = with_their_inputs(method.inputs)
        networks = {name: source.fields(UNKNOWN_WEIGHTS) for name, source in networks_of(wanted, _options()).items()}
        adm = AdmIdentity.of(UNKNOWN_WEIGHTS, config, class_label)
        settings = {"adm": adm, "steps": steps, "precision": precision, "preset": method.preset}
        specs = make_specs(wanted, settings, {"image": ImageSpec(size=size)}, networks)
        layouts = {name: layout_of(specs[name]) for name in method.inputs}
        return cls(method, specs, layouts, producers_of(specs), method.side(size, None), precision)

    @property
    def walk(self) -> Walk | None:
        """The pass through the diffusion model; None for a method that needs none."""
        return next((producer for producer in self.producers if isinstance(producer, Walk)), None)

    def random_student(self, backbone: str) -> Student:
        """Build the method's student."""
        shapes = input_shapes(self.method.inputs, self.layouts, self.side)
        return self.method.student(self.method, shapes, backbone, None)

    def random_network(self, producer: Single) -> nn.Module | None:
        """Build the network of a feature; None for a feature without one."""
        source = producer.feature.network(_options())
        return None if source is None else source.build()

    def student_input(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's input of an evaluation from the rows of the features."""
        views = {name: plain_view(layout) for name, layout in self.layouts.items()}
        plain = {name: rows[name] if view is None else rows[name][:, view] for name, view in views.items()}
        geometry = {name: layout.geometry for name, layout in self.layouts.items()}
        return test_input(plain, self.method, self.side, "crop", geometry)


def _options() -> dict[str, Any]:
    return {name: field.default for name, field in BuildConfig.model_fields.items()}


def noise_images(count: int, size: int) -> NDArray[np.uint8]:
    """Return ``count`` images of noise, (N, 3, S, S), always the same: the content does not affect the time."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
