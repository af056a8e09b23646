"""One table for one GPU: how much of its matrix rate the ADM reaches, and how far the pipeline is from the plain procedure.

    python benchmarks/gpu.py [--model adm256|demo] [--precision fp16] [--images 64] [--compile] [--json FILE]

``adm256`` is the true architecture at 256 pixels, 552.8 million parameters, with random weights: speed does not depend on
their values. The plain procedure runs batch 1, eager, float32 with TF32 allowed, einsum attention, eps and DIRE in separate passes
(41 calls), and the teacher on each image. Without CUDA, ``--model demo`` runs everything on the CPU to try the program out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from adm_call import plain_adm
from compare import conditions
from distil_cache.inference.bench.flops import adm_call
from distil_cache.inference.bench.random_adm import random_adm
from distil_cache.models.backbones import build_backbone
from distil_cache.models.device import HALF_TYPES
from distil_cache.models.diffusion.checkpoints import OFFICIAL, load_adm
from distil_cache.models.diffusion.ddim import extract
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule, respace
from distil_cache.models.diffusion.unet import Adm
from distil_cache.pipeline.execution.batches import BatchSize, find_size, run_batches
from distil_cache.pipeline.execution.deviation import SAMPLES, measure_deviation
from distil_cache.pipeline.execution.networks import compiled, placed
from distil_cache.pipeline.execution.transfer import HostArray, HostCopy, to_device
from torch import Tensor, nn
from torch.nn import functional as F

PLAIN_IMAGES = 2


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    device: torch.device
    model: Adm
    teacher: nn.Module
    schedule: NoiseSchedule
    images: HostArray

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = 3) -> float:
        """Shortest of a few runs, after one to warm up."""
        work()
        self.wait()
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return min(times)


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a large square matrix product."""
    side = 8192 if bench.device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    products = 8
    return 2 * side**3 * products / bench.seconds(lambda: [a @ b for _ in range(products)])


def teacher_view(teacher: nn.Module, dire: Tensor) -> Tensor:
    """The teacher's features of uint8 DIRE, plain and mirrored."""
    seen = F.interpolate(dire.float() / 255, size=max(32, dire.shape[-1] * 7 // 8), mode="bilinear", antialias=True)
    return torch.stack([teacher(seen), teacher(seen.flip(-1))], dim=1).half()


def plain_seconds(bench: Bench) -> float:
    """Seconds an image of the plain procedure."""
    model = plain_adm(bench.model.float())

    def one(row: HostArray) -> None:
        x = torch.from_numpy(row[None]).to(bench.device).float() / 127.5 - 1
        eps = extract(model, x, bench.schedule, {"eps"}).eps
        dire = extract(model, x, bench.schedule, {"dire"}).dire
        assert eps is not None
        assert dire is not None
        eps.cpu(), dire.cpu(), teacher_view(bench.teacher, dire).cpu()

    def run() -> None:
        with torch.inference_mode():
            for row in bench.images[:PLAIN_IMAGES]:
                one(row)

    return bench.seconds(run, rounds=2) / PLAIN_IMAGES


def pipeline_seconds(bench: Bench, model: Callable[[Tensor, Tensor], Tensor], size: BatchSize) -> float:
    """Seconds an image of the pipeline: batches launched one ahead, results fetched to the host."""

    def launch(batch: range, images: int) -> HostCopy:
        rows = bench.images[[*batch, *[batch[-1]] * (images - len(batch))]]
        with torch.inference_mode():
            x = to_device(rows, bench.device).float() / 255 * 2 - 1
            found = extract(model, x, bench.schedule, {"eps", "dire"})
            assert found.eps is not None
            assert found.dire is not None
            return HostCopy(
                {"eps": found.eps.half(), "dire": found.dire, "teacher": teacher_view(bench.teacher, found.dire)}
            )

    def run() -> None:
        run_batches(range(len(bench.images)), size, launch, lambda batch, values: None)

    return bench.seconds(run, rounds=2) / len(bench.images)


def deviation(bench: Bench, exact: Adm, reduced: Adm) -> dict[str, float]:
    """How far half precision is from float32, as a build measures it."""
    x = torch.from_numpy(bench.images[:SAMPLES]).to(bench.device).float() / 255 * 2 - 1
    found = measure_deviation(exact, reduced, x, bench.schedule, clip=True, real_step=0)
    return {
        "relative error of eps": found.eps_relative,
        "share of uint8 DIRE off by more than 1": found.dire_changed,
    }


def measure(options: argparse.Namespace) -> dict[str, float | str]:
    """Everything, in one process."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    make = (
        (lambda: load_adm("demo").model) if options.model == "demo" else (lambda: random_adm(OFFICIAL["adm256"].config))
    )
    size = 32 if options.model == "demo" else 256
    images = torch.randint(
        0, 256, (options.images, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    reduced, exact = (placed(make(), precision, device) for precision in (options.precision, "fp32"))
    teacher = build_backbone("resnet50").eval().requires_grad_(False).to(device)
    bench = Bench(device, exact, teacher, respace("ddim20", noise_schedule="linear", steps=1000), images)
    model = compiled(reduced) if options.compile else reduced

    def attempt(count: int) -> None:
        with torch.inference_mode():
            model(
                torch.zeros(count, 3, size, size, device=device), torch.zeros(count, dtype=torch.int64, device=device)
            )

    batch = BatchSize(options.batch or find_size(device, attempt))
    table: dict[str, float | str] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "batch": batch.size,
    }
    flop, _ = adm_call(exact.config, size)
    call = bench.seconds(lambda: attempt(batch.size)) / batch.size
    rate = matrix_rate(bench, HALF_TYPES[options.precision])
    table |= {"TFLOP of a call": flop / 1e12, f"TFLOP/s of a matrix product, {options.precision}": rate / 1e12}
    table |= {"TFLOP/s of the ADM": flop / call / 1e12, "share of the matrix rate": flop / call / rate}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plain = plain_seconds(bench)
    tf32 = pipeline_seconds(bench, exact, batch)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    full = pipeline_seconds(bench, model, batch)
    table |= {"images/s, plain procedure (TF32)": 1 / plain, "images/s, pipeline (TF32)": 1 / tf32}
    table |= {f"images/s, pipeline ({options.precision})": 1 / full}
    table |= {"ratio at equal precision": plain / tf32, "ratio in half precision": plain / full}
    table |= {"share of time outside ADM calls": 1 - 40 * call / full}
    return {**table, **deviation(bench, exact, reduced)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("adm256", "demo"), default="adm256")
    parser.add_argument("--precision", choices=tuple(HALF_TYPES), default="fp16")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, help="images in a call; default: found under the memory limit")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {**conditions(), **measure(options)}
    for name, value in table.items():
        print(f"{name:52}{value:>14.5g}" if isinstance(value, float) else f"{name:52}{value!s:>14}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
