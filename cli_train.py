"""The command ``train``: one training, or with ``--sweep`` a grid of them. A setting that is not given is the method's."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import (
    CacheOption,
    DeviceOption,
    JsonOption,
    LocalCopyGibOption,
    LocalCopyOption,
    Preset,
    SelectOption,
)
from .cli_options import open_local_copy as _open_local_copy
from .cli_options import render as _render

_RATE = "Learning rate"
_STEP = "Step and selection"
_TEACHER = "Loss and teacher"


class InitialWeights(str, Enum):
    """What a backbone starts from."""

    scratch = "scratch"
    imagenet = "imagenet"


class ScheduleName(str, Enum):
    """How the learning rate moves."""

    constant = "constant"
    cosine = "cosine"
    step = "step"
    plateau = "plateau"


class Amp(str, Enum):
    """Arithmetic of the student."""

    off = "off"
    bf16 = "bf16"
    fp16 = "fp16"


def train(
    cache: CacheOption,
    dataset: Annotated[
        list[str],
        typer.Option(help="Dataset to learn from; given several times, their rows are joined.", show_default=False),
    ],
    run: Annotated[Path, typer.Option(help="Folder of the run; of all runs with --sweep.", show_default=False)],
    select: SelectOption = None,
    build: Annotated[
        list[str] | None,
        typer.Option(help="Build record to train from, if several fit; one for each dataset.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="What it learns from: distildire, dire, dnf, cnndet, eps.", show_default="distildire"),
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="The paper's recipe, or its published code's.", show_default="paper")
    ] = None,
    aug_prob: Annotated[
        float | None, typer.Option(help="Probability of cnndet's blur and of its JPEG.", show_default=False)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="The student: resnet50, efficientnet_lite0, small, small32.", show_default="resnet50"),
    ] = None,
    initial_weights: Annotated[
        InitialWeights | None,
        typer.Option(help="What it starts from; default: the method's choice, if the backbone has such weights."),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Run whose best student this one begins as, to be fine-tuned.")
    ] = None,
    train_size: Annotated[
        int | None, typer.Option(help="Side of the student's input. Default: the teacher's.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and flips.", show_default="0")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples that one step learns from, over all processes.", show_default=False)
    ] = None,
    kd_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the distillation loss; 0 is without.", rich_help_panel=_TEACHER),
    ] = None,
    pos_weight: Annotated[
        str | None,
        typer.Option(help="Weight of generated pictures, or balanced: real / generated.", rich_help_panel=_TEACHER),
    ] = None,
    teacher_online: Annotated[
        bool,
        typer.Option("--teacher-online", help="Run the teacher instead of reading its maps.", rich_help_panel=_TEACHER),
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Backbone of a teacher that runs online.", rich_help_panel=_TEACHER)
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option(help="File with its weights.", rich_help_panel=_TEACHER)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.", rich_help_panel=_RATE)] = None,
    schedule: Annotated[
        ScheduleName | None,
        typer.Option(help="How it moves; plateau looks at the validation and ends the run.", rich_help_panel=_RATE),
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps in which it rises from nothing first.", rich_help_panel=_RATE)
    ] = None,
    drop_every: Annotated[
        int | None, typer.Option(help="step: epochs between two drops.", rich_help_panel=_RATE)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="plateau: epochs without a better validation.", rich_help_panel=_RATE)
    ] = None,
    lr_factor: Annotated[
        float | None, typer.Option(help="step, plateau: what a drop multiplies by (0.1).", rich_help_panel=_RATE)
    ] = None,
    min_lr: Annotated[
        float | None, typer.Option(help="plateau: ends below; cosine: ends at.", rich_help_panel=_RATE)
    ] = None,
    beta1: Annotated[float | None, typer.Option(help="Adam's first beta.", rich_help_panel=_RATE)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Adam's weight decay.", rich_help_panel=_RATE)] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Parts of a batch that go through the network in turn: less memory.", rich_help_panel=_STEP),
    ] = None,
    clip_grad: Annotated[
        float | None, typer.Option(help="Clip the global gradient norm to this value.", rich_help_panel=_STEP)
    ] = None,
    amp: Annotated[Amp | None, typer.Option(help="Arithmetic of the student's passes.", rich_help_panel=_STEP)] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Share held out of train where a dataset lacks train, val or test.", rich_help_panel=_STEP),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="End after so many epochs without a better validation.", rich_help_panel=_STEP)
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="setting=value,value: one run for each; given several times, for each combination. Runs that are there "
            "are kept, interrupted ones go on.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read the cache; 0 for a thread.")] = 0,
    local_copy: LocalCopyOption = None,
    local_copy_gib: LocalCopyGibOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a student from cached features alone: no source image, no diffusion model. Runs under torchrun, too."""
    from .rendering import RichProgress, show_sweep, show_train
    from .train.config import TrainConfig
    from .train.loop import run_training
    from .train.sweep import parse_sweep, run_sweep

    asked: dict[str, Any] = {
        "dataset": tuple(dataset), "select": select, "build": tuple(build or ()), "method": method, "preset": preset,
        "aug_prob": aug_prob, "backbone": backbone, "initial_weights": initial_weights, "init_from": init_from,
        "train_size": train_size, "seed": seed, "epochs": epochs, "batch_size": batch_size, "kd_weight": kd_weight,
        "pos_weight": pos_weight, "teacher_online": teacher_online, "teacher": teacher,
        "teacher_weights": teacher_weights, "lr": lr, "schedule": schedule, "warmup_steps": warmup_steps,
        "drop_every": drop_every, "patience": patience, "lr_factor": lr_factor, "min_lr": min_lr, "beta1": beta1,
        "weight_decay": weight_decay, "accumulate": accumulate, "clip_grad": clip_grad, "amp": amp,
        "val_fraction": val_fraction, "stop_after": stop_after,
    }  # fmt: skip
    given = {name: _plain(value) for name, value in asked.items() if value is not None and value is not False}
    copy = _open_local_copy(local_copy, local_copy_gib)
    with RichProgress() as progress:
        how: dict[str, Any] = {"device": device, "workers": workers, "local_copy": copy, "progress": progress}
        if sweep:
            result = run_sweep(given, parse_sweep(sweep), cache, run, **how)
        else:
            result = run_training(TrainConfig.checked(**given), cache, run, resume=resume, **how)
    if result:
        _render(result, as_json, show_sweep if sweep else show_train)


def _plain(value: Any) -> Any:
    """What the configuration stores of an option's value."""
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
