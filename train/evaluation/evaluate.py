"""Evaluation of a student on one split of a dataset, stored in its run for the report: ``evaluations/NAME/``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from ...cache.lease import lease
from ...cache.local_copy.reader import LocalCopy
from ...cache.records.about import OVER_IMAGE
from ...cache.records.audit import AUDIT
from ...cache.records.builds import BuildRecord
from ...cache.records.image_audit import IMAGE_AUDIT
from ...cache.spec import fingerprint_of, without
from ...cache.store import Cache
from ...errors import UsageError, UserError
from ...metrics.clusters import AUTO
from ...metrics.measures import accuracy, auc, average_precision, test_sets, unweighted_mean
from ...models.device import STUDENT_ARITHMETIC, choose_device, keep_freed_memory
from ...models.layout import move_network
from ...progress import Progress, Silent
from ...storage import AnyPath
from ...storage.atomic import TEMPORARY_PREFIX, exchange, fsync_folder, fsync_tree
from ...storage.locks import temporary_folder
from ..data.augment import checked_transform
from ..data.dataset import FeatureDataset
from ..data.readers import LoaderOptions
from ..data.rows import OWN_VAL
from ..data.select import (
    candidate_builds,
    choose_build,
    column,
    dataset_rows,
    distinct,
    evaluation_rows,
    parse_select,
    serves,
    with_texts,
)
from ..methods.score import MEAN_DIRE
from ..runs.folder import RunFolder, RunRecord, versions
from ..runs.forms import EVALUATION, known_best, read_evaluation
from .audits import header_audit, image_audit
from .gallery import write_gallery
from .score import predict, probability
from .summary import summarise

(_DIRE,) = MEAN_DIRE.inputs
_LONGEST_NAME = 255
_PLAIN_SPLIT = re.compile(r"[A-Za-z0-9._]{1,64}")
_SHOWN = {"generators", "mean", "metrics", "counts"}
"""What an evaluation by this version has beside its setting."""
_UNFINISHED = f"{TEMPORARY_PREFIX}evaluation-"
"""Beginning of the name of a folder that an evaluation is being written to."""


def run_evaluation(
    run: Path,
    cache_root: AnyPath | str,
    dataset: str,
    *,
    split: str = "test",
    select: str | None = None,
    transform: str = "crop",
    build: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    local_copy: LocalCopy | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score every row of a split with a run's best checkpoint.

    The features must be those of the training, by fingerprint, except for an imported student, of which they are
    unknown, and for the rules that decoded the images (``algorithm``), if no build has the training's; a note says so.
    On a dataset of the training, the training's own build is used if it serves the split, so that no later revision
    can move training rows into the test. An existing evaluation of the same checkpoint on the same rows is returned as
    it is.

    Parameters
    ----------
    run
        Folder of the run.
    cache_root
        The cache.
    dataset, split
        What to evaluate on.
    select
        Text of ``--select``.
    transform
        ``crop`` or ``resize``.
    build
        Id of the build to read; by default, the one that fits.
    device
        ``auto``, ``cpu`` or ``cuda:N``.
    batch_size
        Rows per batch; by default, that of the training.
    local_copy
        Read through a local copy of the cache's shards.
    progress
        Receives the rows.

    Returns
    -------
    dict
        Content of ``evaluation.json``.

    Raises
    ------
    UserError
        The folder is not a run, the split or selection has no rows, or a feature is missing.
    """
    chosen = checked_transform(transform)
    selection = parse_select(select)
    folder = RunFolder(run)
    best = folder.load_student()
    record = best.record
    cache = Cache.open(cache_root, local_copy)
    source = _build(cache, dataset, split, record, build)
    pieces = dataset_rows(cache.datasets(), dataset, source.revision)
    table = evaluation_rows(pieces, split, selection, dataset)

    target = evaluation_folder(folder.evaluations, dataset, split, chosen, select)
    name = target.name
    identity: dict[str, Any] = {
        "dataset": dataset,
        "revision": source.revision,
        "build": source.id,
        "origin": source.origin.model_dump() if source.origin else None,
        "split": split,
        "transform": chosen,
        "select": select or None,
        "checkpoint": {"file": best.file, "epoch": best.epoch, "sha256": best.sha256},
        "run": record.run,
    }
    known = read_evaluation(target)
    if all(known.get(field) == value for field, value in identity.items()) and known.keys() >= _SHOWN:
        return known

    with lease(cache.root, "evaluate", [feature.folder for feature in source.features.values()]):
        part = FeatureDataset(
            cache,
            source,
            table,
            record.method.inputs,
            split=split,
            purpose=f"method {record.method.name}",
            mirrored=False,
        )
        chosen_device = choose_device(device)
        keep_freed_memory(chosen_device)
        report, stage = progress or Silent(), f"evaluation {name}"
        report.start(stage, len(part))
        logits = predict(
            move_network(best.student, chosen_device),
            part,
            record.method,
            size=record.train_size,
            transform=chosen,
            batch_size=batch_size or record.config.batch_size,
            device=chosen_device,
            on_batch=lambda samples: report.advance(stage, samples),
            loading=LoaderOptions(pin=chosen_device.type == "cuda"),
        )
        scores = probability(logits)
        cropped = chosen == "crop" and part.image_side() > record.train_size
        info = {
            **identity,
            "method": record.method.name,
            "applied_transform": "crop" if cropped else "resize",
            "train_size": record.train_size,
            "seen_generators": list(record.seen_generators),
            "imported": record.imported,
            "notes": [
                *record.notes(),
                *_decoding_note(cache, source, record),
                *_validation_note(record, dataset, split),
            ],
            "fingerprints": {name: source.features[name].fingerprint for name in record.method.inputs},
            "versions": versions(),
            "arithmetic": STUDENT_ARITHMETIC,
            "set_aside": rejected_counts(cache, dataset, source.revision),
            "counts": {"real": int(np.sum(part.label == 0)), "fake": int(np.sum(part.label == 1))},
            "metrics": _metrics(part.label, logits, scores),
            **_by_generator(part, scores),
        }
        _store(folder, target, info, cache, source, part, split, logits, scores)
        return info


