"""The command ``predict``: score new images and videos with a trained student."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..choices import FRAMES, METHOD, LineForm, Precision
from ..errors import UsageError
from .options import (
    AdmBatchOption,
    ClassLabelOption,
    DeviceOption,
    JsonOption,
    Sha256Option,
    TransformOption,
    command_line,
    number_or_auto,
)


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, videos, folders, glob patterns such as 'photos/**/*.jpg', or - to read paths from stdin.",
            show_default=False,
        ),
    ],
    run: Annotated[Path | None, typer.Option(help="Folder of a trained run.", show_default=False)] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a run: a checkpoint of the reference implementation (.pth, .safetensors).",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="With --weights: input of the student, distildire (image and eps) or eps.")
    ] = METHOD,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Scores above it count as generated. Default: the threshold chosen on validation, or 0.5.",
            show_default=False,
        ),
    ] = None,
    adm: Annotated[
        str | None,
        typer.Option(
            help="Diffusion model of the run's features, as in a build. Default: found by its digest among the shipped and "
            "downloaded ones; with --weights, adm256.",
            show_default=False,
        ),
    ] = None,
    adm_config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the checkpoint's guided-diffusion flags, if the run does not record them.",
            show_default=False,
        ),
    ] = None,
    class_label: ClassLabelOption = None,
    sha256: Sha256Option = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Cache of the run; only for runs of versions that did not record their settings.",
            show_default=False,
        ),
    ] = None,
    test_transform: TransformOption = "crop",
    frames: Annotated[int, typer.Option(help="Evenly spaced frames to score per video.")] = FRAMES,
    weights_of: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FEATURE=FILE",
            help="Weights of the network of a feature, a file or an address. Repeatable. Default: published ones.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            help="New folder for a PNG per image with image, eps and DIRE side by side. DIRE takes about 40 ADM calls.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the ADM. Default: the run's.", show_default=False)
    ] = None,
    batch_size: AdmBatchOption = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Decoding threads. Default: one per CPU core, at most 8.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write the predictions to: .json, .jsonl or .csv.", show_default=False)
    ] = None,
    form: Annotated[
        LineForm | None,
        typer.Option(
            "--format", help="Print predictions on stdout as they are made, as JSON lines or CSV.", show_default=False
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any file was skipped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score how likely images and videos are generated, with a trained student.

    Writes predictions to stdout, with --out also to a file, and with --explain a PNG per image.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 3 a file was skipped (with --strict).
    """
    from ..inference.detector import Detector
    from ..inference.predict import run_predict
    from ..inference.prediction import write_object
    from ..storage.text import harmless
    from .show.predict import show_predictions
    from .show.progress import RichProgress

    if (run is None) == (weights is None):
        raise UsageError("predict: give either --run or --weights, to choose the student.")
    if as_json and form:
        raise UsageError("predict: --json and --format both write to stdout. Choose one.")
    options = {
        "threshold": threshold, "adm": adm, "adm_config": adm_config, "class_label": class_label,
        "sha256": tuple(sha256 or ()), "cache": cache, "transform": test_transform,
        "weights_of": tuple(weights_of or ()), "frames": frames, "explain": explain, "device": device, "precision": precision,
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
    if run is not None:
        result["next"] = command_line(["report", run, "--out", "report"])
    if as_json:
        write_object(sys.stdout, result)
    elif not form:
        show_predictions(harmless(result), out)
    if strict and result["counts"]["set_aside"]:
        raise typer.Exit(3)
