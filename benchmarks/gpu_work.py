"""What `gpu.py` measures: one diffusion model on one device, through a build's own code and as the papers' scripts run it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adm_call import plain_adm
from distil_cache.choices import Precision
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.registry import make_specs, producers_of
from distil_cache.features.walk import to_signal
from distil_cache.images.spec import ImageSpec
from distil_cache.inference.bench.flops import adm_call
from distil_cache.inference.bench.random_adm import random_adm
from distil_cache.models.backbones import build_backbone
from distil_cache.models.device import HALF_TYPES, arithmetic
from distil_cache.models.diffusion.checkpoints import OFFICIAL, load_adm
from distil_cache.models.diffusion.ddim import NoiseModel, dire_image, invert, predict, sample, to_uint8
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.layout import move_network
from distil_cache.models.transfer import HostArray
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.batches import BatchSize, find_size, most_images
from distil_cache.pipeline.execution.compute import compute
from distil_cache.pipeline.execution.context import TaskContext
from distil_cache.pipeline.execution.deviation import SAMPLES, Deviation, compared_pass, measure_deviation
from distil_cache.pipeline.execution.load import TaskImages
from distil_cache.pipeline.execution.networks import Models, compiled, placed
from distil_cache.pipeline.planning.plan import Task
from distil_cache.progress import Silent
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

BATCHES = 4
"""Batches of a measurement: the device is kept busy across their borders, as in a build."""
PLAIN_IMAGES = 2
NO_DIGEST = "0" * 64


@contextmanager
def script_arithmetic() -> Iterator[None]:
    """Compute as PyTorch does by default, so as the papers' scripts do: TF32 in cuDNN's convolutions, not in products."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
    yield


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes
    ----------
    device
        The device.
    flags
        Architecture of the diffusion model.
    make
        Makes the model, in float32 on the CPU.
    backbone
        The teacher, with random weights.
    spacing, short
        DDIM steps of DIRE, and of the checks that need no full pass.
    compile
        Compiles a model as ``--compile`` does.
    matrix_side
        Side of the matrices whose product is the device's rate.
    least_seconds
        How long a rate is measured.
    """

    device: torch.device
    flags: AdmConfig
    make: Callable[[], Adm]
    backbone: str
    spacing: str
    short: str
    compile: Callable[[Adm], NoiseModel]
    matrix_side: int
    least_seconds: float

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.flags.image_size

    @cached_property
    def flop(self) -> int:
        """FLOP of a call on one image."""
        return adm_call(self.flags, self.side)[0]

    @cached_property
    def teacher(self) -> nn.Module:
        """The teacher on the device, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return move_network(build_backbone(self.backbone).eval().requires_grad_(False), self.device)

    def images(self, count: int) -> HostArray:
        """Return random images, uint8 (count, 3, S, S); the first ones do not depend on ``count``."""
        rng = np.random.default_rng(0)
        return np.stack([rng.integers(0, 256, (3, self.side, self.side), np.uint8) for _ in range(count)])

    @cached_property
    def source(self) -> Adm:
        """The model in float32 on the CPU, to be copied."""
        return self.make()

    def on_device(self, precision: Precision) -> Adm:
        """Return the model as a build has it."""
        return placed(copy.deepcopy(self.source), precision, self.device)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], *, least: float | None = None) -> float:
        """Return the seconds of some work, a mean over at least ``least``, after one run that is not counted."""
        work()
        self.wait()
        began, runs = time.perf_counter(), 0
        while True:
            work()
            runs += 1
            self.wait()
            spent = time.perf_counter() - began
            if spent >= (self.least_seconds if least is None else least):
                return spent / runs


def adm_subject(device: torch.device, adm: str | None) -> Subject:
    """Return ADM-256 with random weights, or the model of a file or name with its own."""
    flags = OFFICIAL["adm256"].config if adm is None else load_adm(adm).config
    make = (lambda: random_adm(flags)) if adm is None else (lambda: load_adm(adm).model)
    return Subject(device, flags, make, "resnet50", "ddim20", "ddim5", compiled, 8192, 1.0)


def tiny_subject(device: torch.device) -> Subject:
    """Return a tiny model, to try the program out; nothing is compiled."""
    flags = AdmConfig(image_size=16, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="2")
    return Subject(device, flags, lambda: random_adm(flags), "small", "ddim2", "ddim2", lambda m: m, 128, 0.0)


def matrix_rate(subject: Subject, precision: Precision) -> float:
    """Measure TFLOP/s of a large square matrix product of random numbers; zeros would draw less power and run faster."""
    side, dtype = subject.matrix_side, HALF_TYPES.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=subject.device).to(dtype) for _ in range(2))
    with arithmetic(precision, subject.device), torch.inference_mode():
        return 2 * side**3 * 8 / subject.seconds(lambda: [a @ b for _ in range(8)]) / 1e12


