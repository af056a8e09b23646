"""The command line: arguments in, one function called, its result rendered. No logic of its own.

Heavy modules are imported inside the commands, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import UserError

app = typer.Typer(
    name="distil-cache",
    help="Compute the expensive features of diffusion-image detectors once, and train, evaluate and compare students from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="Look into a cache: what it holds, and whether it is sound.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


class Layout(str, Enum):
    """Folder layouts of the sources."""

    distildire = "distildire"
    cnndet = "cnndet"
    dire = "dire"
    genimage = "genimage"
    real_fake = "real-fake"
    table = "table"


class Preset(str, Enum):
    """How the teacher sees DIRE."""

    paper = "paper"
    official_code = "official-code"


class ImagePreset(str, Enum):
    """How a source image becomes the square that the ADM sees."""

    distildire = "distildire"
    dire = "dire"
    dnf = "dnf"


class Precision(str, Enum):
    """Arithmetic of the networks."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class NoiseReduction(str, Enum):
    """How DNF's noises become one."""

    mean = "mean"
    first = "first"


class Transform(str, Enum):
    """What a test image goes through."""

    crop = "crop"
    resize = "resize"


CacheOption = Annotated[Path, typer.Option("--cache", help="Folder of the cache.", show_default=False)]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the dataset in the cache.", show_default=False)]
SelectOption = Annotated[
    str | None,
    typer.Option("--select", help='Only these samples, such as "generator=adm|ldm,source_group=imagenet".'),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a summary.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"distil-cache {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""


@app.command()
def build(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Image folders, or CSV or Parquet tables.")
    ],
    cache: CacheOption,
    dataset: DatasetOption,
    layout: Annotated[
        Layout | None, typer.Option(help="Layout of the sources; recognised on sight if left out.")
    ] = None,
    adm: Annotated[
        str,
        typer.Option(help="The diffusion model: a checkpoint (.pt, .safetensors), or a name: adm256, demo, demo-b."),
    ] = "adm256",
    adm_config: Annotated[
        Path | None,
        typer.Option(help="JSON with the checkpoint's guided-diffusion flags, if nothing beside it has them."),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="How the teacher sees DIRE: as the paper says, or as its published code does.")
    ] = Preset.paper,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Features to make (image, eps, recon, dire, noise, teacher), for all splits or, as in test:image,eps, "
            "for one; may be given several times. Default: image,eps; for train also dire,teacher.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Steps of DDIM inversion and of sampling: ddimN, N, or a,b,c.")] = "ddim20",
    real_step: Annotated[int, typer.Option(help="Invert only this many steps; 0 for all.")] = 0,
    clip: Annotated[bool, typer.Option(help="Clip x0 to [-1, 1] at each step, as DIRE does.")] = True,
    noise: Annotated[
        NoiseReduction, typer.Option(help="For the feature noise: mean over the inversion, or its first step.")
    ] = NoiseReduction.mean,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the cached image in pixels. Default: the ADM's.", show_default=False)
    ] = None,
    image_preset: Annotated[
        ImagePreset, typer.Option(help="Resize and crop as in the DistilDIRE, DIRE or DNF code.")
    ] = ImagePreset.distildire,
    train_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the teacher's input. Default: 7/8 of the image; official-code: all.", show_default=False
        ),
    ] = None,
    teacher: Annotated[str, typer.Option(help="Backbone of the teacher: resnet50, efficientnet_lite0.")] = "resnet50",
    teacher_weights: Annotated[
        Path | None,
        typer.Option(help="The teacher's weights. Default: its published ImageNet ones.", show_default=False),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic of ADM and teacher; part of what a feature is.")
    ] = Precision.fp32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images in one ADM call: a number, or auto.")] = "auto",
    shard_size: Annotated[int, typer.Option(help="Images in a new shard.")] = 512,
    min_side: Annotated[int, typer.Option(help="Reject images with a shorter side than this, in pixels.")] = 8,
    max_pixels: Annotated[int, typer.Option(help="Reject images with more pixels than this.")] = 178_956_970,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read every file, also those that look unchanged.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing and what it costs, and make nothing.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 if any image was rejected.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the features of a dataset's images into the cache; what is there already is reused."""
    from .pipeline import BuildConfig, run_build
    from .rendering import RichProgress, show_build

    config = BuildConfig.checked(
        sources=tuple(sources), cache=cache, dataset=dataset, layout=layout and layout.value, adm=adm,
        adm_config=adm_config, preset=preset.value, features=tuple(features or ()), steps=steps, real_step=real_step,
        clip=clip, noise=noise.value, image_size=image_size, image_preset=image_preset.value, train_size=train_size,
        teacher=teacher, teacher_weights=teacher_weights, precision=precision.value, device=device,
        batch_size=batch_size if batch_size == "auto" else _number("--batch-size", batch_size), shard_size=shard_size,
        min_side=min_side, max_pixels=max_pixels, rehash=rehash,
    )  # fmt: skip
    with RichProgress() as progress:
        result = run_build(config, progress, dry_run=dry_run)
    _render(result, as_json, show_build)
    if strict and result["rejected"]:
        raise typer.Exit(3)


