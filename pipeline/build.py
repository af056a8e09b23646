"""Stage one from end to end: prepare, run the tasks, write the dataset and the build record.

What was computed stays computed: every shard is committed as soon as it is whole, and the dataset's revision and the
build record, which name what a training may use, are written last.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import nn

from .. import __version__
from ..cache.builds import BuildRecord, BuiltFeature
from ..cache.gather import gather
from ..cache.index import Index
from ..errors import UserError
from ..models.backbones import load_teacher
from ..progress import Progress
from .adm import Adm
from .adm_weights import load_adm
from .config import BuildConfig
from .device import HALF
from .estimate import predicted_calls, row_bytes
from .image_file import Limits, Reason
from .precision import SAMPLES, Deviation, measure_deviation
from .prepare import Prepared, prepare
from .run import Tools, run_tasks, to_signal
from .scan import Reject, ScannedRow, to_table
from .sources import printable

Result = dict[str, Any]

VERSIONS = ("torch", "torchvision", "numpy", "pillow", "zarr", "numcodecs")
CPU_BATCH = 8
CUDA_BATCH = 16


@dataclass
class Totals:
    """What the tasks of a build did together: rows by feature, images x ADM calls, keys without a picture."""

    computed: Counter[str] = field(default_factory=Counter)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)


def run_build(config: BuildConfig, progress: Progress, *, dry_run: bool = False) -> Result:
    """Make the features of a dataset, reusing every row that the cache holds.

    Returns what ``build --json`` prints. A dry run computes nothing and returns the plan: ``missing`` in the place of
    ``computed``, predicted ADM calls, uncompressed bytes.
    Raises UserError for sources, models or settings that cannot be used, before any work starts.
    """
    began = time.monotonic()
    ready = prepare(config, progress, dry_run=dry_run)
    if dry_run:
        return _plan_result(config, ready, began)
    totals = _run(config, ready, progress)
    result = _record(config, ready, totals)
    result["seconds"] = round(time.monotonic() - began, 3)
    _log(config, ready, totals, result)
    return result


def _run(config: BuildConfig, ready: Prepared, progress: Progress) -> Totals:
    """Run all tasks of the plan; each commits what it made."""
    progress.start("image", ready.plan.missing["image"])
    progress.start("ADM calls", predicted_calls(ready.plan, ready.specs, ready.schedule, config.real_step))
    if "teacher" in ready.specs:
        progress.start("teacher", ready.plan.missing["teacher"])
    tools = Tools(
        stores=ready.stores,
        specs=ready.specs,
        files={row.key: row.file for row in reversed(ready.scanned.rows)},
        schedule=ready.schedule,
        clip=config.clip,
        real_step=config.real_step,
        device=ready.device,
        batch_size=_batch_size(config, ready.device),
        decoders=config.workers,
        limits=Limits(max_pixels=config.max_pixels, min_side=config.min_side),
        load_adm=lambda: _adm(config, ready.device, reduced=True),
        load_teacher=lambda: _teacher(config, ready.device),
        advance=progress.advance,
    )
    totals = Totals()
    for done in run_tasks(ready.plan.tasks, tools):
        totals.computed.update(done.computed)
        totals.adm_calls += done.adm_calls
        totals.unusable.update(done.unusable)
    return totals


def _record(config: BuildConfig, ready: Prepared, totals: Totals) -> Result:
    """Write the dataset's revision and the build record, and return what they say."""
    assert ready.cache is not None
    rows, undecodable = _usable(ready.scanned.rows, ready.stores["image"].index(refresh=True), totals.unusable)
    rejects = [*ready.scanned.rejects, *undecodable]
    if not rows:
        first = f"{rejects[0].path}: {rejects[0].reason}, {rejects[0].detail}"
        raise UserError(f"{config.dataset}: none of the {len(rejects):,} images can be used (the first, {first}).")
    datasets = ready.cache.datasets()
    set_aside = [asdict(reject) for reject in [*rejects, *ready.scanned.leaks]]
    revision = datasets.write(config.dataset, to_table(rows), set_aside)
    split_of = {row.key: row.file.split for row in rows}
    built = _built(split_of, ready)
    versions = {"distil-cache": __version__, **{name: version(name) for name in VERSIONS}}
    record = BuildRecord.new(config.dataset, revision, built, versions)
    ready.cache.builds().write(record)
    features = {
        name: {
            "fingerprint": feature.fingerprint,
            "computed": totals.computed[name],
            "reused": sum(split in feature.splits for split in split_of.values()) - totals.computed[name],
            "bytes": sum(ready.stores[name].marker(shard).bytes for shard in feature.shards),
        }
        for name, feature in built.items()
    }
    return {
        **_scan_result(config, ready, rejects),
        "dry_run": False,
        "revision": revision,
        "build": record.id,
        "samples": len(split_of),
        "occurrences": len(rows),
        "decoded": totals.computed["image"],
        "adm_calls": totals.adm_calls,
        "features": features,
        "rejects_file": str(datasets.folder / config.dataset / f"{revision}.rejects.jsonl"),
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


def _built(split_of: dict[str, str], ready: Prepared) -> dict[str, BuiltFeature]:
    """Name, for each feature, the shards that hold the dataset's rows."""
    built = {}
    for feature, spec in ready.specs.items():
        splits = ready.wanted[feature]
        index = ready.stores[feature].index(refresh=True)
        numbers, _ = index.locate([key for key, split in split_of.items() if split in splits])
        built[feature] = BuiltFeature(
            fingerprint=spec.fingerprint(),
            folder=spec.folder,
            shards=tuple(index.shards[number] for number in sorted(set(numbers.tolist()))),
            splits=tuple(sorted(splits)),
        )
    return built


def _adm(config: BuildConfig, device: torch.device, *, reduced: bool) -> Adm:
    """Load the diffusion model onto the device, in the build's precision or in float32."""
    model = load_adm(config.adm, config.adm_config).model
    if reduced and config.precision in HALF:
        model.to_half(HALF[config.precision])
    return model.to(device)


def _teacher(config: BuildConfig, device: torch.device) -> nn.Module:
    return load_teacher(config.teacher, config.teacher_weights).model.to(device)


def _batch_size(config: BuildConfig, device: torch.device) -> int:
    if config.batch_size != "auto":
        return config.batch_size
    return CUDA_BATCH if device.type == "cuda" else CPU_BATCH


def _deviation(config: BuildConfig, ready: Prepared) -> Deviation:
    """Compare reduced precision with float32 on the first pictures of the plan."""
    store = ready.stores["image"]
    keys = [key for task in ready.plan.tasks for key in task.keys if key in store.index()][:SAMPLES]
    pixels = torch.from_numpy(gather(store, keys)).to(ready.device)
    exact, reduced = (_adm(config, ready.device, reduced=choice) for choice in (False, True))
    return measure_deviation(
        exact, reduced, to_signal(pixels), ready.schedule, clip=config.clip, real_step=config.real_step
    )


def _log(config: BuildConfig, ready: Prepared, totals: Totals, result: Result) -> None:
    """Note in each feature's folder what this build added, where and how fast, and how exact reduced precision is."""
    event: dict[str, object] = {
        "event": "build",
        "build": result["build"],
        "seconds": result["seconds"],
        "adm_calls": totals.adm_calls,
        "device": str(ready.device),
        "host": platform.node(),
        "batch_size": _batch_size(config, ready.device),
    }
    if config.precision in HALF and totals.adm_calls:
        event["deviation_from_float32"] = asdict(_deviation(config, ready))
    for name, store in ready.stores.items():
        if totals.computed[name]:
            store.log({**event, "computed": totals.computed[name]})
