"""The command ``predict``: a trained student on new images and videos."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..choices import FRAMES, METHOD, LineForm, Precision
from ..errors import UsageError
from .options import AdmBatchOption, DeviceOption, JsonOption, TransformOption, number_or_auto


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images, videos, folders, patterns such as 'photos/**/*.jpg', or - for a list on stdin.",
            show_default=False,
        ),
    ],
    run: Annotated[Path | None, typer.Option(help="Folder of a trained run.", show_default=False)] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="In place of a run: a .pth or .safetensors file of the reference implementation.", show_default=False
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="What the student in --weights sees: distildire (image and eps), or eps.")
    ] = METHOD,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A score above it says generated. Default: what validation chose, else 0.5.", show_default=False
        ),
    ] = None,
    adm: Annotated[
        str | None,
        typer.Option(
            help="The diffusion model of the run's features: a checkpoint, or a name. Default: found by its digest among "
            "those that are shipped or were fetched before; with --weights: adm256.",
            show_default=False,
        ),
    ] = None,
    adm_config: Annotated[
        Path | None,
        typer.Option(help="JSON with a checkpoint's guided-diffusion flags, where the run does not know them."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The run's cache, for runs of older versions.", show_default=False),
    ] = None,
    test_transform: TransformOption = "crop",
    frames: Annotated[int, typer.Option(help="Frames to look at in a video, evenly spread.")] = FRAMES,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="New folder for image, eps and DIRE of each picture, side by side. DIRE costs about 40 ADM calls.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Arithmetic of the ADM. Default: the run's.", show_default=False)
    ] = None,
    batch_size: AdmBatchOption = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode. Default: up to 8.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write: .json, .jsonl or .csv.", show_default=False)] = None,
    form: Annotated[
        LineForm | None,
        typer.Option("--format", help="Print JSON lines or CSV on stdout as they come.", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 if any file was set aside.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say of images and videos how likely they are generated, with a trained student."""
    from ..inference.detector import Detector
    from ..inference.output import write_object
    from ..inference.predict import run_predict
    from .show.predict import show_predictions
    from .show.progress import RichProgress

    if (run is None) == (weights is None):
        raise UsageError("predict: give either --run or --weights, which says who looks at the images.")
    if as_json and form:
        raise UsageError("predict: --json and --format both write to stdout. Choose one of them.")
    options = {
        "threshold": threshold, "adm": adm, "adm_config": adm_config, "cache": cache, "transform": test_transform,
        "frames": frames, "explain": explain, "device": device, "precision": precision,
        "batch_size": number_or_auto("--batch-size", batch_size),
    } | ({} if workers is None else {"workers": workers})  # fmt: skip

    def load() -> Detector:
        if run is not None:
            return Detector.from_run(run, **options)
        assert weights is not None
        return Detector.from_weights(weights, method, **options)

    lines = (sys.stdout, form) if form else None
    with RichProgress("Interrupted.") as progress:
        result = run_predict(paths, load, progress, listed=sys.stdin.buffer, out=out, lines=lines)
    if as_json:
        write_object(sys.stdout, result)
    elif not form:
        show_predictions(result, out)
    if strict and result["counts"]["set_aside"]:
        raise typer.Exit(3)