def best_batch(subject: Subject, model: NoiseModel, precision: Precision) -> int:
    """Return the batch size that a build would choose."""

    def attempt(images: int) -> None:
        x = torch.zeros(images, 3, subject.side, subject.side, device=subject.device)
        with torch.inference_mode():
            model(x, torch.zeros(images, dtype=torch.int64, device=subject.device))

    with arithmetic(precision, subject.device):
        return find_size(subject.device, attempt, most_images(subject.flags.largest_map(subject.side), subject.device))


def call_rate(subject: Subject, model: NoiseModel, precision: Precision, batch: int) -> float:
    """Measure images x ADM calls a second, over batches of random images that are queued one after another."""
    shape = (batch, 3, subject.side, subject.side)
    with arithmetic(precision, subject.device), torch.inference_mode():
        inputs = [
            to_signal(torch.randint(0, 256, shape, dtype=torch.uint8, device=subject.device)) for _ in range(BATCHES)
        ]
        times = [torch.full((batch,), 50 * number, device=subject.device) for number in range(BATCHES)]
        run = lambda: [model(x, t) for x, t in zip(inputs, times, strict=True)]  # noqa: E731
        return BATCHES * batch / subject.seconds(run)


def product_context(
    subject: Subject, model: NoiseModel, precision: Precision, batch: BatchSize, spacing: str | None = None
) -> TaskContext:
    """Return what a build's tasks share, with a model that is loaded already."""
    device, spacing = subject.device, spacing or subject.spacing
    config = BuildConfig.checked(
        cache=Path("unused"), dataset="bench", origin="bench", steps=spacing, precision=precision, device=str(device)
    )
    settings = {
        "adm": AdmIdentity.of(NO_DIGEST, subject.flags), "steps": spacing, "precision": precision,
        "backbone": subject.backbone, "weights": NO_DIGEST, "preset": "paper",
    }  # fmt: skip
    specs = make_specs(["image", "eps", "dire", "teacher"], settings, {"image": ImageSpec(size=subject.side)})
    models = Models(config, device, subject.side, specs)
    models.adm, models.adm_batch = model, batch
    models.others["teacher"], models.single_batch = subject.teacher, BatchSize(min(32, batch.size))
    unused: Any = None  # the images are at hand
    return TaskContext(config, producers_of(specs), specs, {}, unused, models, Silent())


def product(
    subject: Subject, context: TaskContext, images: HostArray, features: Sequence[str] = ("eps", "dire", "teacher")
) -> Mapping[str, HostArray]:
    """Compute features of images as a build's task does: batches launched one ahead, rows fetched to the host.

    Raises
    ------
    RuntimeError
        Memory ran out, so that the batches were not those that were asked for.
    """
    asked = context.models.adm_batch.size
    found = halving_product(subject, context, images, features)
    if context.models.adm_batch.size != asked:
        raise RuntimeError(f"memory does not suffice for batches of {asked}")
    return found


def halving_product(
    subject: Subject, context: TaskContext, images: HostArray, features: Sequence[str]
) -> Mapping[str, HostArray]:
    """Do the same, and go on with smaller batches when memory runs out."""
    keys = tuple(f"{number:064x}" for number in range(len(images)))
    task = Task("bench", keys, dict.fromkeys(features, keys))
    with arithmetic(context.config.precision, subject.device):
        return compute(task, TaskImages(keys, images, {}, {}), context)[0]


def product_rate(subject: Subject, model: NoiseModel, precision: Precision, batch: int) -> float:
    """Measure images a second of eps, DIRE and the teacher's features, over `BATCHES` full batches."""
    context = product_context(subject, model, precision, BatchSize(batch))
    images = subject.images(BATCHES * batch)
    product(subject, product_context(subject, model, precision, BatchSize(batch), subject.short), images[:batch])
    subject.wait()
    began = time.perf_counter()
    product(subject, context, images)
    return len(images) / (time.perf_counter() - began)


def plain_rate(subject: Subject, precision: Precision | None) -> float:
    """Measure images a second of the plain procedure; ``precision`` None is what the papers' scripts do by default.

    One image after another: eps by itself, DIRE by itself, then the teacher on it, each fetched before the next begins.
    The networks have their channels outermost, and attention is two einsums. The loop around it is this package's:
    the scripts' own copies its coefficients to the device in each step, which is not counted against them here.
    """
    model, half = plain_adm(subject.source), HALF_TYPES.get(precision or "")
    if half is not None:
        model.to_half(half)
    model = model.to(subject.device)
    teacher = copy.deepcopy(subject.teacher).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    schedule, images = subject.flags.schedule(subject.spacing), subject.images(PLAIN_IMAGES)

    def one(row: HostArray) -> None:
        x = torch.from_numpy(row[None]).to(subject.device).float() / 127.5 - 1
        predict(model, x, next(schedule.ascending())).eps.cpu()
        dire = to_uint8(dire_image(x, sample(model, invert(model, x, schedule).latent, schedule)))
        dire.cpu()
        seen = nn.functional.interpolate(
            dire.float() / 255, size=subject.side * 7 // 8, mode="bilinear", antialias=True
        )
        with torch.autocast(subject.device.type, dtype=half, enabled=half is not None):
            for view in (seen, seen.flip(-1)):
                teacher(view).cpu()

    settings = script_arithmetic() if precision is None else arithmetic(precision, subject.device)
    with settings, torch.inference_mode():
        return PLAIN_IMAGES / subject.seconds(lambda: [one(row) for row in images], least=0.0)


