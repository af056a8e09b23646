"""Stage one from end to end: prepare, run the tasks, write the dataset and the build record.

What was computed stays computed: every shard is committed as soon as it is whole, and the dataset's revision and the
build record, which name what a training may use, are written last.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, cast

import torch

from ..cache.gather import gather
from ..cache.index import Index
from ..errors import UserError
from ..progress import Progress
from .compute import to_signal
from .config import BuildConfig
from .ddim import NoiseModel
from .device import HALF
from .estimate import image_size, predicted_calls, row_bytes
from .image_file import Limits, Reason
from .networks import adm_batch, adm_on, compiled, teacher_batch, teacher_on
from .precision import SAMPLES, Deviation, measure_deviation
from .prepare import Prepared, prepare
from .record import write_record
from .run import run_tasks
from .scan import Reject, ScannedRow, forget_files
from .sources import printable
from .tools import Tools

Result = dict[str, Any]


@dataclass
class Totals:
    """What the tasks of a build did together.

    Rows by feature, images x ADM calls, keys without a picture, images in one ADM call (None if there was none).
    """

    computed: Counter[str] = field(default_factory=Counter)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    batch_size: int | None = None


def run_build(config: BuildConfig, progress: Progress, *, dry_run: bool = False) -> Result:
    """Make the features of a dataset, reusing every row that the cache holds.

    Returns what ``build --json`` prints. A dry run computes nothing and returns the plan: ``missing`` in the place of
    ``computed``, predicted ADM calls, uncompressed bytes.
    Raises UserError for sources, models or settings that cannot be used, before any work starts.
    """
    began = time.monotonic()
    with ExitStack() as held:
        ready = prepare(config, progress, held, dry_run=dry_run)
        if dry_run:
            return _plan_result(config, ready, began)
        totals = _run(config, ready, progress)
        _forget_changed(config, ready, totals)
        result = _record(config, ready, totals)
        result["seconds"] = round(time.monotonic() - began, 3)
        _log(config, ready, totals, result)
        _keep_indexes(ready)
    return result


def _run(config: BuildConfig, ready: Prepared, progress: Progress) -> Totals:
    """Run all tasks of the plan; each commits what it made."""
    progress.start("image", ready.plan.missing["image"])
    progress.start("ADM calls", predicted_calls(ready.plan, ready.specs, ready.schedule, config.real_step))
    if "teacher" in ready.specs:
        progress.start("teacher", ready.plan.missing["teacher"])
    device = ready.device

    def load_model() -> NoiseModel:
        model = adm_on(config, device)
        return compiled(model, device) if config.compile else model

    tools = Tools(
        stores=ready.stores,
        specs=ready.specs,
        files={row.key: row.file for row in reversed(ready.scanned.rows)},
        schedule=ready.schedule,
        clip=config.clip,
        real_step=config.real_step,
        device=device,
        decoders=config.workers,
        limits=Limits(max_pixels=config.max_pixels, min_side=config.min_side),
        load_adm=load_model,
        load_teacher=lambda: teacher_on(config, device),
        choose_batch=lambda model: adm_batch(config, device, model, image_size(ready.specs)),
        teacher_batch=teacher_batch(config, device),
        advance=progress.advance,
    )
    totals = Totals()
    for done in run_tasks(ready.plan.tasks, tools):
        totals.computed.update(done.computed)
        totals.adm_calls += done.adm_calls
        totals.unusable.update(done.unusable)
    if totals.adm_calls:
        totals.batch_size = tools.adm_batch.size
    return totals


def _forget_changed(config: BuildConfig, ready: Prepared, totals: Totals) -> None:
    """Make the next scan open the files that were not the ones which an earlier scan had remembered."""
    changed = {key for key, why in totals.unusable.items() if why.startswith("changed:")}
    if changed and ready.cache is not None:
        memory = ready.cache.datasets().scan_file(config.dataset)
        forget_files(memory, (row.file for row in ready.scanned.rows if row.key in changed))


def _record(config: BuildConfig, ready: Prepared, totals: Totals) -> Result:
    """Write the dataset's revision and the build record, and return what they say."""
    assert ready.cache is not None
    rows, undecodable = _usable(ready.scanned.rows, ready.stores["image"].index(refresh=True), totals.unusable)
    rejects = [*ready.scanned.rejects, *undecodable]
    if not rows:
        first = f"{rejects[0].path}: {rejects[0].reason}, {rejects[0].detail}"
        raise UserError(f"{config.dataset}: none of the {len(rejects):,} images can be used (the first, {first}).")
    set_aside = [*rejects, *ready.scanned.leaks]
    record = write_record(ready.cache, config.dataset, rows, set_aside, ready.wanted, ready.stores)
    split_of = {row.key: row.file.split for row in rows}
    features = {
        name: {
            "fingerprint": feature.fingerprint,
            "computed": totals.computed[name],
            "reused": sum(split in feature.splits for split in split_of.values()) - totals.computed[name],
            "bytes": ready.stores[name].index().stored_bytes(feature.shards),
        }
        for name, feature in record.features.items()
    }
    return {
        **_scan_result(config, ready, rejects),
        "dry_run": False,
        "revision": record.revision,
        "build": record.id,
        "samples": len(split_of),
        "occurrences": len(rows),
        "decoded": totals.computed["image"],
        "adm_calls": totals.adm_calls,
        "features": features,
        "rejects_file": str(ready.cache.datasets().folder / config.dataset / f"{record.revision}.rejects.jsonl"),
    }