def _decoding_note(cache: Cache, source: BuildRecord, record: RunRecord) -> list[str]:
    """Say if the images of a build were decoded by other rules than those of the training."""
    names = [name for name in record.method.inputs if not record.imported]
    specs = {name: cache.open_feature(source.features[name].folder).spec for name in names}
    if source.origin is not None:
        specs = {name: without(spec, "perturb") for name, spec in specs.items()}
    if all(fingerprint_of(spec) == record.fingerprints[name] for name, spec in specs.items()):
        return []
    return [
        "the images of this build were decoded by the rules of another version than those of the training (`algorithm` "
        "of the image's spec); most files give the same pixels by both"
    ]


def _validation_note(record: RunRecord, dataset: str, split: str) -> list[str]:
    """Say if the training learned from the images that are scored, or validated on them."""
    if dataset not in {source.dataset for source in record.trained_on}:
        return []
    if split == "train":
        return ["the training learned from these images or validated on them, so the figures on them are too good"]
    if split == "val" and OWN_VAL in record.validation:
        return ["the training chose its epoch and its threshold on these images, so the figures on them are too good"]
    return []


def rejected_counts(cache: Cache, dataset: str, revision: str) -> dict[str, int]:
    """Return how many files a dataset's build rejected, by reason, such as ``label-conflict`` or ``leaked``."""
    return dict(Counter(str(row.get("reason")) for row in cache.datasets().rejects(dataset, revision)))


