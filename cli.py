"""The command line: arguments in, one function called, its result rendered. No logic of its own.

Heavy modules are imported inside the commands, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .cli_cache import cache_app
from .cli_options import CacheOption, JsonOption, Preset, SelectOption, ShardForm
from .cli_options import render as _render
from .cli_train import train
from .errors import UserError

app = typer.Typer(
    name="distil-cache",
    help="Compute the expensive features of diffusion-image detectors once, and train, evaluate and compare students from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")
checkpoint_app = typer.Typer(
    help="Exchange trained students with the reference implementation of DistilDIRE.", no_args_is_help=True
)
app.add_typer(checkpoint_app, name="checkpoint")


class Layout(str, Enum):
    """Folder layouts of the sources."""

    distildire = "distildire"
    cnndet = "cnndet"
    dire = "dire"
    genimage = "genimage"
    real_fake = "real-fake"
    table = "table"
    webdataset = "webdataset"


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


DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the dataset in the cache.", show_default=False)]


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
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Image folders, CSV or Parquet tables, or webdataset tars."),
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
    compile_adm: Annotated[
        bool, typer.Option("--compile", help="Compile the ADM first: a minute or more, then faster calls.")
    ] = False,
    shard_size: Annotated[int, typer.Option(help="Images in a new shard.")] = 512,
    form: Annotated[
        ShardForm,
        typer.Option(
            "--format", help="New shards as zarr arrays (compressed), or as tars of .npy files that webdataset streams."
        ),
    ] = ShardForm.zarr,
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
        batch_size=batch_size if batch_size == "auto" else _number("--batch-size", batch_size), shard_size=shard_size, compile=compile_adm,
        format=form.value, min_side=min_side, max_pixels=max_pixels, rehash=rehash,
    )  # fmt: skip
    with RichProgress() as progress:
        result = run_build(config, progress, dry_run=dry_run)
    _render(result, as_json, show_build)
    if strict and result["rejected"]:
        raise typer.Exit(3)


app.command()(train)


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
def audit(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SOURCE...]", help="Image folders, CSV or Parquet tables, or webdataset tars.", show_default=False
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="In place of sources: cache of the dataset to audit.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="The dataset in the cache; its files must still be where they were.", show_default=False),
    ] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="Layout of the sources; recognised on sight if left out.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Images of each class whose pixels are looked at for traces; 0 for none.")
    ] = 400,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 5 if the label is given away.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether real and generated can be told apart without looking at what the images show."""
    from .pipeline.audit import run_audit
    from .rendering import RichProgress
    from .rendering_audit import show_audit

    with RichProgress() as progress:
        result = run_audit(
            tuple(sources or ()), layout=layout and layout.value, cache=cache, dataset=dataset, sample=sample,
            progress=progress,
        )  # fmt: skip
    _render(result, as_json, show_audit)
    if strict and result["found"]:
        raise typer.Exit(5)


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


@checkpoint_app.command("import")
def checkpoint_import(
    file: Annotated[Path, typer.Argument(help="A .pth file of the reference implementation.", show_default=False)],
    run: Annotated[Path, typer.Option(help="Folder of the run to make.", show_default=False)],
    method: Annotated[
        str, typer.Option(help="What the student sees: distildire (image and eps), or eps.")
    ] = "distildire",
    as_json: JsonOption = False,
) -> None:
    """Make a run of a published DistilDIRE checkpoint, so that evaluate and report can use it."""
    from .rendering import show_checkpoint
    from .train.official import import_checkpoint

    _render(import_checkpoint(file, run, method), as_json, show_checkpoint)


@checkpoint_app.command("export")
def checkpoint_export(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="File to write: .pth for the reference's loader, or .safetensors.")],
    as_json: JsonOption = False,
) -> None:
    """Write a run's best student under the names that the reference implementation loads."""
    from .rendering import show_checkpoint
    from .train.official import export_checkpoint

    _render(export_checkpoint(run, file), as_json, show_checkpoint)


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on.", param_hint=option)
    return int(text)


def main() -> None:
    """Run the program; a user's mistake ends with its sentence on stderr and its exit code, without a traceback."""
    try:
        app()
    except UserError as error:
        print(f"distil-cache: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
