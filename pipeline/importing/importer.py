"""Import loose feature files from end to end: shards, the dataset's revision and a build record.

An import plans like a build: rows that the cache holds are not read again, so an interrupted import continues. Files
that are missing, damaged or inconsistent are rejected with the reason, and tried again by the next import.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...cache.gather import gather
from ...cache.lease import lease
from ...cache.set_aside import read_set_aside
from ...cache.spec import Spec
from ...cache.store import Cache, FeatureStore
from ...errors import UsageError, UserError
from ...features.registry import FEATURES, about_of, producers_of
from ...images.file import ImageRejected, Reason, rejection
from ...models.backbones import load_teacher
from ...models.device import arithmetic, choose_device, keep_freed_memory
from ...models.layout import move_network
from ...models.transfer import HostArray, HostCopy, to_device
from ...progress import Progress
from ..audit.summary import summarise
from ..execution.batches import BatchSize, pad_batch, run_batches
from ..planning.plan import Plan, Samples, Task, make_plan
from ..record import write_record
from ..scan.conflicts import Reject
from ..scan.rows import ScannedRow
from ..scan.scan import scan
from .import_config import ImportConfig, import_specs
from .loose_files import (
    LOSSY_SUFFIXES,
    RESIZED_BY,
    LooseFileReader,
    LooseSample,
    common_side,
    find_loose_samples,
    wanted_parts,
)

_COMPARED = 8
"""Stored rows that are compared: with their files before new ones are added, and DIRE with what it derives from."""
_UNEXPLAINED = 0.05
"""Share of values of DIRE that may differ from image and reconstruction without a warning."""


@dataclass(frozen=True)
class _ImportContext:
    """What the tasks of an import share: one row per key, and the files of each image by its path."""

    rows: Mapping[str, ScannedRow]
    samples: Mapping[str, LooseSample]
    specs: Mapping[str, Spec]
    stores: Mapping[str, FeatureStore]
    reader: LooseFileReader
    decode_threads: int

    def read(self, feature: str, key: str) -> NDArray[Any]:
        """Read a row from its file. Raises ImageRejected if it cannot be used."""
        row = self.rows[key]
        sample = self.samples[row.file.location]
        if feature in sample.shared:
            raise ImageRejected(
                "ambiguous", f"another image's {feature} file would be the same, {sample.parts[feature]}"
            )
        if feature != "image" and feature not in sample.parts:
            raise ImageRejected("missing", f"there is no {feature} file beside it")
        return self.reader.read(feature, row, sample)


@dataclass
class _ImportTotals:
    imported: Counter[str] = field(default_factory=Counter)
    unusable: dict[str, ImageRejected] = field(default_factory=dict)


def run_import(config: ImportConfig, progress: Progress) -> dict[str, Any]:
    """Import loose files, reusing every row that the cache holds.

    Parameters
    ----------
    config
        What to import, and where to store it.
    progress
        Receives the stages.

    Returns
    -------
    dict
        What ``cache import --json`` prints.

    Raises
    ------
    UserError
        For folders that are not as expected, for files that contradict those imported before under the same origin, and
        if no image can be used.
    """
    began = time.monotonic()
    found = [sample for source in config.sources for sample in find_loose_samples(source, config.kind, config.layout)]
    wanted = _wanted(config, found)
    size = common_side(found, [feature for feature in wanted if feature not in ("image", "teacher")])
    teacher = load_teacher(config.teacher, config.teacher_weights, progress) if config.teacher else None
    specs = import_specs(config, size, wanted, teacher.digest if teacher else None)
    cache = Cache.create(config.cache)
    scanned = scan(
        [sample.file for sample in found],
        memory=cache.datasets().scan_file(config.dataset),
        workers=config.decode_threads,
        progress=progress,
    )
    if not scanned.rows:
        raise _nothing_usable(config, scanned.rejects)
    with lease(cache.root, "import", [spec.folder for spec in specs.values()], config.dataset):
        stores = {
            feature: cache.feature(spec, config.format, config.codec, about_of(spec)) for feature, spec in specs.items()
        }
        context = _ImportContext(
            rows={row.key: row for row in reversed(scanned.rows)},
            samples={sample.file.location: sample for sample in found},
            specs=specs,
            stores=stores,
            reader=LooseFileReader(
                size, RESIZED_BY[config.kind] if config.resize else None, config.lossy, config.storage
            ),
            decode_threads=config.decode_threads,
        )
        _compare(context, config)
        keys = Samples.of([row.key for row in scanned.rows], [row.file.split for row in scanned.rows])
        aside = read_set_aside(stores["image"])
        indexes = {name: store.index() for name, store in stores.items()}
        plan = make_plan(keys, wanted, indexes, config.shard_size, unusable=aside)
        totals = _run(plan, context, config, teacher.model if teacher else None, progress)
        totals.unusable |= {key: _rejection(why) for key, why in aside.items()}
        rows, unusable = _usable(scanned.rows, wanted, stores, totals.unusable, aside)
        rejects = [*scanned.rejects, *unusable]
        if not rows:
            raise _nothing_usable(config, rejects)
        by_class = _rejected_by_class(scanned.rows, rows, totals.unusable)
        notes = [*_class_notes(config, scanned.rows, rows, by_class), *_lossy_files(context, rows)]
        notes += _unexplained_dire(context, rows)
        record = write_record(
            cache, config.dataset, rows, [*rejects, *scanned.leaks], wanted, stores, audit=lambda: summarise(rows)
        )
    split_of = {row.key: row.file.split for row in rows}
    return {
        "dataset": config.dataset,
        "revision": record.revision,
        "build": record.id,
        "kind": config.kind,
        "origin": config.origin,
        "size": size,
        "samples": len(split_of),
        "occurrences": len(rows),
        "rejected": len(rejects),
        "label_conflicts": scanned.label_conflicts,
        "leaked": len(scanned.leaks),
        "rejected_by_class": by_class,
        "lost_classes": _lost_classes(scanned.rows, rows),
        "notes": notes,
        "rejects": [reject.as_json() for reject in rejects],
        "rejects_file": str(cache.datasets().folder / config.dataset / f"{record.revision}.rejects.jsonl"),
        "features": {
            name: {
                "fingerprint": feature.fingerprint,
                "imported": totals.imported[name],
                "rows": sum(split in feature.splits for split in split_of.values()),
                "splits": list(feature.splits),
                "bytes": stores[name].index().stored_bytes(feature.shards),
            }
            for name, feature in record.features.items()
        },
        "seconds": round(time.monotonic() - began, 3),
    }


def _wanted(config: ImportConfig, found: Sequence[LooseSample]) -> dict[str, frozenset[str]]:
    """Return feature -> splits in the order of computation; the teacher is for train, else for all splits with DIRE."""
    wanted = wanted_parts(found, config.features)
    absent = sorted(set(config.features) - set(wanted))
    if absent or not wanted:
        what = ", ".join(absent) or "feature"
        raise UserError(f"{config.sources[0]}: has no {what} file beside the images. Is it of the kind {config.kind}?")
    wanted["image"] = frozenset(sample.file.split for sample in found)
    if config.teacher is not None:
        if "dire" not in wanted:
            raise UsageError(f"--teacher {config.teacher}: needs DIRE, and there is none to import.")
        wanted["teacher"] = (wanted["dire"] & {"train"}) or wanted["dire"]
    return {feature: wanted[feature] for feature in FEATURES if feature in wanted}


def _rejection(why: str) -> ImageRejected:
    """Parse ``reason: detail``."""
    reason, _, detail = why.partition(": ")
    return ImageRejected(cast(Reason, reason), detail)


def _nothing_usable(config: ImportConfig, rejects: Sequence[Reject]) -> UserError:
    first = f"the first, {rejects[0].path}: {rejects[0].reason}, {rejects[0].detail}"
    return UserError(f"{config.dataset}: none of the {len(rejects):,} images can be used ({first}).")


_CLASSES = ("real", "fake")
_CLASS_WORDS = ("real", "generated")


def _rejected_by_class(
    before: Sequence[ScannedRow], rows: Sequence[ScannedRow], unusable: Mapping[str, ImageRejected]
) -> dict[str, dict[str, int]]:
    """Count the images that were set aside for one of their files: reason -> class -> images."""
    kept = {row.key for row in rows}
    counts: dict[str, dict[str, int]] = {}
    for row in before:
        if row.key not in kept:
            of_reason = counts.setdefault(unusable[row.key].reason, dict.fromkeys(_CLASSES, 0))
            of_reason[_CLASSES[row.file.label]] += 1
    return counts


def _lost_classes(before: Sequence[ScannedRow], rows: Sequence[ScannedRow]) -> list[str]:
    """Return the classes that had images and have none left."""
    had, left = ({row.file.label for row in some} for some in (before, rows))
    return [_CLASSES[label] for label in sorted(had - left)]


def _class_notes(
    config: ImportConfig,
    before: Sequence[ScannedRow],
    rows: Sequence[ScannedRow],
    rejected: Mapping[str, Mapping[str, int]],
) -> list[str]:
    """Say of which class nothing was there, and of which nothing is left, in all or in a split."""
    notes = []
    for label, word in enumerate(_CLASS_WORDS):
        there = {row.file.split for row in before if row.file.label == label}
        left = {row.file.split for row in rows if row.file.label == label}
        if not there:
            notes.append(f"There is no {word} image below {', '.join(map(str, config.sources))}.")
        elif not left:
            counts = [(of_reason[_CLASSES[label]], reason) for reason, of_reason in rejected.items()]
            why = ", ".join(f"{count:,} {reason}" for count, reason in sorted(counts, reverse=True) if count)
            remedy = _REMEDIES.get(max(counts)[1], "")
            notes.append(f"No {word} image is left ({why}), and nothing can be trained on one class. {remedy}".strip())
        else:
            notes += [f"No {word} image is left in split {split}: all were rejected." for split in sorted(there - left)]
    return notes


_REMEDIES = {
    "lossy": "Their DIRE or reconstructions are JPEG or WebP files, as the script writes them for such sources: --lossy "
    "takes them, and then the file format tells the classes apart. Computing DIRE here (build) avoids that.",
    "size-differs": "The script resized the images before it computed: --resize does the same.",
}


def _lossy_files(context: _ImportContext, rows: Sequence[ScannedRow]) -> list[str]:
    """Warn if DIRE or reconstructions of one class are stored lossily more often than those of the other."""
    lossy, all_rows = [0, 0], [0, 0]
    for row in rows:
        parts = context.samples[row.file.location].parts
        names = [path.lower() for feature, path in parts.items() if feature in context.stores and feature != "eps"]
        all_rows[row.file.label] += 1
        lossy[row.file.label] += any(name.endswith(LOSSY_SUFFIXES) for name in names)
    shares = [found / (total or 1) for found, total in zip(lossy, all_rows, strict=True)]
    if shares[0] == shares[1]:
        return []
    counts = " and ".join(
        f"{lossy[label]:,} of {all_rows[label]:,} {word}" for label, word in enumerate(_CLASS_WORDS) if all_rows[label]
    )
    return [
        f"DIRE or reconstruction is a JPEG or WebP file of {counts} images. Compression moves its values by several "
        "levels, so a student can tell the classes by the file format alone."
    ]


def _unexplained_dire(context: _ImportContext, rows: Sequence[ScannedRow]) -> list[str]:
    """Warn if DIRE is not the difference between image and reconstruction, as when the script resized otherwise.

    The reconstruction is truncated to 8 bits and DIRE is not computed from it, so the two differ by less than two
    levels; where it is clipped, it says nothing.
    """
    if not {"recon", "dire"} <= context.stores.keys():
        return []
    lossless = [
        row.key
        for row in rows
        if not any(path.lower().endswith(LOSSY_SUFFIXES) for path in context.samples[row.file.location].parts.values())
    ]
    keys = list(dict.fromkeys(lossless))
    for feature in ("recon", "dire"):
        there = context.stores[feature].index(refresh=True).locate(keys)[0] >= 0
        keys = [key for key, held in zip(keys, there.tolist(), strict=True) if held]
    keys = keys[:: max(1, len(keys) // _COMPARED)][:_COMPARED]
    if not keys:
        return []
    image, recon, dire = (
        gather(context.stores[feature], keys).astype(np.int16) for feature in ("image", "recon", "dire")
    )
    off = (np.abs(np.abs(image - recon) - dire) > 1) & (recon > 0) & (recon < 255)
    if off.mean() < _UNEXPLAINED:
        return []
    return [
        f"DIRE is not the difference between image and reconstruction in {off.mean():.0%} of the values of {len(keys)} "
        "images that were compared, so the script that made it saw other pixels: of another size or resized otherwise."
    ]


def _compare(context: _ImportContext, config: ImportConfig) -> None:
    """Check that stored rows equal their files: under one origin, an image has one row per feature."""
    for feature, store in context.stores.items():
        if feature == "teacher":
            continue
        keys = list(context.rows)
        stored = [keys[index] for index in np.flatnonzero(store.index().locate(keys)[0] >= 0)]
        for key in stored[:: max(1, len(stored) // _COMPARED)][:_COMPARED]:
            try:
                row = context.read(feature, key)
            except Exception as error:
                rejection(b"", error)  # raises what is not the file's fault
                continue
            if not np.array_equal(row, gather(store, [key])[0]):
                raise UserError(
                    f"{context.rows[key].file.location}: the cache holds another {feature} for this image, "
                    f"imported before "
                    f"under the origin {config.origin!r}. If these files were computed differently, give them their own --origin."
                )


def _run(
    plan: Plan, context: _ImportContext, config: ImportConfig, teacher: nn.Module | None, progress: Progress
) -> _ImportTotals:
    """Read and commit the missing rows, one image shard at a time."""
    totals = _ImportTotals()
    progress.start("import", sum(len(task.keys) for task in plan.tasks))
    if teacher is not None:
        device = choose_device(config.device)
        keep_freed_memory(device)
        teacher, size = move_network(teacher, device), BatchSize(config.batch_size)
        progress.start("teacher", plan.missing["teacher"])
    for task in plan.tasks:
        fresh = _import_task(task, context, totals)
        progress.advance("import", len(task.keys))
        wanted = [key for key in task.missing.get("teacher", ()) if key not in totals.unusable]
        if teacher is not None and wanted:
            with arithmetic(config.precision, device):
                _run_teacher(teacher, wanted, fresh, context, size)
            totals.imported["teacher"] += len(wanted)
            progress.advance("teacher", len(wanted))
    return totals


def _import_task(task: Task, context: _ImportContext, totals: _ImportTotals) -> dict[str, NDArray[Any]]:
    """Commit the missing rows of one image shard, and return its new rows of DIRE by key.

    A sample with one unusable file gets no row at all, so that the features of a shard have the same keys.
    """
    lacking = {feature: frozenset(keys) for feature, keys in task.missing.items() if feature != "teacher"}

    def read_one(key: str) -> dict[str, NDArray[Any]] | ImageRejected:
        try:
            return {feature: context.read(feature, key) for feature, keys in lacking.items() if key in keys}
        except Exception as error:  # whatever it is, it costs this image alone
            return rejection(b"", error)

    with ThreadPoolExecutor(max_workers=context.decode_threads) as pool:
        outcomes = dict(zip(task.keys, pool.map(read_one, task.keys), strict=True))
    totals.unusable |= {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, ImageRejected)}
    read = {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, ImageRejected)}
    for feature in context.specs:
        rows = {key: found[feature] for key, found in read.items() if feature in found}
        if rows:
            context.stores[feature].commit(tuple(rows), np.stack(list(rows.values())))
            totals.imported[feature] += len(rows)
    return {key: found["dire"] for key, found in read.items() if "dire" in found}


def _run_teacher(
    model: nn.Module, keys: Sequence[str], fresh: Mapping[str, NDArray[Any]], context: _ImportContext, size: BatchSize
) -> None:
    """Compute and commit the teacher's features of imported DIRE images."""
    (producer,) = producers_of({"teacher": context.specs["teacher"]})
    route = producer.route(frozenset({"teacher"}))
    device = next(model.parameters()).device
    old = [key for key in keys if key not in fresh]
    dire = dict(fresh) | (dict(zip(old, gather(context.stores["dire"], old), strict=True)) if old else {})
    parts: list[NDArray[Any]] = []

    def launch(batch: Sequence[str], images: int) -> HostCopy:
        padded = pad_batch(batch, images)
        rows = {"dire": to_device(np.stack([dire[key] for key in padded]), device)}
        return HostCopy(producer.queue(model, rows, padded, ["teacher"], route))

    def land(batch: Sequence[str], values: dict[str, HostArray]) -> None:
        parts.append(producer.checked(batch, values)["teacher"][: len(batch)])

    run_batches(keys, size, launch, land)
    context.stores["teacher"].commit(keys, np.concatenate(parts))


def _usable(
    rows: Sequence[ScannedRow],
    wanted: Mapping[str, frozenset[str]],
    stores: Mapping[str, FeatureStore],
    unusable: Mapping[str, ImageRejected],
    set_aside: Collection[str],
) -> tuple[list[ScannedRow], list[Reject]]:
    """Divide the rows into those with all features of their split that are not set aside, and rejects for the others."""
    lacking = set(set_aside)
    for feature, splits in wanted.items():
        keys = [row.key for row in rows if row.file.split in splits]
        found = stores[feature].index(refresh=True).locate(keys)[0] >= 0
        lacking.update(key for key, there in zip(keys, found, strict=True) if not there)
    rejects = [
        Reject.of(row.file, unusable[row.key].reason, unusable[row.key].detail) for row in rows if row.key in lacking
    ]
    return [row for row in rows if row.key not in lacking], rejects
