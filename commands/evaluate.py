"""The commands that look at data and at trained students: ``evaluate``, ``report``, ``audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import (
    CacheOption,
    DatasetOption,
    DeviceOption,
    JsonOption,
    LayoutOption,
    LocalCopyGibOption,
    LocalCopyOption,
    SelectOption,
    SourcesArgument,
    Transform,
    TransformOption,
)
from .cli_options import open_local_copy as _open_local_copy
from .cli_options import render as _render


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    cache: CacheOption,
    dataset: DatasetOption,
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    select: SelectOption = None,
    test_transform: TransformOption = Transform.crop,
    build_id: Annotated[
        str | None, typer.Option("--build", help="Build record to read, if several fit.", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    local_copy: LocalCopyOption = None,
    local_copy_gib: LocalCopyGibOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a split with a trained student and keep the scores in the run."""
    from .rendering import RichProgress, show_evaluation
    from .train import run_evaluation

    with RichProgress() as progress:
        result = run_evaluation(
            run, cache, dataset, split=split, select=select, transform=test_transform.value, build=build_id,
            device=device, local_copy=_open_local_copy(local_copy, local_copy_gib), progress=progress,
        )  # fmt: skip
    _render(result, as_json, show_evaluation)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the page, Markdown, LaTeX, JSON, flat tables and scores.", show_default=False),
    ],
    bench: Annotated[
        Path | None, typer.Option(help="File of bench --out: adds what each method costs.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: accuracy and AP per test generator, curves, galleries. Reads the runs and nothing else."""
    from .rendering import show_report
    from .train import write_report
    from .train.report.costs import additions as costs

    content = write_report(runs, out, additions=[costs(bench)] if bench else [])
    _render({**content, "html": str(out / "report.html")}, as_json, show_report)


def audit(
    sources: SourcesArgument = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="In place of sources: cache of the dataset to audit.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="The dataset in the cache; its files must still be where they were.", show_default=False),
    ] = None,
    layout: LayoutOption = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Images of each class whose pixels are looked at for traces; 0 for none.")
    ] = 400,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 5 if the label is given away.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether real and generated can be told apart without looking at what the images show."""
    from .pipeline.audit import run_audit
    from .rendering import RichProgress
    from .rendering_audit import show_audit

    with RichProgress() as progress:
        result = run_audit(
            tuple(sources or ()), layout=layout and layout.value, cache=cache, dataset=dataset, sample=sample,
            progress=progress,
        )  # fmt: skip
    _render(result, as_json, show_audit)
    if strict and result["found"]:
        raise typer.Exit(5)
