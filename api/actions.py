"""``build``, ``train``, ``evaluate`` and ``report``: each calls what the command of its name calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..choices import PROFILES, ClusterColumn, Profile, TestTransform
from ..errors import UsageError
from ..progress import Progress
from .progress import Logged
from .results import BuildSummary, EvaluationSummary, ReportSummary, TrainingSummary
from .settings import BuildSettings, StrPath, TrainSettings, several

_PATHS = ("init_from", "export", "teacher_weights")
"""Settings of a training that are paths of this machine."""
_LISTS = ("real", "fake", "sha256", "path_prefix", "features")
"""Settings of a build that are lists; a single text is a list of one."""


def build(
    sources: StrPath | Sequence[StrPath] = (),
    *,
    cache: StrPath,
    dataset: str,
    profile: Profile | None = None,
    from_cache: bool = False,
    perturb: str | None = None,
    splits: str | None = None,
    name: str | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    **settings: Unpack[BuildSettings],
) -> BuildSummary:
    """Compute the features of a dataset's images and store them in a cache, reusing every row that it holds.

    Parameters
    ----------
    sources : path or sequence of path
        Image folders, tables, Parquet files, tars or zips: paths or URLs.
    cache : path
        The cache's folder or URL; created if there is none.
    dataset : str
        Name of the dataset in the cache.
    profile : {'small', 'paper'}, optional
        Defaults for other settings. A setting that is given wins.
    from_cache : bool
        Compute from the dataset's cached images, without sources.
    perturb : str, optional
        With ``from_cache``: build a derived dataset of perturbed images, such as ``jpeg:75``.
    splits : str, optional
        With ``perturb``: its splits, such as ``val,test``.
    name : str, optional
        With ``perturb``: name of the derived dataset, in place of ``DATASET@KIND-STRENGTH``.
    dry_run : bool
        Plan only: compute and download nothing.
    workers : int, optional
        Compute in so many processes on this machine.
    scheduler : str, optional
        Compute on the workers of this Dask scheduler.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    progress : Progress, optional
        Receives stages and messages; by default messages go to the logger ``distil_cache``.
    **settings
        Fields of :class:`BuildSettings`, as the options of ``distil-cache build``.

    Returns
    -------
    BuildSummary

    Raises
    ------
    UsageError
        If arguments contradict each other.
    UserError
        If sources, models or the cache cannot be used.
    """
    from ..pipeline.build import run_build
    from ..pipeline.cluster.placement import Placement
    from ..pipeline.config import build_requests

    given: dict[str, Any] = dict(_with_profile(profile, "build", settings))
    given |= {key: several(given[key]) for key in _LISTS if given.get(key) is not None}
    chosen = several(sources)
    (config,) = build_requests(
        sources=chosen, cache=cache, dataset=dataset, device=device, from_cache=from_cache,
        perturb=(perturb,) if perturb else (), splits=splits, name=name, **given,
    )  # fmt: skip
    placement = Placement.checked(scheduler, workers)
    return BuildSummary.of(run_build(config, progress or Logged(), dry_run=dry_run, placement=placement))


def train(
    run: StrPath,
    *,
    cache: StrPath | None = None,
    dataset: str | Sequence[str] | None = None,
    profile: Profile | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    local_copy: StrPath | None = None,
    progress: Progress | None = None,
    **settings: Unpack[TrainSettings],
) -> TrainingSummary:
    """Train a student from cached features.

    Parameters
    ----------
    run : path
        Folder for the run.
    cache : path, optional
        The cache's folder or URL. Only a training that is resumed knows it.
    dataset : str or sequence of str, optional
        Dataset to train on; several are joined. Only a training that is resumed knows it.
    profile : {'small', 'paper'}, optional
        Defaults for other settings. A setting that is given wins.
    resume : bool
        Continue a stopped training from its newest state, or start one that does not exist. What is not given is as the
        run recorded it, whatever the profile.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    workers : int
        Reader processes; 0 reads in a thread. A script that uses them needs ``if __name__ == "__main__":``.
    local_copy : path, optional
        Folder on a local disk for copies of the shards that are read.
    progress : Progress, optional
        Receives samples and messages; by default messages go to the logger ``distil_cache``.
    **settings
        Fields of :class:`TrainSettings`, as the options of ``distil-cache train``.

    Returns
    -------
    TrainingSummary

    Raises
    ------
    UsageError
        If a setting is not valid, cache or dataset is missing, or the process is one of several under ``torchrun``.
    UserError
        If the run, the cache or a feature cannot be used, or the loss diverged.
    """
    from ..cache.local_copy.reader import LocalCopy
    from ..train.config import TrainConfig, without_unused
    from ..train.engine.loop import run_training
    from ..train.runs.folder import stored_settings

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("train: several processes train together with: torchrun -m distil_cache train …")
    stored = stored_settings(Path(run)) if resume else None
    given: dict[str, Any] = dict(settings if stored else _with_profile(profile, "train", settings))
    given = without_unused(given, given.keys() - settings.keys())
    given |= {key: os.fspath(given[key]) for key in _PATHS if given.get(key) is not None}
    if dataset is not None:
        given["dataset"] = several(dataset)
    if stored is not None:
        cache, given = stored[0] if cache is None else cache, {**stored[1], **given}
    if cache is None or "dataset" not in given:
        raise UsageError(
            f"train: {'cache' if cache is None else 'dataset'} is missing. Only resume knows it, from the run."
        )
    config = TrainConfig.checked(**given)
    copy = LocalCopy.at(Path(local_copy)) if local_copy is not None else None
    result = run_training(
        config, os.fspath(cache), Path(run), resume=resume, device=device, workers=workers, local_copy=copy,
        progress=progress or Logged(),
    )  # fmt: skip
    return TrainingSummary.of(result)


def evaluate(
    run: StrPath,
    *,
    cache: StrPath | None = None,
    dataset: str | None = None,
    split: str = "test",
    select: str | None = None,
    test_transform: TestTransform = "crop",
    build: str | None = None,
    cluster: ClusterColumn = "auto",
    device: str = "auto",
    local_copy: StrPath | None = None,
    progress: Progress | None = None,
) -> EvaluationSummary:
    """Score a cached split with a trained student. An evaluation that exists is returned as it is.

    Parameters
    ----------
    run : path
        Folder of the run.
    cache : path, optional
        The cache's folder or URL; by default that of the training.
    dataset : str, optional
        Dataset in the cache; by default that of the training.
    split : str
        Split to score.
    select : str, optional
        Only matching samples, such as ``generator=adm|ldm``.
    test_transform : {'crop', 'resize'}
        How images get the student's side.
    build : str, optional
        Id of the build to read, if several match.
    cluster : str
        Column whose equal values are resampled together, as for `report`.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    local_copy : path, optional
        Folder on a local disk for copies of the shards that are read.
    progress : Progress, optional
        Receives rows and messages; by default messages go to the logger ``distil_cache``.

    Returns
    -------
    EvaluationSummary

    Raises
    ------
    UsageError
        If the run was trained on several datasets, or was imported, and `cache` or `dataset` must be named.
    UserError
        If the folder is not a run, the split has no rows, or a feature is missing.
    """
    from ..cache.local_copy.reader import LocalCopy
    from ..train.evaluation.evaluate import chosen_data, run_evaluation, stored_summary

    root, name, defaults = chosen_data(Path(run), os.fspath(cache) if cache is not None else None, dataset)
    copy = LocalCopy.at(Path(local_copy)) if local_copy is not None else None
    result = run_evaluation(
        Path(run), root, name, split=split, select=select, transform=test_transform, build=build, device=device,
        local_copy=copy, progress=progress or Logged(),
    )  # fmt: skip
    folder, summary = stored_summary(Path(run), result, cluster)
    return EvaluationSummary.of(folder, {**result, "defaults": defaults, "summary": summary})


def report(
    runs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    compare: tuple[StrPath, StrPath] | None = None,
    cluster: ClusterColumn = "auto",
    evaluate: bool = True,
    on: Sequence[str] = (),
    device: str = "auto",
    progress: Progress | None = None,
) -> ReportSummary:
    """Evaluate runs where needed, and compare them in a report.

    Parameters
    ----------
    runs : path or sequence of path
        Folders of runs or sweeps.
    out : path
        Folder for the report.
    compare : tuple of path, optional
        Two runs, or two sweeps over seeds, to compare with each other.
    cluster : str
        Images with the same value in this column are resampled together: ``group``, ``generator``, ``family``;
        ``image`` for none. ``auto`` takes the source groups if there are enough.
    evaluate : bool
        First evaluate runs on the test images of their datasets, where that is missing.
    on : sequence of str
        ``DATASET`` or ``DATASET:SPLIT`` each: what else to evaluate on.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    progress : Progress, optional
        Receives rows and messages; by default messages go to the logger ``distil_cache``.

    Returns
    -------
    ReportSummary

    Raises
    ------
    UsageError
        If ``on`` asks for evaluations that ``evaluate`` forbids.
    UserError
        If a run cannot be read, nothing is evaluated, or the files cannot be written.
    """
    from ..report.write import write_report
    from ..train.evaluation.pending import evaluate_missing

    if on and not evaluate:
        raise UsageError("report: `on` asks for evaluations, and evaluate=False forbids them. Leave one of them out.")
    chosen = [Path(run) for run in several(runs)]
    pair = (Path(compare[0]), Path(compare[1])) if compare else None
    done: dict[str, list[dict[str, str]]] = {"evaluated": [], "not_evaluated": []}
    if evaluate:
        done = evaluate_missing([*chosen, *(pair or ())], on, device, progress or Logged())
    content = write_report(chosen, Path(out), compare=pair, cluster=cluster)
    html = str(Path(out) / content["files"]["html"])
    return ReportSummary.of({**content, **done, "html": html})


def _with_profile(profile: Profile | None, command: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with what a profile fills in. Raises UsageError for an unknown profile."""
    if profile is None:
        return dict(settings)
    if profile not in PROFILES:
        raise UsageError(f"profile {profile!r}: use {' or '.join(PROFILES)}.")
    return {**PROFILES[profile][command], **settings}