@app.command()
def train(
    cache: CacheOption,
    dataset: DatasetOption,
    run: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    select: SelectOption = None,
    build_id: Annotated[
        str | None, typer.Option("--build", help="Build record to train from, if several fit.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="What the student learns from: distildire, dire, eps.")] = "distildire",
    kd_weight: Annotated[float, typer.Option(help="Weight of the distillation loss; 0 trains without it.")] = 0.5,
    backbone: Annotated[
        str, typer.Option(help="The student: resnet50, efficientnet_lite0, small, small32.")
    ] = "resnet50",
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and flips.")] = 0,
    train_size: Annotated[
        int | None, typer.Option(help="Side of the student's input. Default: the teacher's.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a student from cached features alone: no source image, no diffusion model."""
    from .rendering import RichProgress, show_train
    from .train import TrainConfig, run_training

    config = TrainConfig.checked(
        dataset=dataset, select=select, build=build_id, method=method, kd_weight=kd_weight, backbone=backbone,
        epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, train_size=train_size,
    )  # fmt: skip
    with RichProgress() as progress:
        result = run_training(config, cache, run, resume=resume, device=device, progress=progress)
    _render(result, as_json, show_train)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    cache: CacheOption,
    dataset: DatasetOption,
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    select: SelectOption = None,
    test_transform: Annotated[
        Transform, typer.Option(help="Crop the centre, as the paper does, or resize, as in training.")
    ] = Transform.crop,
    build_id: Annotated[
        str | None, typer.Option("--build", help="Build record to read, if several fit.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a split with a trained student and keep the scores in the run."""
    from .rendering import RichProgress, show_evaluation
    from .train import run_evaluation

    with RichProgress() as progress:
        result = run_evaluation(
            run, cache, dataset, split=split, select=select, transform=test_transform.value, build=build_id,
            device=device, progress=progress,
        )  # fmt: skip
    _render(result, as_json, show_evaluation)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Compare runs: accuracy and AP per test generator, curves, galleries. Reads the runs and nothing else."""
    from .rendering import show_report
    from .train import write_report

    _render({**write_report(runs, out), "html": str(out / "report.html")}, as_json, show_report)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-out"),
    as_json: JsonOption = False,
) -> None:
    """Show the whole system on real photographs and a small, really trained diffusion model, on the CPU, in minutes."""
    from .demo import run_demo
    from .rendering import RichProgress, show_demo

    with RichProgress() as progress:
        result = run_demo(out, progress)
    _render(result, as_json, show_demo)


@cache_app.command("ls")
def cache_ls(
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)], as_json: JsonOption = False
) -> None:
    """List datasets, builds and features with their sizes, and which runs use what."""
    from .cache import Cache, summary
    from .rendering import show_listing

    _render(summary(Cache.open(cache)), as_json, show_listing)


@cache_app.command("verify")
def cache_verify(
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)], as_json: JsonOption = False
) -> None:
    """Check every marker, checksum, shape and value; end with exit code 4 if anything is damaged."""
    from .cache import Cache, verification
    from .rendering import show_verification

    result = verification(Cache.open(cache))
    _render(result, as_json, show_verification)
    if result["problems"]:
        raise typer.Exit(4)


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on.", param_hint=option)
    return int(text)


def _render(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show(result)


def main() -> None:
    """Run the program; a user's mistake ends with its sentence on stderr and its exit code, without a traceback."""
    try:
        app()
    except UserError as error:
        print(f"distil-cache: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
