"""Scores of a trained student on one split of a dataset, kept in its run for the report: ``evaluations/NAME/``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from ...cache.local_copy.reader import LocalCopy
from ...cache.records.audit import AUDIT, HeaderAudit
from ...cache.records.builds import BuildRecord
from ...cache.store import Cache
from ...metrics.measures import accuracy, auc, average_precision, test_sets, unweighted_mean
from ...models.device import choose_device, keep_freed_memory
from ...progress import Progress, Silent
from ...storage import AnyPath
from ..data.augment import checked_transform
from ..data.dataset import FeatureDataset
from ..data.select import candidate_builds, choose_build, column, parse_select, select_rows, serves, split_rows
from ..runs.checkpoint import BEST
from ..runs.folder import RunFolder, RunRecord, versions
from .gallery import write_gallery
from .score import predict, probability


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
    """Score every occurrence of a split once with a run's best checkpoint, and return ``evaluation.json``.

    The features must be those that the student learnt from, by fingerprint, unless it is an imported one: nobody knows
    then. They are read by way of ``local_copy`` if there is one. ``build`` names the build to read (default: the one that
    fits). On the dataset that it was trained on, the training's own build is used if it serves the split, so that no later
    revision can move training rows into the test.
    An evaluation that is there already, of the same checkpoint on the same rows, is returned as it is.
    Raises UserError for a folder that is no run, a split or a selection without rows, and features that are not there.
    """
    chosen = checked_transform(transform)
    selection = parse_select(select)
    folder = RunFolder(run)
    student, record, facts = folder.load_student()
    cache = Cache.open(cache_root, local_copy)
    source = _build(cache, dataset, split, record, build)
    table = split_rows(cache.datasets().read(dataset, source.revision), split, dataset)
    table = select_rows(table, selection, f"{dataset}, split {split}")

    name = _name(dataset, split, chosen, select)
    target = folder.evaluations / name
    identity: dict[str, Any] = {
        "dataset": dataset,
        "revision": source.revision,
        "build": source.id,
        "origin": source.origin.model_dump() if source.origin else None,
        "split": split,
        "transform": chosen,
        "select": select or None,
        "checkpoint": {"file": BEST, "epoch": int(facts["epoch"]), "sha256": facts["sha256"]},
        "run": record.run,
    }
    known = _read(target / "evaluation.json")
    if known is not None and all(known.get(field) == value for field, value in identity.items()):
        return known

    part = FeatureDataset(
        cache, source, table, record.method.inputs, split=split, purpose=f"method {record.method.name}"
    )
    on = choose_device(device)
    keep_freed_memory(on)
    told, stage = progress or Silent(), f"evaluation {name}"
    told.start(stage, len(part))
    logits = predict(
        student.to(on),
        part,
        record.method,
        size=record.train_size,
        transform=chosen,
        batch_size=batch_size or record.config.batch_size,
        device=on,
        seen=lambda samples: told.advance(stage, samples),
    )
    scores = probability(logits)
    cropped = chosen == "crop" and part.row_shape(record.method.inputs[0])[-1] > record.train_size
    info = {
        **identity,
        "method": record.method.name,
        "applied_transform": "crop" if cropped else "resize",
        "train_size": record.train_size,
        "seen_generators": list(record.seen_generators),
        "imported": record.imported,
        "notes": record.notes(),
        "fingerprints": {name: source.features[name].fingerprint for name in record.method.inputs},
        "versions": versions(),
        "set_aside": rejected_counts(cache, dataset, source.revision),
        "counts": {"real": int(np.sum(part.label == 0)), "fake": int(np.sum(part.label == 1))},
        "metrics": _metrics(part.label, logits, scores),
        **_by_generator(part, scores),
    }
    _store(folder, target, info, cache, source, part, split, logits, scores)
    return info


def rejected_counts(cache: Cache, dataset: str, revision: str) -> dict[str, int]:
    """How many files a dataset's build set aside, by reason, such as ``label-conflict`` or ``leaked``."""
    return dict(Counter(str(row.get("reason")) for row in cache.datasets().rejects(dataset, revision)))


def _audit(cache: Cache, build: BuildRecord) -> HeaderAudit | None:
    """Return what the build found in the headers of the dataset's files; of a derived dataset, in those of its origin."""
    source = build.origin or build
    return cache.datasets().audit(source.dataset, source.revision)