def _build(cache: Cache, dataset: str, split: str, record: RunRecord, build_id: str | None) -> BuildRecord:
    own = next((source.build for source in record.trained_on if source.dataset == dataset), None)
    if build_id is None and own in cache.builds().ids():
        trained = cache.builds().read(own)
        build_id = trained.id if all(serves(trained, split, name) for name in record.method.inputs) else None
    revision, _ = candidate_builds(cache, dataset, build_id)
    _check_split(distinct(cache.datasets().read(dataset, revision, columns=("split",)), "split"), split, dataset)
    return choose_build(
        cache,
        dataset,
        build_id,
        {split: record.method.inputs},
        purpose=f"method {record.method.name}",
        fingerprints={name: record.fingerprints[name] for name in record.method.inputs if not record.imported},
        perturbed=True,
        decoded_otherwise=True,
    )


def _check_split(present: Sequence[str], split: str, dataset: str) -> None:
    """Raise UserError, which proposes what to score instead, unless a dataset has a split."""
    if split in present:
        return
    advice = "Name another dataset with --dataset"
    if split != "val" and "val" in present:
        advice = "Score the part val with --split val, or name another dataset with --dataset"
    raise UserError(f"{dataset}: has no split {split!r}, only {', '.join(present)}. {advice}.")


def _store(
    folder: RunFolder,
    target: Path,
    info: dict[str, Any],
    cache: Cache,
    build: BuildRecord,
    part: FeatureDataset,
    split: str,
    logits: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
) -> None:
    """Write all files under a temporary name, then move the folder into place."""
    with temporary_folder(folder.folder, _UNFINISHED) as temporary:
        columns = with_texts(part.table.select(["key", "label", "generator", "family", "group"]))
        table = columns.append_column("score", pa.array(scores)).append_column("logit", pa.array(logits))
        pq.write_table(table, temporary / "scores.parquet", compression="zstd")
        if serves(build, split, _DIRE):
            dire = FeatureDataset(
                cache, build, part.table, (_DIRE,), split=split, purpose="the mean DIRE", mirrored=False
            )
            means = with_texts(dire.table.select(["key", "label", "generator", "group"]))
            means = means.append_column("mean_dire", pa.array(_mean_dire(dire)))
            pq.write_table(means, temporary / "dire.parquet", compression="zstd")
        images = tuple(
            name
            for name, feature in build.features.items()
            if serves(build, split, name) and cache.open_feature(feature.folder).geometry in OVER_IMAGE
        )
        if images:
            gallery = FeatureDataset(
                cache, build, part.table, images, split=split, purpose="the gallery", mirrored=False
            )
            write_gallery(temporary / "gallery", gallery, logits, scores)
        if (headers := header_audit(cache, build)) is not None:
            (temporary / AUDIT).write_bytes(headers.as_json())
        if (pixels := image_audit(cache, build)) is not None:
            (temporary / IMAGE_AUDIT).write_bytes(pixels.as_json())
        (temporary / EVALUATION).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", "utf-8")
        _put(temporary, target)


def _put(new: Path, target: Path) -> None:
    """Move a folder into place as a whole, replacing another one; another command may be doing the same."""
    target.parent.mkdir(exist_ok=True)
    fsync_tree(new)
    while True:
        try:
            new.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):
            if not exchange(new, target):
                _put_aside(target)
                continue
            shutil.rmtree(new)
            break
    fsync_folder(target.parent)


def _put_aside(target: Path) -> None:
    """Remove a folder at once, for a system that cannot exchange two names."""
    aside = target.parent.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
    with suppress(FileNotFoundError):
        target.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _mean_dire(part: FeatureDataset) -> npt.NDArray[np.float32]:
    """Return the mean DIRE of every row over channels and pixels, float32 in 0..1."""
    means: npt.NDArray[np.float32] = np.zeros(len(part), dtype=np.float32)
    for batch in part.in_order(64):
        means[batch.rows] = batch.features[_DIRE].float().mean(dim=(1, 2, 3)).numpy() / 255
    return means


