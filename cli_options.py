"""What the modules of the command line share: options of several commands, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a summary.")]
CacheOption = Annotated[Path, typer.Option("--cache", help="Folder of the cache.", show_default=False)]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the dataset in the cache.", show_default=False)]
CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.", show_default=False)]

SelectOption = Annotated[
    str | None,
    typer.Option("--select", help='Only these samples, such as "generator=adm|ldm,source_group=imagenet".'),
]


class Preset(str, Enum):
    """Whose way it is done: as the paper says, or as its published code does."""

    paper = "paper"
    official_code = "official-code"


class Layout(str, Enum):
    """Folder layouts of the sources."""

    distildire = "distildire"
    cnndet = "cnndet"
    dire = "dire"
    genimage = "genimage"
    real_fake = "real-fake"
    table = "table"
    webdataset = "webdataset"


class Transform(str, Enum):
    """What a test image goes through."""

    crop = "crop"
    resize = "resize"


class Precision(str, Enum):
    """Arithmetic of the networks."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class ShardForm(str, Enum):
    """How new shards are stored."""

    zarr = "zarr"
    webdataset = "webdataset"


SourcesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[SOURCE...]", help="Image folders, CSV or Parquet tables, or webdataset tars.", show_default=False
    ),
]
LayoutOption = Annotated[
    Layout | None, typer.Option("--layout", help="Layout of the sources; recognised on sight if left out.")
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
    Transform,
    typer.Option("--test-transform", help="Crop the centre, as the paper does, or resize, as in training."),
]


def number_or_auto(option: str, text: str) -> int | Literal["auto"]:
    """Read the value of an option that takes a number from 1 on, or ``auto``."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on.", param_hint=option)
    return int(text)


def render(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result as JSON, or as ``show`` does it for people."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show(result)
