"""The command ``build``: stage one."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from ..choices import (
    ADM,
    BACKBONE,
    MAX_PIXELS,
    MIN_SIDE,
    SHARD_SIZE,
    STEPS,
    TRIES,
    ImagePreset,
    NoiseReduction,
    Precision,
    Preset,
    ShardForm,
)
from .options import (
    AdmBatchOption,
    AdmConfigOption,
    AdmOption,
    CacheOption,
    DatasetOption,
    DeviceOption,
    JsonOption,
    LayoutOption,
    SourcesArgument,
    number_or_auto,
    render,
)


def build(
    cache: CacheOption,
    dataset: DatasetOption,
    sources: SourcesArgument = None,
    from_cache: Annotated[
        bool,
        typer.Option(
            "--from-cache", help="Start from the dataset's cached pictures and open no source; give the same --adm."
        ),
    ] = False,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            help="With --from-cache: make a derived dataset of perturbed pictures, DATASET@KIND-STRENGTH: jpeg:QUALITY, "
            "resize:SHARE, blur:SIGMA, noise:SIGMA or crop:SHARE; several times for several.",
            show_default=False,
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            help="Splits of a derived dataset, such as val,test. Default: test, else val.", show_default=False
        ),
    ] = None,
    derived_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the derived dataset.", show_default=False)
    ] = None,
    layout: LayoutOption = None,
    adm: AdmOption = ADM,
    adm_config: AdmConfigOption = None,
    preset: Annotated[
        Preset, typer.Option(help="How the teacher sees DIRE: as the paper says, or as its published code does.")
    ] = "paper",
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Features to make (image, eps, recon, dire, noise, teacher), for all splits or, as in test:image,eps, "
            "for one; may be given several times. Default: image,eps; for train also dire,teacher.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Steps of DDIM inversion and of sampling: ddimN, N, or a,b,c.")] = STEPS,
    real_step: Annotated[int, typer.Option(help="Invert only this many steps; 0 for all.")] = 0,
    clip: Annotated[bool, typer.Option(help="Clip x0 to [-1, 1] at each step, as DIRE does.")] = True,
    noise: Annotated[
        NoiseReduction, typer.Option(help="For the feature noise: mean over the inversion, or its first step.")
    ] = "mean",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the cached image in pixels. Default: the ADM's.", show_default=False)
    ] = None,
    image_preset: Annotated[
        ImagePreset, typer.Option(help="Resize and crop as in the DistilDIRE, DIRE or DNF code.")
    ] = "distildire",
    harmonize: Annotated[
        str | None,
        typer.Option(
            help="Bring all pictures to one codec history before anything is computed: jpeg:QUALITY puts each through JPEG "
            "at its full size.",
            show_default=False,
        ),
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the teacher's input. Default: 7/8 of the image; official-code: all.", show_default=False
        ),
    ] = None,
    teacher: Annotated[str, typer.Option(help="Backbone of the teacher: resnet50, efficientnet_lite0.")] = BACKBONE,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(help="The teacher's weights. Default: its published ImageNet ones.", show_default=False),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic of ADM and teacher; part of what a feature is.")
    ] = "fp32",
    device: DeviceOption = "auto",
    batch_size: AdmBatchOption = "auto",
    compile_adm: Annotated[
        bool, typer.Option("--compile", help="Compile the ADM first: a minute or more, then faster calls.")
    ] = False,
    shard_size: Annotated[int, typer.Option(help="Images in a new shard.")] = SHARD_SIZE,
    form: Annotated[
        ShardForm,
        typer.Option(
            "--format", help="New shards as zarr arrays (compressed), or as tars of .npy files that webdataset streams."
        ),
    ] = "zarr",
    min_side: Annotated[int, typer.Option(help="Reject images with a shorter side than this, in pixels.")] = MIN_SIDE,
    max_pixels: Annotated[int, typer.Option(help="Reject images with more pixels than this.")] = MAX_PIXELS,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read every file, also those that look unchanged.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing and what it costs, and make nothing.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(help="With --dry-run: what an hour of one device costs, in any currency.", show_default=False),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With --dry-run: measure for a few seconds how fast this device is.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Compute in this many processes of this machine, each with a GPU of its own if there are any. "
            "Default: in this process.",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Compute on the workers of this Dask scheduler, such as tcp://HOST:8786.", show_default=False
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Make only the I-th of N parts, for array jobs; whichever build finds all there writes the record.",
            show_default=False,
        ),
    ] = None,
    tries: Annotated[
        int,
        typer.Option(help="With workers: set a shard aside when it has failed this often, and go on with the others."),
    ] = TRIES,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 if any image was rejected.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the features of a dataset's images into the cache; what is there already is reused."""
    from ..pipeline.build import run_builds
    from ..pipeline.cluster.placement import Placement
    from ..pipeline.config import build_requests
    from ..pipeline.rates import Quote
    from .show.build import show_builds
    from .show.progress import RichProgress

    gc.freeze()  # the libraries' objects stay: collections between those of a large build need not look at them
    configs = build_requests(
        sources=tuple(sources or ()), cache=cache, dataset=dataset, layout=layout, adm=adm,
        adm_config=adm_config, preset=preset, features=tuple(features or ()), steps=steps, real_step=real_step,
        clip=clip, noise=noise, image_size=image_size, image_preset=image_preset, harmonize=harmonize, train_size=train_size,
        teacher=teacher, teacher_weights=teacher_weights, precision=precision, device=device,
        batch_size=number_or_auto("--batch-size", batch_size), shard_size=shard_size, compile=compile_adm,
        format=form, min_side=min_side, max_pixels=max_pixels, rehash=rehash,
        from_cache=from_cache, perturb=tuple(perturb or ()), splits=splits, name=derived_name,
    )  # fmt: skip
    place = Placement.checked(scheduler, workers, array, tries)
    quote = Quote.checked(price, calibrate, place.processes, dry_run=dry_run)
    with RichProgress() as progress:
        results = run_builds(configs, progress, dry_run=dry_run, place=place, quote=quote)
    render(results[0] if len(results) == 1 else {"builds": results}, as_json, show_builds)
    if strict and any(result["rejected"] for result in results):
        raise typer.Exit(3)
