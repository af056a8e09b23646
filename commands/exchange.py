"""The commands that exchange a cache's rows with others: ``cache export`` and ``cache import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import SAMPLES_PER_TAR, SHARD_SIZE, FloatStorage, ImportKind, Preset, ShardForm
from .options import CacheOption, JsonOption, render


def cache_export(
    cache: CacheOption,
    out: Annotated[Path, typer.Option(help="Folder to make: new, or empty.", show_default=False)],
    build: Annotated[str | None, typer.Option(help="Build record to export.", show_default=False)] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="In the place of --build: dataset whose newest revision has one build.", show_default=False),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Such as image,eps,teacher. Default: all that the build has for a split.", show_default=False
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to export; may be given several times. Default: all.", show_default=False),
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(help="Samples in one tar.")] = SAMPLES_PER_TAR,
    seed: Annotated[
        int, typer.Option(help="Decides the order of the samples; the same seed gives the same bytes.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a build as a joined, shuffled training set of webdataset tars, with a README and checksums."""
    from ..cache import Cache
    from ..cache.export import export_build
    from .show.cache import show_export
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = export_build(
            Cache.open(cache), out, build=build, dataset=dataset, features=_names(features), splits=split,
            samples_per_shard=samples_per_shard, seed=seed, progress=progress,
        )  # fmt: skip
    render(result, as_json, show_export)


def cache_import(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders with images and their features.")],
    cache: CacheOption,
    dataset: Annotated[str, typer.Option(help="Name of the dataset in the cache.", show_default=False)],
    kind: Annotated[
        ImportKind,
        typer.Option(
            help="Whose files: distildire ([SPLIT/]{images,eps,dire}/{reals,fakes}) or dire ({images,recons,dire}/...).",
            show_default=False,
        ),
    ],
    origin: Annotated[
        str, typer.Option(help="What made the files, in a few words (model, steps, precision); part of what they are.")
    ] = "not told",
    features: Annotated[
        str | None, typer.Option(help="Only these: eps, dire, recon. Default: all that are there.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Kind dire: layout below images/; recognised on sight if left out.")
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Kind distildire: resize images of other sizes as its script does.")
    ] = False,
    lossy: Annotated[bool, typer.Option("--lossy", help="Take DIRE and reconstructions in JPEG or WebP too.")] = False,
    storage: Annotated[FloatStorage, typer.Option(help="Store eps in this type.")] = "float16",
    teacher: Annotated[
        str | None, typer.Option(help="Compute also this teacher's features of the imported DIRE.", show_default=False)
    ] = None,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(help="The teacher's weights. Default: its published ImageNet ones.", show_default=False),
    ] = None,
    preset: Annotated[Preset, typer.Option(help="How the teacher sees DIRE.")] = "paper",
    train_size: Annotated[
        int | None, typer.Option(help="Side of the teacher's input. Default: the preset's.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="Where the teacher runs: auto, cpu or cuda:N.")] = "auto",
    shard_size: Annotated[int, typer.Option(help="Images in a new shard.")] = SHARD_SIZE,
    form: Annotated[ShardForm, typer.Option("--format", help="Format of new shards.")] = "zarr",
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 if any image was rejected.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make shards of the loose files that the scripts of DistilDIRE and DIRE write, without computing them anew."""
    from ..pipeline.import_config import ImportConfig
    from ..pipeline.import_run import run_import
    from .show.cache import show_import
    from .show.progress import RichProgress

    config = ImportConfig.checked(
        sources=tuple(sources), cache=cache, dataset=dataset, kind=kind, origin=origin,
        features=tuple(_names(features) or ()), layout=layout, resize=resize, lossy=lossy, storage=storage,
        teacher=teacher, teacher_weights=teacher_weights, preset=preset, train_size=train_size, device=device,
        shard_size=shard_size, format=form,
    )  # fmt: skip
    with RichProgress() as progress:
        result = run_import(config, progress)
    render(result, as_json, show_import)
    if strict and result["rejected"]:
        raise typer.Exit(3)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
