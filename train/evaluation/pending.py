"""Which evaluations runs lack: of the test parts of the datasets that they were trained on, and of others on request.

Loads no torch, so that a report whose runs are all evaluated stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache.store import Cache
from ...errors import DistilCacheError, StoppedError, UsageError, UserError
from ...progress import Progress
from ...storage.json_record import read_record
from ..runs.forms import RUN_FORM, known_best, own_file, read_evaluation, runs_of
from .audits import renew_image_audits

TEST = "test"


@dataclass(frozen=True)
class Pending:
    """An evaluation that a run lacks.

    Attributes
    ----------
    run
        Folder of the run.
    cache
        Path or URL of its cache.
    dataset, split
        What to evaluate on.
    asked
        Whether the user named it.
    """

    run: Path
    cache: str
    dataset: str
    split: str
    asked: bool


@dataclass(frozen=True)
class NotEvaluated:
    """Something that a run was not evaluated on, why (a sentence's end), and whether the user named it."""

    run: Path
    dataset: str
    split: str
    why: str
    asked: bool


def pending_evaluations(folders: Sequence[Path], on: Sequence[str] = ()) -> tuple[list[Pending], list[NotEvaluated]]:
    """Return the evaluations that runs lack, and what cannot be evaluated.

    An evaluation counts, whatever its test transform, if it scored every image of the split with the run's best student.

    Parameters
    ----------
    folders
        Run folders, or folders of sweeps.
    on
        ``DATASET`` or ``DATASET:SPLIT`` each: what to evaluate on besides the test parts of the training's datasets.

    Raises
    ------
    UsageError
        A text of ``on`` names no dataset.
    UserError
        The list of a sweep is damaged.
    """
    asked = [_parse(text) for text in on]
    found: list[Pending] = []
    without: list[NotEvaluated] = []
    for run in (run for folder in folders for run in runs_of(folder)):
        try:
            record = read_record(own_file(run / "config.json"), RUN_FORM, "the record of a run", "")
            best = known_best(run)
        except UserError:
            continue  # reading the runs for the report says what is wrong
        names = (record.dataset, *(other.dataset for other in record.others or ()))
        wanted = list(dict.fromkeys([*((name, TEST) for name in names if name), *asked]))
        done = _evaluated(run, best.sha256) if best else set()
        cache = record.cache or ""
        for dataset, split in wanted:
            if (dataset, split) in done:
                continue
            why = _why_not(cache, dataset, split) if best else "the run has no checkpoint yet"
            named = (dataset, split) in asked
            if why:
                without.append(NotEvaluated(run, dataset, split, why, named))
            else:
                found.append(Pending(run, cache, dataset, split, named))
    return found, without


def evaluate_missing(
    runs: Sequence[Path], on: Sequence[str], device: str, progress: Progress
) -> dict[str, list[dict[str, str]]]:
    """Evaluate runs on what they lack; return what was evaluated and what was not, and why.

    Evaluations that are there get the audits of cached images that were made since.

    What the user named must succeed. A test part that is evaluated unasked may lack features; the report does without.

    Parameters
    ----------
    runs, on
        As for :func:`pending_evaluations`.
    device
        ``auto``, ``cpu`` or ``cuda:N``.
    progress
        Receives the rows, and a line about each evaluation that is left out.

    Returns
    -------
    dict
        ``evaluated`` and ``not_evaluated``, each a list of ``run``, ``dataset`` and ``split``, the second with ``why``.

    Raises
    ------
    UserError
        Something that ``on`` names cannot be evaluated, or an evaluation was stopped.
    """
    pending, without = pending_evaluations(runs, on)
    for impossible in without:
        if impossible.asked:
            raise UserError(f"--on {impossible.dataset}:{impossible.split}: {impossible.run}: {impossible.why}.")
    evaluated = []
    for one in pending:
        from .evaluate import run_evaluation  # brings torch with it

        try:
            run_evaluation(one.run, one.cache, one.dataset, split=one.split, device=device, progress=progress)
        except StoppedError:
            raise
        except UserError as error:
            if one.asked:
                raise
            without.append(NotEvaluated(one.run, one.dataset, one.split, str(error), one.asked))
        else:
            evaluated.append({"run": str(one.run), "dataset": one.dataset, "split": one.split})
    for each in without:
        progress.say(f"{each.run}: not evaluated on {each.dataset}, split {each.split}: {each.why.rstrip('.')}.")
    renew_image_audits(runs)
    missing = [{"run": str(one.run), "dataset": one.dataset, "split": one.split, "why": one.why} for one in without]
    return {"evaluated": evaluated, "not_evaluated": missing}


def _parse(text: str) -> tuple[str, str]:
    dataset, _, split = text.partition(":")
    if not dataset:
        raise UsageError(f"--on {text}: name a dataset of the cache, as DATASET or DATASET:SPLIT.")
    return dataset, split or TEST


def _evaluated(run: Path, sha256: str) -> set[tuple[str, str]]:
    """Return dataset and split of each evaluation of all rows by the student with this digest."""
    infos = [read_evaluation(folder) for folder in run.glob("evaluations/*")]
    return {
        (str(info.get("dataset")), str(info.get("split")))
        for info in infos
        if not info.get("select") and (info.get("checkpoint") or {}).get("sha256") == sha256
    }


def _why_not(cache: str, dataset: str, split: str) -> str | None:
    """Return why a run cannot be evaluated on a split; None if nothing speaks against it."""
    if not cache:
        return "the run does not name its cache (it was imported); use: distil-cache evaluate"
    try:
        found = Cache.open(cache)
        splits = set(
            found.datasets().read(dataset, found.datasets().head(dataset), columns=["split"])["split"].to_pylist()
        )
    except DistilCacheError as error:
        return str(error)
    if split not in splits:
        other = f"--on {dataset}:val" if "val" in splits else "--on DATASET[:SPLIT]"
        return (
            f"the dataset has no split {split}, only {', '.join(sorted(splits))}; build it with --split-by 70/15/15 to have "
            f"one, or name what to evaluate on with {other}"
        )
    return None
