"""The command ``build``: compute features into a cache."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

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
    PassCalls,
    Precision,
    Preset,
    ShardForm,
    Split,
)
from ..errors import UserError
from .command import typed_again
from .options import (
    AdmBatchOption,
    AdmConfigOption,
    AdmOption,
    CacheOption,
    ClassLabelOption,
    CodecOption,
    ColumnsOption,
    DatasetOption,
    DeviceOption,
    EmbeddingWeightsOption,
    JsonOption,
    LabelsOption,
    LayoutOption,
    PathPrefixOption,
    Sha256Option,
    SourcesArgument,
    StorageOption,
    TeacherWeightsOption,
    WriteRecipeOption,
    command_line,
    number_or_auto,
    render,
)
from .profiles import ProfileOption, chosen_profile, profile_settings
from .recipes import recipe_bytes, save_recipe, show_recipe


def build(
    ctx: typer.Context,
    cache: CacheOption,
    dataset: DatasetOption,
    sources: SourcesArgument = None,
    profile: ProfileOption = None,
    from_cache: Annotated[
        bool,
        typer.Option(
            "--from-cache", help="Compute from the dataset's cached images, without sources. Needs the same --adm."
        ),
    ] = False,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            help="With --from-cache: build a derived dataset of perturbed images, named DATASET@KIND-STRENGTH: "
            "jpeg:QUALITY, resize:FRACTION, blur:SIGMA, noise:SIGMA or crop:FRACTION. Repeatable.",
            show_default=False,
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            help="Splits of a derived dataset, such as val,test. Default: test, or val if there is no test.",
            show_default=False,
        ),
    ] = None,
    derived_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the derived dataset.", show_default=False)
    ] = None,
    real: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Folder of real images. Repeatable.", show_default=False),
    ] = None,
    fake: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR", help="Folder of images of the generator NAME. Repeatable.", show_default=False
        ),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(help="Split of images for which the sources name none.", show_default=False),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="TRAIN/VAL/TEST",
            help="Divide images for which the sources name no split, such as 80/10/10. Keeps source groups and near duplicates together.",
            show_default=False,
        ),
    ] = None,
    split_seed: Annotated[int, typer.Option(help="With --split-by: another seed gives another division.")] = 0,
    layout: LayoutOption = None,
    labels: LabelsOption = None,
    columns: ColumnsOption = None,
    path_prefix: PathPrefixOption = None,
    adm: AdmOption = ADM,
    adm_config: AdmConfigOption = None,
    class_label: ClassLabelOption = None,
    sha256: Sha256Option = None,
    preset: Annotated[
        Preset, typer.Option(help="How the teacher preprocesses DIRE: as in the paper, or as in its published code.")
    ] = "paper",
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Features to compute, such as image,eps,dire, for all splits or, as in test:image,eps, for one. "
            "The reference lists all. Repeatable. Default: image,eps, and for train also dire,teacher.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(help="DDIM steps of inversion and sampling (timestep respacing): ddimN, N, or a,b,c.")
    ] = STEPS,
    real_step: Annotated[int, typer.Option(help="Invert only the first N steps; 0 inverts all.")] = 0,
    calls: Annotated[
        PassCalls,
        typer.Option(
            help="At which steps the ADM is called: at all, or at about half of them, with the noise in between from "
            "those calls. That changes recon, dire, noise and teacher a little."
        ),
    ] = "all",
    clip: Annotated[bool, typer.Option(help="Clip the predicted x0 to [-1, 1] at each step, as DIRE does.")] = True,
    noise: Annotated[
        NoiseReduction, typer.Option(help="For the feature noise: mean over the inversion steps, or the first step.")
    ] = "mean",
    set_fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FEATURE.FIELD=VALUE",
            help="A setting of one feature alone, such as bands.rings=8; distil-cache features lists them. Repeatable.",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side length of the cached image in pixels. Default: the ADM's.", show_default=False),
    ] = None,
    image_preset: Annotated[
        ImagePreset,
        typer.Option(
            help="Resize and crop as in the DistilDIRE, DIRE or DNF code. dire-v1: what dire was in earlier versions."
        ),
    ] = "distildire",
    harmonize: Annotated[
        str | None,
        typer.Option(
            help="Give all images the same compression history first: jpeg:QUALITY re-encodes each at full size.",
            show_default=False,
        ),
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option(
            help="Side length of the teacher's input. Default: 7/8 of the image's; with official-code, the image's.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="Teacher backbone: resnet50, efficientnet_lite0 or timm:NAME.")
    ] = BACKBONE,
    teacher_weights: TeacherWeightsOption = None,
    embedding: Annotated[
        str, typer.Option(help="Backbone of the feature embedding: resnet50, efficientnet_lite0 or timm:NAME.")
    ] = BACKBONE,
    embedding_weights: EmbeddingWeightsOption = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Autoencoder of the feature vae: a folder of diffusers' AutoencoderKL, or hf:OWNER/REPO/FOLDER.",
            show_default=False,
        ),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Weights of LPIPS for the feature vae_error: the state dict of lpips.LPIPS(net="vgg").',
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Precision of ADM, teacher and embedding; part of a feature's fingerprint.")
    ] = "fp32",
    storage: StorageOption = "float16",
    device: DeviceOption = "auto",
    batch_size: AdmBatchOption = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="On a CPU: most memory of each process, such as 8GiB; decides the automatic batch size. "
            "Default: 80 % of what is free.",
            show_default=False,
        ),
    ] = None,
    compile_adm: Annotated[
        bool, typer.Option("--compile", help="Compile the ADM first: a minute or more, then faster calls.")
    ] = False,
    shard_size: Annotated[int, typer.Option(help="Images per new shard.")] = SHARD_SIZE,
    form: Annotated[
        ShardForm,
        typer.Option(
            "--format", help="Format of new shards: compressed zarr arrays, or tars of .npy files for webdataset."
        ),
    ] = "zarr",
    codec: CodecOption = "auto",
    min_side: Annotated[
        int, typer.Option(help="Reject images whose shorter side has fewer pixels than this.")
    ] = MIN_SIDE,
    max_pixels: Annotated[int, typer.Option(help="Reject images with more pixels than this.")] = MAX_PIXELS,
    one_class: Annotated[
        bool, typer.Option("--one-class", help="Accept sources with only real or only generated images.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read and hash every file, even if its size and time are unchanged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is missing and what it costs. Computes and downloads nothing.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(help="With --dry-run: price of one device hour, in any currency.", show_default=False),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="With --dry-run: measure this device's throughput, and decoding and writing, for a few seconds.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Compute in N worker processes on this machine, each with its own GPU if there are GPUs. "
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
            help="Compute only part I of N, for array jobs. The job that finds all parts done writes the build record.",
            show_default=False,
        ),
    ] = None,
    tries: Annotated[
        int, typer.Option(help="With workers: give up on a shard after N failures and continue with the others.")
    ] = TRIES,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 3 if any image was rejected or not covered.")
    ] = False,
    write_recipe: WriteRecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the features of a dataset's images and store them in the cache.

    Reuses every row that the cache already holds. Writes shards, a revision of the dataset and a build record; with
    --dry-run, shows the plan instead.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 3 an image was rejected, is in no class folder or could not be
    reached (with --strict), 4 the cache is damaged.
    """
    from ..pipeline.build import run_builds
    from ..pipeline.cluster.placement import Placement
    from ..pipeline.config import build_requests
    from ..pipeline.cost import CostRequest
    from .show.build import show_builds
    from .show.progress import RichProgress

    gc.freeze()  # objects of the libraries live on, so garbage collections during a large build need not scan them
    configs = build_requests(
        sources=tuple(sources or ()), real=tuple(real or ()), fake=tuple(fake or ()),
        split=split, split_by=split_by, split_seed=split_seed, cache=cache, dataset=dataset, layout=layout,
        labels=labels, columns=columns, path_prefix=tuple(path_prefix or ()), adm=adm,
        adm_config=adm_config, class_label=class_label, sha256=tuple(sha256 or ()),
        preset=preset, features=tuple(features or ()), set=tuple(set_fields or ()), steps=steps, real_step=real_step,
        calls=calls,
        clip=clip, noise=noise, image_size=image_size, image_preset=image_preset, harmonize=harmonize, train_size=train_size,
        teacher=teacher, teacher_weights=teacher_weights, embedding=embedding, embedding_weights=embedding_weights,
        autoencoder=autoencoder, lpips=lpips,
        precision=precision, storage=storage, device=device,
        batch_size=number_or_auto("--batch-size", batch_size), memory=memory, shard_size=shard_size, compile=compile_adm,
        format=form, codec=codec, min_side=min_side, max_pixels=max_pixels, rehash=rehash, one_class=one_class,
        from_cache=from_cache, perturb=tuple(perturb or ()), splits=splits, name=derived_name,
    )  # fmt: skip
    placement = Placement.checked(scheduler, workers, array, tries)
    quote = CostRequest.checked(price, calibrate, placement.processes, placement.workers, dry_run=dry_run)
    if write_recipe is not None:
        render(save_recipe(ctx, write_recipe), as_json, show_recipe)
        return
    with RichProgress() as progress:
        results = run_builds(configs, progress, dry_run=dry_run, placement=placement, cost_request=quote)
    chosen = profile_settings(ctx, profile)
    with suppress(UserError):  # a cache that may only be read, or a name that no recipe can hold
        _keep_recipe(ctx, cache, results)
    for result in results:
        result["profile"] = chosen
        result["next"] = _next(ctx, cache, result, chosen_profile(ctx, profile))
    render(results[0] if len(results) == 1 else {"builds": results}, as_json, show_builds)
    if strict and any(result["rejected"] or result["warnings"] for result in results):
        raise typer.Exit(3)


def _keep_recipe(ctx: typer.Context, cache: str, results: Sequence[dict[str, Any]]) -> None:
    """Leave the recipe of the command that is running beside the build records that it wrote."""
    from ..cache import Cache

    builds = [result["build"] for result in results if result["build"] is not None]
    if builds:
        recipe, store = recipe_bytes(ctx), Cache.open(cache).builds()
        for build_id in builds:
            store.write_recipe(build_id, recipe)


def _next(ctx: typer.Context, cache: str, result: dict[str, Any], profile: str | None) -> str:
    """Return the command to type after a build, a dry run, or a part of a build that other parts must complete."""
    dataset, splits = result["dataset"], {row["split"] for row in result["counts"]}
    if result["dry_run"]:
        return typed_again(ctx, without=("--dry-run", "--price", "--calibrate"))
    if result["build"] is None:
        return typed_again(ctx, without=("--array",))
    if "train" in splits and result["origin"] is None:
        chosen = ["--profile", profile] if profile else []
        return command_line(["train", "--cache", cache, "--dataset", dataset, "--run", f"runs/{dataset}", *chosen])
    test = dataset if "test" in splits else f"{dataset}:{min(splits)}"
    return command_line(["report", "RUN", "--out", "report", "--on", test])
