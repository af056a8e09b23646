"""The command ``evaluate``: score a cached split with a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CACHE_HELP,
    ClusterOption,
    DeviceOption,
    JsonOption,
    LocalCopyGibOption,
    LocalCopyOption,
    SelectOption,
    TransformOption,
    command_line,
    open_local_copy,
    render,
)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.", show_default=False)],
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache", metavar="FOLDER", help=f"{CACHE_HELP} Default: that of the training.", show_default=False
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="Name of the dataset in the cache. Default: that of the training.", show_default=False
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    select: SelectOption = None,
    test_transform: TransformOption = "crop",
    build_id: Annotated[
        str | None, typer.Option("--build", help="Build record to read, if several match.", show_default=False)
    ] = None,
    cluster: ClusterOption = "auto",
    device: DeviceOption = "auto",
    local_copy: LocalCopyOption = None,
    local_copy_gib: LocalCopyGibOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a split of a dataset with a trained student.

    Reads the features from the cache. Writes scores, metrics and a gallery to the folder evaluations/ of the run.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged.
    """
    from ..train.evaluation.evaluate import chosen_data, run_evaluation, stored_summary
    from .show.progress import RichProgress
    from .show.train import show_evaluation

    root, name, defaults = chosen_data(run, cache, dataset)
    with RichProgress() as progress:
        result = run_evaluation(
            run, root, name, split=split, select=select, transform=test_transform, build=build_id,
            device=device, local_copy=open_local_copy(local_copy, local_copy_gib), progress=progress,
        )  # fmt: skip
    _, summary = stored_summary(run, result, cluster)
    following = ["report", run, "--out", "report"]
    told = {**result, "defaults": defaults, "summary": summary, "next": command_line(following)}
    render(told, as_json, show_evaluation)