def _plan_result(config: BuildConfig, ready: Prepared, began: float) -> Result:
    plan = ready.plan
    features = {
        name: {
            "fingerprint": spec.fingerprint(),
            "missing": plan.missing[name],
            "reused": plan.wanted[name] - plan.missing[name],
            "bytes": plan.missing[name] * row_bytes(spec),
        }
        for name, spec in ready.specs.items()
    }
    return {
        **_scan_result(config, ready, ready.scanned.rejects),
        "dry_run": True,
        "revision": None,
        "build": None,
        "samples": plan.wanted["image"],
        "occurrences": len(ready.scanned.rows),
        "decoded": plan.missing["image"],
        "adm_calls": predicted_calls(plan, ready.specs, ready.schedule, config.real_step),
        "features": features,
        "rejects_file": None,
        "seconds": round(time.monotonic() - began, 3),
    }


def _scan_result(config: BuildConfig, ready: Prepared, rejects: Sequence[Reject]) -> Result:
    return {
        "dataset": config.dataset,
        "rejected": len(rejects),
        "label_conflicts": ready.scanned.label_conflicts,
        "leaked": len(ready.scanned.leaks),
        "opened": ready.scanned.opened,
        "rejects": [asdict(reject) for reject in rejects],
    }


def _usable(
    rows: Sequence[ScannedRow], image: Index, unusable: dict[str, str]
) -> tuple[list[ScannedRow], list[Reject]]:
    """Divide the rows into those that have a picture and those that have none, with the reason."""
    usable: list[ScannedRow] = []
    rejects: list[Reject] = []
    present = dict(zip([row.key for row in rows], image.locate([row.key for row in rows])[0] >= 0, strict=True))
    for row in rows:
        if present[row.key]:
            usable.append(row)
            continue
        reason, _, detail = (image.rejected.get(row.key) or unusable[row.key]).partition(": ")
        rejects.append(Reject(printable(row.file.location), cast(Reason, reason), detail))
    return usable, rejects


def _deviation(config: BuildConfig, ready: Prepared) -> Deviation:
    """Compare reduced precision with float32 on the first pictures of the plan."""
    store = ready.stores["image"]
    index = store.index()
    keys = list(islice((key for task in ready.plan.tasks for key in task.keys if key in index), SAMPLES))
    pixels = torch.from_numpy(gather(store, keys)).to(ready.device)
    exact, reduced = (adm_on(config, ready.device, reduced=choice) for choice in (False, True))
    return measure_deviation(
        exact, reduced, to_signal(pixels), ready.schedule, clip=config.clip, real_step=config.real_step
    )


def _keep_indexes(ready: Prepared) -> None:
    """Write the compacted indexes that many new shards have outgrown. Only a speed-up: where it fails, nothing happens."""
    for store in ready.stores.values():
        with suppress(UserError):
            store.compact_index(if_worth=True)


def _log(config: BuildConfig, ready: Prepared, totals: Totals, result: Result) -> None:
    """Note in each feature's folder what this build added, where and how fast, and how exact reduced precision is."""
    event: dict[str, object] = {
        "event": "build",
        "build": result["build"],
        "seconds": result["seconds"],
        "adm_calls": totals.adm_calls,
        "device": str(ready.device),
        "host": platform.node(),
        "batch_size": totals.batch_size,
    }
    if config.precision in HALF and totals.adm_calls:
        event["deviation_from_float32"] = asdict(_deviation(config, ready))
    for name, store in ready.stores.items():
        if totals.computed[name]:
            store.log({**event, "computed": totals.computed[name]})
