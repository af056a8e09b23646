"""The command ``bench``: measure what each method costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import ADM, BACKBONE, BENCH_METHODS, BENCH_PAPERS, ROUNDS, Precision
from .options import (
    AdmConfigOption,
    AdmOption,
    ClassLabelOption,
    DeviceOption,
    JsonOption,
    Sha256Option,
    command_line,
    render,
)
from .profiles import ProfileOption


def bench(
    profile: ProfileOption = None,
    adm: AdmOption = ADM,
    adm_config: AdmConfigOption = None,
    class_label: ClassLabelOption = None,
    sha256: Sha256Option = None,
    random_adm: Annotated[
        bool,
        typer.Option(
            "--random-adm", help="Use random weights in the shape of adm256 or of --adm-config; needs no checkpoint."
        ),
    ] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"[{'|'.join(BENCH_METHODS)}]",
            help="Only this method. Repeatable. Default: the first five.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Student backbone: resnet50, efficientnet_lite0, small or small32.")
    ] = BACKBONE,
    size: Annotated[
        int | None,
        typer.Option(help="Side length of the decoded image in pixels. Default: the ADM's.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch; times are reported per image.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timing rounds; each round times all methods in turn.")] = ROUNDS,
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Precision of the ADM; the student runs in fp32.")] = "fp32",
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure time, or only count parameters, FLOPs and ADM calls.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write, for report --bench.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what each method costs per image: ADM calls, parameters, FLOPs, time and memory.

    Writes nothing, or the result as JSON to the file --out.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..inference.bench.run import BenchConfig, run_bench
    from .show.bench import show_bench
    from .show.progress import RichProgress

    config = BenchConfig(
        adm=adm, adm_config=adm_config, class_label=class_label, sha256=tuple(sha256 or ()), random_adm=random_adm,
        methods=tuple(method or BENCH_PAPERS), backbone=backbone, size=size, batch_size=batch_size,
        rounds=rounds, device=device, precision=precision, timed=timing,
    )  # fmt: skip
    with RichProgress() as progress:
        result = run_bench(config, progress, out)
    shown = command_line(["report", "RUN", "--out", "report", "--bench", out or "FILE"])
    following = shown if out else f"the same command with --out FILE, then {shown}"
    # the JSON is the content of --out, which `report --bench` reads
    render(result if as_json else {**result, "next": following}, as_json, show_bench)
