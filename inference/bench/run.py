"""Measure what detecting one image costs with each method, for one diffusion model on one device.

Counted: ADM calls, parameters, FLOPs. Timed: a warm image, in interleaved rounds, and a cold start with its peak
memory, each in a fresh process.
"""

from __future__ import annotations

import functools
import io
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ...choices import ADM, BACKBONE, BENCH_PAPERS, ROUNDS, STEPS, Precision
from ...errors import UsageError, UserError
from ...images.decode import decode
from ...images.spec import MAX_SIZE, MIN_SIZE, ImageSpec
from ...models.device import check_precision, choose_device, device_name, is_out_of_memory, keep_freed_memory
from ...models.diffusion.unet import AdmConfig
from ...pipeline.record import versions
from ...progress import Progress, Silent
from ...train.methods.registry import METHODS, find_method
from ...train.runs.checkpoint import replace_text, save_weights
from .cold_start import ColdStart, cold_start
from .flops import FlopCounter
from .method_runner import (
    MethodJob,
    MethodPlan,
    MethodRunner,
    load_job_adm,
    load_method_runner,
    noise_images,
    set_up_process,
)
from .random_adm import BenchModel, find_model, random_adm
from .result import METHODS_IN_ORDER, Cold, Conditions, Costs, MethodCosts, with_ratios
from .timing import PassTimer, Work, device_waiter, medians, time_interleaved

COLD_STARTS = 3
"""Most processes per method; fewer if there are fewer rounds."""

PHOTOGRAPH = (500, 375)
"""Width and height of the file whose decoding is timed: ImageNet's most common size."""

DECODE = "decode"


@dataclass(frozen=True)
class BenchConfig:
    """The settings of a benchmark.

    Attributes
    ----------
    adm, adm_config, class_label, sha256
        The diffusion model, as in a build.
    random_adm : bool
        Use random weights, see `find_model`.
    methods : tuple of str
    backbone : str
        The student's.
    size : int or None
        Side length of the decoded image in pixels; None is the model's.
    batch_size, rounds : int
    device : str
    precision : str
        Precision of the ADM.
    timed : bool
        Measure time and memory, or only count.
    """

    adm: str = ADM
    adm_config: Path | None = None
    class_label: str | None = None
    sha256: tuple[str, ...] = ()
    random_adm: bool = False
    methods: tuple[str, ...] = BENCH_PAPERS
    backbone: str = BACKBONE
    size: int | None = None
    batch_size: int = 1
    rounds: int = ROUNDS
    device: str = "auto"
    precision: Precision = "fp32"
    timed: bool = True