def _metrics(labels: npt.NDArray[Any], logits: npt.NDArray[Any], scores: npt.NDArray[Any]) -> dict[str, float | None]:
    """Measure all rows of the evaluation together."""
    bce = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels).float())
    return {
        "accuracy": accuracy(labels, scores),
        "average_precision": average_precision(labels, scores),
        "auc": auc(labels, scores),
        "bce": bce.item(),
    }


def _by_generator(part: FeatureDataset, scores: npt.NDArray[Any]) -> dict[str, Any]:
    """Measure each generator's test set, and the unweighted mean over those with both classes."""
    results: list[dict[str, Any]] = []
    for generator, rows in test_sets(part.label, column(part.table, "generator"), column(part.table, "group")).items():
        labels, own = part.label[rows], scores[rows]
        measures = {
            "accuracy": accuracy(labels, own),
            "average_precision": average_precision(labels, own),
            "auc": auc(labels, own),
        }
        counts = {"real": int(np.sum(labels == 0)), "fake": int(np.sum(labels == 1))}
        results.append({"generator": generator, **counts, **measures})
    complete = [row for row in results if row["real"] and row["fake"]]
    names = ("accuracy", "average_precision", "auc")
    return {"generators": results, "mean": {name: unweighted_mean(row[name] for row in complete) for name in names}}


def chosen_data(
    run: Path, cache: AnyPath | str | None = None, dataset: str | None = None
) -> tuple[str, str, dict[str, str]]:
    """Return the cache and the dataset to evaluate on: what is named, else what the run was trained on.

    Returns
    -------
    cache, dataset : str
        The cache's path or URL, and the dataset in it.
    defaults : dict
        Which of them (``cache``, ``dataset``) are the run's own because none was named.

    Raises
    ------
    UserError
        The folder is not a run.
    UsageError
        The run names none, or was trained on several datasets.
    """
    record = RunFolder(run).read()
    names = [source.dataset for source in record.trained_on if source.dataset]
    if not dataset and len(names) > 1:
        raise UsageError(f"evaluate: {run} was trained on {', '.join(names)}. Choose one with --dataset.")
    own = {"cache": record.cache, "dataset": "".join(names[:1])}
    given = {name: str(value) for name, value in (("cache", cache), ("dataset", dataset)) if value}
    lacking = [f"--{name}" for name, value in own.items() if not (value or name in given)]
    if lacking:
        raise UsageError(f"evaluate: {run} was imported and names no data. Give {' and '.join(lacking)}.")
    chosen = {**own, **given}
    return chosen["cache"], chosen["dataset"], {name: own[name] for name in own if name not in given}


def stored_summary(run: Path, info: Mapping[str, Any], cluster: str = AUTO) -> tuple[Path, dict[str, Any]]:
    """Return the folder of an evaluation that `run_evaluation` returned, and its `summarise`."""
    names = ("dataset", "split", "transform", "select")
    folder = evaluation_folder(RunFolder(run).evaluations, *(info[name] for name in names))
    best = known_best(run)
    return folder, summarise(info, folder / "scores.parquet", best.calibration if best else None, cluster)


def evaluation_folder(evaluations: Path, dataset: str, split: str, transform: str, select: str | None) -> Path:
    """Return the folder of the evaluation in a setting, which no other setting has.

    Dataset ``a-b``, split ``c`` and dataset ``a``, split ``b-c`` would share a plain name. So it is for splits without a
    dash, and for whom it holds already; other names end with a digest of the setting.
    """
    setting = {"dataset": dataset, "split": split, "transform": transform, "select": select or None}
    chosen = f"-{hashlib.sha256(select.encode()).hexdigest()[:8]}" if select else ""
    plain = evaluations / f"{dataset}-{split}-{transform}{chosen}".replace(os.sep, "-")
    known = read_evaluation(plain) if len(os.fsencode(plain.name)) <= _LONGEST_NAME else {}
    held = {name: known.get(name) for name in setting} if known else None
    if held == setting or (held is None and _PLAIN_SPLIT.fullmatch(split)):
        return plain
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()
    return evaluations / f"{dataset}-{transform}~{digest[:16]}"