def idle_share(subject: Subject, model: NoiseModel, precision: Precision, batch: int) -> float | None:
    """Return the share of a product run in which the device ran no kernel, from the profiler's trace.

    The run has fewer DDIM steps, since a trace holds every kernel. Tracing slows the host, so a device that waits for it
    seems idle for longer than it is without. None if the trace names no kernel, as where the profiler may not look.
    """
    context = product_context(subject, model, precision, BatchSize(batch), subject.short)
    images = subject.images(BATCHES * batch)
    product(subject, context, images[:batch])
    subject.wait()
    on_card = subject.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as trace:
        product(subject, context, images)
        subject.wait()
    with tempfile.TemporaryDirectory() as folder:
        trace.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text("utf-8"))["traceEvents"]
    kind = "kernel" if on_card else "cpu_op"
    return idle_of([(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") == kind])


def idle_of(intervals: Sequence[tuple[float, float]]) -> float | None:
    """Return the share of the time from the first interval's begin to the last one's end that no interval covers."""
    if not intervals:
        return None
    ordered = sorted(intervals)
    began, reached, idle = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle / (reached - began) if reached > began else 0.0


def deviation(subject: Subject, exact: Adm, reduced: NoiseModel, precision: Precision) -> Deviation:
    """Compare a precision with strict float32 on a few images, as a build in half precision does."""

    def within(model: NoiseModel, own: Precision) -> NoiseModel:
        def call(x: Tensor, t: Tensor) -> Tensor:
            with arithmetic(own, subject.device):
                return model(x, t)

        return call

    pixels = torch.from_numpy(subject.images(SAMPLES)).to(subject.device)
    settings = {"adm": AdmIdentity.of(NO_DIGEST, subject.flags), "steps": subject.spacing}
    walk = compared_pass(ImageSpec(size=subject.side), settings)
    return measure_deviation(within(exact, "fp32"), within(reduced, precision), walk, pixels, [""] * SAMPLES)


def digest(subject: Subject, model: NoiseModel, precision: Precision, batch: int) -> str:
    """Return the SHA-256 of a batch's features, for another process to compare with."""
    context = product_context(subject, model, precision, BatchSize(batch), subject.short)
    hashed = hashlib.sha256()
    for name, rows in sorted(product(subject, context, subject.images(batch)).items()):
        hashed.update(name.encode() + np.ascontiguousarray(rows).tobytes())
    return hashed.hexdigest()


def equal_rows(subject: Subject, model: NoiseModel, precision: Precision, sizes: Sequence[int], feature: str) -> float:
    """Return the share of the first rows of a feature that are the same bytes in batches of all sizes."""
    found = []
    for size in sizes:
        context = product_context(subject, model, precision, BatchSize(size), subject.short)
        found.append(product(subject, context, subject.images(size), (feature,))[feature][: min(sizes)])
    same = [all(np.array_equal(other[row], found[0][row]) for other in found) for row in range(min(sizes))]
    return float(np.mean(same))


def halved(subject: Subject, model: NoiseModel, precision: Precision, batch: int) -> tuple[int, bool]:
    """Run a batch that does not fit; return the size that a build came down to, and whether its rows are those of that size.

    On CUDA the memory of this process is limited to the model and six tenths of what a batch takes beside it. On a CPU,
    which has no such limit, larger batches are refused by hand.
    """
    images, context = subject.images(batch), product_context(subject, model, precision, BatchSize(batch), subject.short)
    size = BatchSize(batch)
    limited = model if subject.device.type == "cuda" else _refusing(model, largest=math.ceil(batch / 2))
    if subject.device.type == "cuda":
        _limit_memory(subject, context, images)
    try:
        tight = product_context(subject, limited, precision, size, subject.short)
        rows = halving_product(subject, tight, images, ("eps",))["eps"]
    finally:
        if subject.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, subject.device)
    plain = product_context(subject, model, precision, BatchSize(size.size), subject.short)
    return size.size, np.array_equal(rows, product(subject, plain, images, ("eps",))["eps"])


def _limit_memory(subject: Subject, context: TaskContext, images: HostArray) -> None:
    device = subject.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    product(subject, context, images, ("eps",))
    subject.wait()
    limit = held + 0.6 * (torch.cuda.max_memory_allocated(device) - held)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory, device)


def _refusing(model: NoiseModel, *, largest: int) -> NoiseModel:
    def call(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > largest:
            raise torch.OutOfMemoryError("refused by hand")
        return model(x, t)

    return call
