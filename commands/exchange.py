"""The commands ``cache export`` (to webdataset tars) and ``cache import`` (from the loose files of other scripts)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import SAMPLES_PER_TAR, SHARD_SIZE, ImportKind, Preset, ShardForm
from .options import (
    CacheArgument,
    CodecOption,
    JsonOption,
    StorageOption,
    TeacherWeightsOption,
    command_line,
    render,
)


def cache_export(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option(help="Folder for the export; must be new or empty.", show_default=False)],
    build: Annotated[str | None, typer.Option(help="Build record to export.", show_default=False)] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Dataset to export. --build chooses among several builds of it.", show_default=False),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Features to export, such as image,eps,teacher. Default: all that the build has for a split.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to export. Repeatable. Default: all.", show_default=False),
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(help="Samples per tar.")] = SAMPLES_PER_TAR,
    seed: Annotated[int, typer.Option(help="Random seed of the sample order; the same seed gives the same bytes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Export a build as a shuffled training set of webdataset tars.

    Writes the tars, a README, the specs of the features and SHA-256 checksums to the folder --out.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged.
    """
    from ..cache import Cache
    from ..cache.export.webdataset import export_build
    from .show.cache import show_export
    from .show.progress import RichProgress

    with RichProgress() as progress:
        result = export_build(
            Cache.open(cache), out, build=build, dataset=dataset, features=_names(features), splits=split,
            samples_per_shard=samples_per_shard, seed=seed, progress=progress,
        )  # fmt: skip
    following = f"read {out / 'README.md'}, which says what is in the tars and how to load them"
    render({**result, "next": following}, as_json, show_export)


def cache_import(
    cache: CacheArgument,
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Folders with images and their features.")],
    dataset: Annotated[str, typer.Option(help="Name of the dataset in the cache.", show_default=False)],
    kind: Annotated[
        ImportKind,
        typer.Option(
            help="Scripts that wrote the files: distildire ([SPLIT/]{images,eps,dire}/{reals,fakes}) or dire "
            "({images,recons,dire}/...).",
            show_default=False,
        ),
    ],
    origin: Annotated[
        str,
        typer.Option(
            help="How the files were made, in a few words (model, steps, precision); part of the features' fingerprints."
        ),
    ] = "not told",
    features: Annotated[
        str | None,
        typer.Option(help="Features to import (eps, dire, recon). Default: all that are found.", show_default=False),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="With --kind dire: layout below images/. Default: detected.", show_default=False)
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images of other sizes as the script of the kind does.")
    ] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Also accept DIRE and reconstructions stored as JPEG or WebP.")
    ] = False,
    storage: StorageOption = "float16",
    teacher: Annotated[
        str | None, typer.Option(help="Also compute this teacher's features of the imported DIRE.", show_default=False)
    ] = None,
    teacher_weights: TeacherWeightsOption = None,
    preset: Annotated[
        Preset, typer.Option(help="How the teacher preprocesses DIRE: as in the paper, or as in its published code.")
    ] = "paper",
    train_size: Annotated[
        int | None, typer.Option(help="Side length of the teacher's input. Default: the preset's.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="Device of the teacher: auto, cpu or cuda:N.")] = "auto",
    shard_size: Annotated[int, typer.Option(help="Images per new shard.")] = SHARD_SIZE,
    form: Annotated[ShardForm, typer.Option("--format", help="Format of new shards.")] = "zarr",
    codec: CodecOption = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any image was rejected.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Import features that the scripts of DistilDIRE or DIRE wrote as loose files.

    Writes shards, a revision of the dataset and a build record; computes nothing but, with --teacher, teacher features.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 3 every image of a class was rejected, or any image (with
    --strict), 4 the cache is damaged.
    """
    from ..pipeline.importing.import_config import ImportConfig
    from ..pipeline.importing.importer import run_import
    from .show.cache import show_import
    from .show.progress import RichProgress

    config = ImportConfig.checked(
        sources=tuple(sources), cache=cache, dataset=dataset, kind=kind, origin=origin,
        features=tuple(_names(features) or ()), layout=layout, resize=resize, lossy=lossy, storage=storage,
        teacher=teacher, teacher_weights=teacher_weights, preset=preset, train_size=train_size, device=device,
        shard_size=shard_size, format=form, codec=codec,
    )  # fmt: skip
    with RichProgress() as progress:
        result = run_import(config, progress)
    following = command_line(["train", "--cache", cache, "--dataset", dataset, "--run", f"runs/{dataset}"])
    render({**result, "next": following}, as_json, show_import)
    if result["lost_classes"] or (strict and result["rejected"]):
        raise typer.Exit(3)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