def _build(cache: Cache, dataset: str, split: str, record: RunRecord, build_id: str | None) -> BuildRecord:
    own = next((one.build for one in record.trained_on if one.dataset == dataset), None)
    if build_id is None and own in cache.builds().ids():
        trained = cache.builds().read(own)
        build_id = trained.id if all(serves(trained, split, name) for name in record.method.inputs) else None
    revision, _ = candidate_builds(cache, dataset, build_id)
    split_rows(cache.datasets().read(dataset, revision), split, dataset)
    return choose_build(
        cache,
        dataset,
        build_id,
        {split: record.method.inputs},
        purpose=f"method {record.method.name}",
        fingerprints={name: record.fingerprints[name] for name in record.method.inputs if not record.imported},
        perturbed=True,
    )


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
    """Write everything under another name, then put the folder in its place."""
    temporary = folder.folder / f".tmp-evaluation-{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        columns = part.table.select(["key", "label", "generator", "family", "group"])
        table = columns.append_column("score", pa.array(scores)).append_column("logit", pa.array(logits))
        pq.write_table(table, temporary / "scores.parquet", compression="zstd")
        if serves(build, split, "dire"):
            dire = FeatureDataset(cache, build, part.table, ("dire",), split=split, purpose="the mean DIRE")
            means = dire.table.select(["key", "label", "generator", "group"])
            means = means.append_column("mean_dire", pa.array(_mean_dire(dire)))
            pq.write_table(means, temporary / "dire.parquet", compression="zstd")
        pictures = tuple(name for name in ("image", "eps", "dire") if serves(build, split, name))
        if pictures:
            shown = FeatureDataset(cache, build, part.table, pictures, split=split, purpose="the gallery")
            write_gallery(temporary / "gallery", shown, logits, scores)
        if (audit := _audit(cache, build)) is not None:
            (temporary / AUDIT).write_bytes(audit.as_json())
        (temporary / "evaluation.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", "utf-8")
        _put(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(new: Path, target: Path) -> None:
    """Put a folder in its place whole, in that of any other; another command may be doing the same."""
    target.parent.mkdir(exist_ok=True)
    old = new.with_name(f"{new.name}-old")
    while True:
        with suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another was put there meanwhile
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _mean_dire(part: FeatureDataset) -> npt.NDArray[np.float32]:
    """Mean DIRE of every row, float32 in 0..1, over channels and pixels."""
    means: npt.NDArray[np.float32] = np.zeros(len(part), dtype=np.float32)
    for batch in part.in_order(64):
        means[batch.rows] = batch.features["dire"].float().mean(dim=(1, 2, 3)).numpy() / 255
    return means


def _metrics(labels: npt.NDArray[Any], logits: npt.NDArray[Any], scores: npt.NDArray[Any]) -> dict[str, float | None]:
    """Over all rows of the evaluation at once."""
    bce = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels).float())
    return {
        "accuracy": accuracy(labels, scores),
        "average_precision": average_precision(labels, scores),
        "auc": auc(labels, scores),
        "bce": bce.item(),
    }


def _by_generator(part: FeatureDataset, scores: npt.NDArray[Any]) -> dict[str, Any]:
    """``generators``: counts and measures of each generator's test set; ``mean``: unweighted, over those with both."""
    found: list[dict[str, Any]] = []
    for generator, rows in test_sets(part.label, column(part.table, "generator"), column(part.table, "group")).items():
        labels, own = part.label[rows], scores[rows]
        measures = {
            "accuracy": accuracy(labels, own),
            "average_precision": average_precision(labels, own),
            "auc": auc(labels, own),
        }
        counts = {"real": int(np.sum(labels == 0)), "fake": int(np.sum(labels == 1))}
        found.append({"generator": generator, **counts, **measures})
    complete = [row for row in found if row["real"] and row["fake"]]
    names = ("accuracy", "average_precision", "auc")
    return {"generators": found, "mean": {name: unweighted_mean(row[name] for row in complete) for name in names}}


def _name(dataset: str, split: str, transform: str, select: str | None) -> str:
    """Name of the evaluation's folder; what a selection holds may not fit a file name, so it enters by its hash."""
    chosen = f"-{hashlib.sha256(select.encode()).hexdigest()[:8]}" if select else ""
    return f"{dataset}-{split}-{transform}{chosen}".replace(os.sep, "-")


def _read(path: Path) -> dict[str, Any] | None:
    """A stored evaluation, or None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
