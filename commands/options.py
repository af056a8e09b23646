"""What the modules of the command line share: options of several commands, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..choices import LayoutName, TestTransform

if TYPE_CHECKING:
    from ..cache.local_copy import LocalCopy

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a summary.")]
CACHE_HELP = "Folder of the cache, or its URL in an object store, such as s3://BUCKET/FOLDER."
CacheOption = Annotated[str, typer.Option("--cache", metavar="FOLDER", help=CACHE_HELP, show_default=False)]
LocalCopyOption = Annotated[
    Path | None,
    typer.Option(
        "--local-copy",
        metavar="FOLDER",
        help="On a disk here: shards that are read are copied to it and used again, if the cache is far away.",
        show_default=False,
    ),
]
LocalCopyGibOption = Annotated[
    float | None,
    typer.Option(
        "--local-copy-gib",
        min=0,
        help="GiB that the copy may hold. Default: half of what its disk has free, or the copy holds, at the start.",
        show_default=False,
    ),
]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the dataset in the cache.", show_default=False)]
CacheArgument = Annotated[str, typer.Argument(metavar="CACHE", help=CACHE_HELP, show_default=False)]

SelectOption = Annotated[
    str | None,
    typer.Option("--select", help='Only these samples, such as "generator=adm|ldm,source_group=imagenet".'),
]


SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE...]",
        help="Image folders, CSV or Parquet tables, or webdataset tars; also as URLs, such as s3://BUCKET/FOLDER.",
        show_default=False,
    ),
]
LayoutOption = Annotated[
    LayoutName | None, typer.Option("--layout", help="Layout of the sources; recognised on sight if left out.")
]
AdmOption = Annotated[
    str,
    typer.Option(
        "--adm", help="The diffusion model: a checkpoint (.pt, .safetensors), or a name: adm256, demo, demo-b."
    ),
]
AdmConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--adm-config", help="JSON with the checkpoint's guided-diffusion flags, if nothing beside it has them."
    ),
]
AdmBatchOption = Annotated[str, typer.Option("--batch-size", help="Images in one ADM call: a number, or auto.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.")]
TransformOption = Annotated[
    TestTransform,
    typer.Option("--test-transform", help="Crop the centre, as the paper does, or resize, as in training."),
]


def number_or_auto(option: str, text: str) -> int | Literal["auto"]:
    """Read the value of an option that takes a number from 1 on, or ``auto``."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on.", param_hint=option)
    return int(text)


def open_local_copy(folder: Path | None, gib: float | None) -> LocalCopy | None:
    """Return what ``--local-copy`` asks for, of at most so many GiB; None if it is not given."""
    from ..cache.local_copy import LocalCopy

    if folder is None:
        if gib is not None:
            raise typer.BadParameter("there is no --local-copy to be bounded.", param_hint="--local-copy-gib")
        return None
    return LocalCopy.at(folder, None if gib is None else int(gib * 2**30))


def render(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result as JSON, or as ``show`` does it for people."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show(result)