def run_bench(config: BenchConfig, progress: Progress | None = None, out: Path | None = None) -> dict[str, Any]:
    """Run a benchmark.

    Parameters
    ----------
    config : BenchConfig
    progress : Progress, optional
    out : Path, optional
        JSON file to write.

    Returns
    -------
    dict
        The content of `Costs` as plain values.

    Raises
    ------
    UserError
        If the model or backbone cannot be loaded, or memory is too small.
    UsageError
        For an invalid device, precision, method or size, or a file that cannot be written.
    """
    if config.batch_size < 1 or config.rounds < 1:
        raise UsageError("bench: --batch-size and --rounds must be at least 1.")
    names = [find_method(name).name for name in config.methods]
    device = choose_device(config.device)
    keep_freed_memory(device)
    if config.timed:
        check_precision(config.precision, device)
    if out is not None:
        _check_writable(out)
    model = find_model(
        config.adm,
        config.adm_config,
        random=config.random_adm,
        loaded=config.timed,
        class_label=config.class_label,
        sha256=config.sha256,
        progress=progress,
    )
    size = _side(config.size, model.config)
    count = FlopCounter(model.config, size, STEPS, config.backbone)
    others = [name for name in dict.fromkeys(names) if name not in METHODS_IN_ORDER]
    rows = [count(METHODS[name]) for name in (*METHODS_IN_ORDER, *others) if name in names]
    decoding = None
    if config.timed:
        rows, decoding = _timed(config, model, size, device, rows, progress or Silent())
    costs = Costs(
        created=datetime.now(UTC).replace(microsecond=0),
        conditions=_conditions(config, model, size, device),
        rows=with_ratios(rows),
        decode=decoding,
        decoded="JPEG of {} x {} pixels, resized and cropped".format(*PHOTOGRAPH) if config.timed else "",
    )
    result: dict[str, Any] = costs.model_dump(mode="json")
    if out is not None:
        replace_text(out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _side(asked: int | None, adm: AdmConfig) -> int:
    size = asked or adm.image_size
    factor = 2 ** (len(adm.multipliers()) - 1)
    if size % factor or not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(f"--size {size}: this ADM needs multiples of {factor}, from {MIN_SIZE} to {MAX_SIZE}.")
    return size


def _conditions(config: BenchConfig, model: BenchModel, size: int, device: torch.device) -> Conditions:
    return Conditions(
        device=device_name(device) if config.timed else "none: counted, not run",
        threads=torch.get_num_threads(),
        precision=config.precision,
        image_size=size,
        batch_size=config.batch_size,
        rounds=config.rounds,
        steps=STEPS,
        adm=model.name,
        weights=model.digest,
        flags=model.config.model_dump(),
        backbone=config.backbone,
        software=dict(versions()),
    )


def _timed(
    config: BenchConfig,
    model: BenchModel,
    size: int,
    device: torch.device,
    rows: Sequence[MethodCosts],
    progress: Progress,
) -> tuple[list[MethodCosts], float]:
    """Return the rows with times and memory, and the seconds to decode a file."""
    with tempfile.TemporaryDirectory(prefix="distil-cache-bench-") as folder:
        jobs = _jobs(config, [row.method for row in rows], model, size, device, Path(folder))
        cold = _cold(jobs, min(config.rounds, COLD_STARTS), progress)
        passes = _warm(jobs, config.rounds, progress)
    timed = []
    for row in rows:
        warm = medians(passes[row.method], config.batch_size)
        timed.append(row.model_copy(update={"cold": _summary(cold[row.method]), "warm": warm}))
    return timed, statistics.median(one.seconds for one in passes[DECODE])


def _jobs(
    config: BenchConfig, names: Sequence[str], model: BenchModel, size: int, device: torch.device, folder: Path
) -> dict[str, MethodJob]:
    """Write random weights, and return the job of each method."""
    adm = model.path or folder / "adm.safetensors"
    plans = {name: MethodPlan.of(METHODS[name], model.config, size, STEPS) for name in names}
    if model.path is None and any(plan.walk for plan in plans.values()):
        save_file(random_adm(model.config).state_dict(), adm)
    jobs = {}
    for name in names:
        student = folder / f"{name}.safetensors"
        save_weights(student, plans[name].random_student(config.backbone), {})
        jobs[name] = MethodJob(
            method=name,
            adm=str(adm),
            choice=model.choice,
            class_label=config.class_label,
            flags=model.config.model_dump(),
            student=str(student),
            backbone=config.backbone,
            size=size,
            steps=STEPS,
            batch_size=config.batch_size,
            device=str(device),
            precision=config.precision,
            threads=torch.get_num_threads(),
        )
    return jobs


def _cold(jobs: Mapping[str, MethodJob], rounds: int, progress: Progress) -> dict[str, list[ColdStart]]:
    """Measure the cold start of each method in turn, ``rounds`` times."""
    progress.start("cold starts", rounds * len(jobs))
    found: dict[str, list[ColdStart]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            found[name].append(cold_start(job))
            progress.advance("cold starts", 1)
    return found


def _summary(found: Sequence[ColdStart]) -> Cold:
    return Cold(
        processes=len(found),
        start=statistics.median(one.start for one in found),
        load=statistics.median(one.load for one in found),
        first=statistics.median(one.first for one in found),
        peak_bytes=int(statistics.median(one.peak_bytes for one in found)),
    )


def _warm(jobs: Mapping[str, MethodJob], rounds: int, progress: Progress) -> dict[str, list[PassTimer]]:
    """Time all methods and the decoding of a file in interleaved rounds in this process."""
    any_job = next(iter(jobs.values()))
    device = set_up_process(any_job)
    adm = functools.cache(lambda: load_job_adm(any_job, device))
    images = noise_images(any_job.batch_size, any_job.size)

    def work_of(runner: MethodRunner) -> Work:
        return lambda clock: runner(images, clock)

    works = {name: work_of(load_method_runner(job, device, adm)) for name, job in jobs.items()}
    works[DECODE] = _decoding(any_job.size)
    progress.start("rounds", rounds * len(works))
    try:
        return time_interleaved(works, rounds, wait=device_waiter(device), done=lambda: progress.advance("rounds", 1))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"bench: out of device memory with a batch of {any_job.batch_size}. Choose a smaller --batch-size."
        ) from None


def _decoding(size: int) -> Work:
    """Return a function that decodes a photograph-like JPEG to the uint8 image of a build."""
    width, height = PHOTOGRAPH
    y, x = np.mgrid[0:height, 0:width]
    shades = np.stack([x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 17) * np.cos(y / 11)], axis=-1)
    grain = np.random.default_rng(0).normal(0, 6, shades.shape)
    file = io.BytesIO()
    Image.fromarray((shades + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    data, spec = file.getvalue(), ImageSpec(size=size)

    def work(clock: PassTimer) -> None:
        decode(data, spec)
        clock.mark(DECODE)

    return work


def _check_writable(out: Path) -> None:
    """Raise UsageError before minutes of timing if a file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror}). Choose another file.") from error
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder. Choose a file.")
