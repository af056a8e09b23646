"""Options that several commands share, how their values are read, and how a result is printed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..choices import LAYOUT_NAMES, ClusterColumn, CodecChoice, FloatStorage, TestTransform

if TYPE_CHECKING:
    from ..cache.local_copy.reader import LocalCopy

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a summary.")]
CACHE_HELP = "Cache folder, or its URL in an object store, such as s3://BUCKET/FOLDER."
CacheArgument = Annotated[str, typer.Argument(metavar="CACHE", help=CACHE_HELP, show_default=False)]
CacheOption = Annotated[str, typer.Option("--cache", metavar="FOLDER", help=CACHE_HELP, show_default=False)]
LocalCopyOption = Annotated[
    Path | None,
    typer.Option(
        "--local-copy",
        metavar="FOLDER",
        help="Folder on a local disk for copies of the shards that are read, for a cache on remote storage.",
        show_default=False,
    ),
]
LocalCopyGibOption = Annotated[
    float | None,
    typer.Option(
        "--local-copy-gib",
        min=0,
        help="Maximum size of the local copy in GiB. Default: half of the sum of free space and the copy's current size.",
        show_default=False,
    ),
]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the dataset in the cache.", show_default=False)]
SelectOption = Annotated[
    str | None,
    typer.Option("--select", help='Use only matching samples, such as "generator=adm|ldm,source_group=imagenet".'),
]
ClusterOption = Annotated[
    ClusterColumn,
    typer.Option(
        "--cluster",
        metavar="COLUMN",
        help="Resample images with the same value together: group, generator or family; image for each by itself. "
        "auto takes source groups if each class has at least 10.",
    ),
]
SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE",
        help="Image folders, tables, Parquet files with images, webdataset tars or zips: paths, or URLs such as "
        "s3://BUCKET/FOLDER or hf://datasets/OWNER/NAME.",
        show_default=False,
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME|PATTERN",
        help="Layout of the sources: a name (" + ", ".join(LAYOUT_NAMES) + ") or a pattern of folders such as "
        "'{generator}/{split}/{label}'. Default: detected.",
        show_default=False,
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="What words or numbers of classes mean, such as ai=fake,nature=real or 0=fake,1=real.",
        show_default=False,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", help="Names of a table's columns, such as path=file,label=target.", show_default=False),
]
PathPrefixOption = Annotated[
    list[str] | None,
    typer.Option(
        "--path-prefix",
        metavar="OLD=NEW",
        help="Replace the beginning OLD of a table's paths with NEW. Repeatable.",
        show_default=False,
    ),
]
ADM_HELP = (
    "Diffusion model: a checkpoint (.pt, .safetensors), a name (adm256, lsun-bedroom, adm64-cond, adm128-cond, "
    "adm256-cond, adm512-cond, demo, demo-b), hf:OWNER/REPO/FILE, an https:// URL with --sha256, or a folder (also "
    "hf:OWNER/REPO) with a DDPM of diffusers. FILE#SET chooses one of several sets of weights, such as model.pt#ema."
)
AdmOption = Annotated[
    str,
    typer.Option("--adm", help=ADM_HELP),
]
AdmConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--adm-config",
        help="JSON file with the checkpoint's guided-diffusion flags. Default: those stored with the checkpoint.",
        show_default=False,
    ),
]
ClassLabelOption = Annotated[
    str | None,
    typer.Option(
        "--class-label",
        metavar="random:SEED|N",
        help="Class for a class-conditional ADM: drawn for each image from SEED and its key, or N for all.",
        show_default=False,
    ),
]
Sha256Option = Annotated[
    list[str] | None,
    typer.Option(
        "--sha256",
        metavar="HEX",
        help="SHA-256 that downloaded weights must have. Repeatable, for several files.",
        show_default=False,
    ),
]
TeacherWeightsOption = Annotated[
    str | None,
    typer.Option(
        "--teacher-weights",
        help="Weights of the teacher: a file or an address, as for an ADM. Default: published ImageNet weights.",
        show_default=False,
    ),
]
EmbeddingWeightsOption = Annotated[
    str | None,
    typer.Option(
        "--embedding-weights",
        help="Weights of the backbone of the feature embedding, likewise. Default: published ones.",
        show_default=False,
    ),
]
AdmBatchOption = Annotated[
    str, typer.Option("--batch-size", help="Images per ADM call: a number, or auto to find what fits in memory.")
]
StorageOption = Annotated[
    FloatStorage,
    typer.Option(
        "--storage",
        help="How eps and noise are stored: as floats, or rounded to integers of 8 or 4 bits with a scale for each 32 values. "
        "Part of a feature's fingerprint.",
    ),
]
CodecOption = Annotated[
    CodecChoice,
    typer.Option(
        "--codec",
        help="Compression of new zarr shards. auto: what each feature is worth, bytes against the time of reading them.",
    ),
]
WriteRecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--write-recipe",
        metavar="FILE",
        help="Write these options, defaults included, to a recipe (.toml) and stop. Run it with: COMMAND FILE.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="Device: auto, cpu or cuda:N.")]
TransformOption = Annotated[
    TestTransform,
    typer.Option(
        "--test-transform",
        help="How images get the student's input size: centre crop, as in the papers, or resize, as in training.",
    ),
]


def number_or_auto(option: str, text: str) -> int | Literal["auto"]:
    """Parse the value of an option that takes a positive integer or ``auto``."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a positive integer.", param_hint=option)
    return int(text)


def open_local_copy(folder: Path | None, gib: float | None) -> LocalCopy | None:
    """Open the local copy in ``folder``, limited to ``gib`` GiB; None without a folder."""
    from ..cache.local_copy.reader import LocalCopy

    if folder is None:
        if gib is not None:
            raise typer.BadParameter("needs --local-copy.", param_hint="--local-copy-gib")
        return None
    return LocalCopy.at(folder, None if gib is None else int(gib * 2**30))


def command_line(words: Sequence[object]) -> str:
    """Return the command with these words as one types it, for the line that says what to do next."""
    return shlex.join(["distil-cache", *map(str, words)])


def render(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result as JSON, or with ``show`` as a summary."""
    from ..storage.text import harmless, json_text

    if as_json:
        text = json_text(result, indent=2)
        print(text if _printable_here(text) else json.dumps(result, indent=2))
    else:
        show(harmless(result))


def _printable_here(text: str) -> bool:
    """Return whether the encoding of stdout has every character of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
