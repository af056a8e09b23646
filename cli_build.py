"""The command ``build``: stage one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import CacheOption, DatasetOption, JsonOption, Layout, Preset, ShardForm
from .cli_options import render as _render


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


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on.", param_hint=option)
    return int(text)
