"""The command ``train``: train one student, or with ``--sweep`` a grid of them.

An option that is not given is not passed on: the configuration takes its default, or the method's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..choices import BACKBONE, LR_FACTOR, METHOD, Amp, InitialWeights, Preset, Profile, Reader, ScheduleName, ValSource
from ..errors import UsageError
from .command import typed_again
from .options import (
    CACHE_HELP,
    DeviceOption,
    JsonOption,
    LocalCopyGibOption,
    LocalCopyOption,
    SelectOption,
    WriteRecipeOption,
    command_line,
    open_local_copy,
    render,
)
from .profiles import ProfileOption, filled_in, profile_settings
from .recipes import kept_recipe, save_recipe, show_recipe


def train(
    ctx: typer.Context,
    run: Annotated[Path, typer.Option(help="Run folder; with --sweep, the folder of all runs.", show_default=False)],
    cache: Annotated[str | None, typer.Option("--cache", metavar="FOLDER", help=CACHE_HELP, show_default=False)] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Dataset to train on. Repeatable: the datasets are joined.", show_default=False),
    ] = None,
    profile: ProfileOption = None,
    select: SelectOption = None,
    build: Annotated[
        list[str] | None,
        typer.Option(help="Build record to train from, if several match; one per dataset.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method: distildire, dire, dnf, cnndet, eps, probe, mean_dire, sedid, aeroblade, or a file NAME.toml.",
            show_default=METHOD,
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="Training recipe: the paper's, or that of its published code.", show_default="paper"),
    ] = None,
    aug_prob: Annotated[
        float | None,
        typer.Option(
            help="Probability of cnndet's blur and JPEG augmentations. Default: the method's.", show_default=False
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Student backbone: resnet50, efficientnet_lite0, small, small32 or timm:NAME.", show_default=BACKBONE
        ),
    ] = None,
    initial_weights: Annotated[
        InitialWeights | None,
        typer.Option(
            help="Initial weights of the backbone. Default: the method's, if the backbone has them.",
            show_default=False,
        ),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Fine-tune: start from the best student of this run.", show_default=False)
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option(help="Side length of the student's input in pixels. Default: the method's.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, sample order and augmentations.", show_default="0")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training set. Default: the method's.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Samples per optimizer step, over all processes. Default: the method's.", show_default=False),
    ] = None,
    kd_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the distillation loss; 0 turns it off. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    pos_weight: Annotated[
        str | None,
        typer.Option(
            help="Loss weight of generated images, or balanced for real / generated. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    teacher_online: Annotated[
        bool,
        typer.Option(
            "--teacher-online",
            help="Run the teacher during training instead of reading its cached features.",
        ),
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            help=f"Backbone of the online teacher. Default: that of the cached features, or {BACKBONE}.",
            show_default=False,
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            help="The online teacher's weights: a file, or hf:OWNER/REPO/FILE. Default: published ImageNet weights.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate (Adam). Default: the method's.", show_default=False),
    ] = None,
    schedule: Annotated[
        ScheduleName | None,
        typer.Option(
            help="Learning-rate schedule; plateau drops the rate when validation stops improving, and ends the run; "
            "accuracy-plateau does so as the code of CNNDet, DIRE and DNF. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Steps of linear warmup from zero.", show_default="0"),
    ] = None,
    drop_every: Annotated[
        int | None,
        typer.Option(help="step: epochs between drops of the rate.", show_default=False),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Plateaus: epochs without improvement before a drop. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    lr_factor: Annotated[
        float | None,
        typer.Option(
            help=f"step, plateaus: factor of each drop. Default: {LR_FACTOR:g}.",
            show_default=False,
        ),
    ] = None,
    min_lr: Annotated[
        float | None,
        typer.Option(
            help="Plateaus: end the run below this rate; cosine: final rate. Default: the method's.",
            show_default=False,
        ),
    ] = None,
    beta1: Annotated[
        float | None,
        typer.Option(help="Adam's beta1. Default: the method's.", show_default=False),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Adam's weight decay.", show_default="0")] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches per optimizer step (gradient accumulation), to save memory.",
            show_default="1",
        ),
    ] = None,
    clip_grad: Annotated[
        float | None,
        typer.Option(
            help="Clip the global gradient norm to this value. Default: no clipping.",
            show_default=False,
        ),
    ] = None,
    amp: Annotated[
        Amp | None,
        typer.Option(help="Mixed precision for the student: off, bf16 or fp16.", show_default="off"),
    ] = None,
    val_from: Annotated[
        ValSource | None,
        typer.Option(
            help="Split to validate on: val, or a part of train if a dataset has none; train holds out a part anyway.",
            show_default="val",
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Fraction of train to hold out for validation, where val does not serve.",
            show_default="0.1",
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            help="Early stopping: end after N epochs without improvement on validation. Default: never.",
            show_default=False,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUE,VALUE",
            help="Train one run per value; repeatable for every combination. Finished runs are kept, interrupted ones "
            "resume.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Worker processes that read the cache; 0 reads in a thread.")] = 0,
    reader: Annotated[
        Reader | None,
        typer.Option(
            help="What reads the training rows: the cache's own reader, or webdataset from tar shards or an export.",
            show_default="cache",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="With --reader webdataset: stream the tars of this cache export instead of the cache's shards.",
            show_default=False,
        ),
    ] = None,
    local_copy: LocalCopyOption = None,
    local_copy_gib: LocalCopyGibOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume an interrupted run. Its cache and settings need not be given again."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the settings, the images of each split, and what validates. Computes, downloads and writes nothing.",
        ),
    ] = False,
    write_recipe: WriteRecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a student from cached features.

    Opens no source image and runs no diffusion model; also runs under torchrun. Writes checkpoints, metrics and
    TensorBoard logs to the run folder, and registers the run in the cache.

    Exit codes: 0 success, 1 failure, 2 invalid arguments, 4 the cache is damaged.
    """
    from ..train.config import TrainConfig, without_unused
    from ..train.engine.loop import run_training
    from ..train.sweep import parse_sweep, plan_sweep, run_sweep
    from .show.progress import RichProgress
    from .show.train import show_sweep, show_train

    asked: dict[str, Any] = {
        "dataset": tuple(dataset) if dataset else None, "select": select, "build": tuple(build) if build else None,
        "method": method, "preset": preset,
        "aug_prob": aug_prob, "backbone": backbone, "initial_weights": initial_weights, "init_from": str(init_from) if init_from else None,
        "train_size": train_size, "seed": seed, "epochs": epochs, "batch_size": batch_size, "kd_weight": kd_weight,
        "pos_weight": pos_weight, "teacher_online": teacher_online, "teacher": teacher,
        "teacher_weights": teacher_weights, "lr": lr, "schedule": schedule, "warmup_steps": warmup_steps,
        "drop_every": drop_every, "patience": patience, "lr_factor": lr_factor, "min_lr": min_lr, "beta1": beta1,
        "weight_decay": weight_decay, "accumulate": accumulate, "clip_grad": clip_grad, "amp": amp,
        "val_from": val_from, "val_fraction": val_fraction, "stop_after": stop_after,
        "reader": reader, "export": export,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None and value is not False}
    grid = parse_sweep(sweep) if sweep else {}
    by_profile = filled_in(ctx)
    typed, kept = given.keys() - by_profile, set[str]()
    if grid:
        given = {name: value for name, value in given.items() if name not in by_profile & grid.keys()}
    else:
        given = without_unused(given, by_profile)
    if resume and not grid:
        cache, given, kept = _as_stored(run, cache, given, by_profile)
    for option, value in (("--cache", cache), ("--dataset", given.get("dataset"))):
        if value is None and (sweep is None or option == "--cache"):
            raise UsageError(f"train: {option} is missing. Only --resume knows it, from the run.")
    assert cache is not None
    if write_recipe is not None:
        _ = plan_sweep(given, grid) if grid else TrainConfig.checked(**given)
        render(save_recipe(ctx, write_recipe), as_json, show_recipe)
        return
    if dry_run:
        from ..train.engine.dry_run import plan_training
        from .show.train import show_plans

        plan = plan_sweep(given, grid) if grid else {"": TrainConfig.checked(**given)}
        again = resume or bool(grid)
        copies = local_copy is not None
        plans = [
            plan_training(config, cache, run / name, resume=again, workers=workers, copies=copies)
            for name, config in plan.items()
        ]
        told = {
            "dry_run": True,
            "profile": _profile_used(ctx, None if resume else profile, given),
            "given": sorted({*typed, *grid}),
            "kept": sorted(kept),
            "runs": plans,
            "next": typed_again(ctx, without=("--dry-run",)),
        }
        render(told, as_json, show_plans)
        return
    copy = open_local_copy(local_copy, local_copy_gib)
    with RichProgress() as progress, kept_recipe(ctx, run):
        how: dict[str, Any] = {"device": device, "workers": workers, "local_copy": copy, "progress": progress}
        if grid:
            result = run_sweep(given, grid, cache, run, **how)
        else:
            result = run_training(TrainConfig.checked(**given), cache, run, resume=resume, **how)
    if result:
        result["profile"] = _profile_used(ctx, None if resume else profile, given)
        result["next"] = command_line(["report", run, "--out", "report"])
        render(result, as_json, show_sweep if sweep else show_train)


def _profile_used(ctx: typer.Context, profile: Profile | None, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a profile filled in, as `profile_settings` does, without what the method has no use for."""
    found = profile_settings(ctx, profile)
    if found is None:
        return None
    used = {name: value for name, value in found["settings"].items() if name.replace("-", "_") in given}
    return {**found, "settings": used}


def _as_stored(
    run: Path, cache: str | None, given: dict[str, Any], by_profile: set[str]
) -> tuple[str | None, dict[str, Any], set[str]]:
    """Return the cache and the settings of a run that is resumed, where they are not given again, and which are the run's.

    What only a profile fills in gives way to what the run has.
    """
    from ..train.runs.folder import stored_settings

    stored = stored_settings(run)
    if stored is None:
        return cache, given, set()
    again = {name: value for name, value in given.items() if name not in by_profile}
    return cache or stored[0], {**stored[1], **again}, stored[1].keys() - again.keys()
