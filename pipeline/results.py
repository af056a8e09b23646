"""The results of a build: totals over its tasks, and the values that ``build --json`` prints."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..cache.index.index import Index
from ..cache.records.audit import HeaderAudit
from ..cache.shards.keys import binary_keys
from ..cache.shards.packed import BITS, BLOCK, packing_of
from ..cache.spec import Spec
from ..choices import IMAGE_ALGORITHMS
from ..errors import UserError
from ..features.registry import layout_of, warnings_of_specs
from ..features.walk import CALLS
from ..images.file import Reason
from .accounting import account_for, image_counts, notes_of, one_class_note, untested_note, warnings_of
from .audit.summary import audit_result, summarise
from .config import BuildConfig
from .execution.tasks import TaskReport
from .planning.estimate import predicted_calls
from .planning.make_specs import UNKNOWN_WEIGHTS
from .planning.plan import Plan, PlanPartition, Samples
from .planning.predecessors import without_predecessors
from .planning.prepare import BuildPlan, refuse_one_class
from .record import write_record
from .scan.conflicts import Reject
from .scan.rows import RowTable

BuildResult = dict[str, Any]


@dataclass
class BuildTotals:
    """Totals over the tasks of a build.

    Attributes
    ----------
    computed
        Feature -> rows that were computed, or decoded.
    taken_over
        Feature -> rows that are those of an earlier algorithm.
    adm_calls
        Images x ADM calls.
    unusable
        Key without an image -> ``reason: detail``.
    shards
        Feature -> ids of shards.
    batch_size
        Smallest number of images in an ADM call; None without a call.
    normalisation
        How the ADM normalised, in words; several if devices or workers differ.
    speed
        Device name -> (ADM calls, seconds).
    workers
        Addresses of the processes that computed.
    seconds
        Time from the first task's start to the last one's end.
    notes
        What was noticed meanwhile, a sentence each.
    """

    computed: Counter[str] = field(default_factory=Counter)
    taken_over: Counter[str] = field(default_factory=Counter)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    shards: dict[str, set[str]] = field(default_factory=dict)
    batch_size: int | None = None
    normalisation: set[str] = field(default_factory=set)
    speed: dict[str, tuple[int, float]] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def busy(self) -> float | None:
        """Share of the time in which the devices computed, models' loading not counted as that; None without ADM calls."""
        computed = sum(seconds for _, seconds in self.speed.values())
        return computed / (self.seconds * len(self.workers)) if self.speed and self.seconds else None

    def new(self, feature: str) -> int:
        """Return the number of rows of a feature that the build added."""
        return self.computed[feature] + self.taken_over[feature]

    def add(self, report: TaskReport) -> None:
        """Add the report of one task."""
        done = report.done
        self.workers.add(report.worker)
        self.computed.update(done.computed)
        self.taken_over.update(done.taken_over)
        self.adm_calls += done.adm_calls
        self.unusable.update(done.unusable)
        for feature, shard in done.shards.items():
            self.shards.setdefault(feature, set()).add(shard)
        if done.batch_size is not None:
            self.batch_size = min(done.batch_size, self.batch_size or done.batch_size)
        if done.normalisation is not None:
            self.normalisation.add(done.normalisation)
        if done.adm_calls:
            calls, seconds = self.speed.get(report.device, (0, 0.0))
            self.speed[report.device] = calls + done.adm_calls, seconds + done.seconds


def record_result(
    config: BuildConfig, ready: BuildPlan, totals: BuildTotals, audit: HeaderAudit | None, part: PlanPartition | None
) -> BuildResult:
    """Write the dataset's revision and the build record, and return the result of the build.

    Parameters
    ----------
    config, ready, totals
        Configuration, plan and totals of the build.
    audit
        Audit of the scanned rows, if there is one. It is stored if all rows are usable; otherwise the usable rows are
        audited again.
    part
        The part of the plan that this build computed, if not all of it.

    Raises
    ------
    UserError
        If no image is usable.
    """
    assert ready.cache is not None
    index = ready.stores["image"].index(refresh=True)
    rows, undecodable = _usable(ready.scanned.rows, index, totals.unusable, ready.set_aside)
    rejects = [*ready.scanned.rejects, *undecodable]
    if not rows:
        first = f"{rejects[0].path}: {rejects[0].reason}, {rejects[0].detail}"
        raise UserError(f"{config.dataset}: none of the {len(rejects):,} images can be used (the first, {first}).")
    if config.origin is None:
        refuse_one_class(config, rows, rejects, ready.sources)
    set_aside = [*rejects, *ready.scanned.leaks]
    accounts = account_for(ready.sources, len(rows), rejects, ready.scanned.leaks)
    record = write_record(
        ready.cache, config.dataset, rows, set_aside, ready.wanted, ready.stores,
        audit=lambda: audit if audit is not None and not undecodable else summarise(rows),
        sources=accounts if ready.sources else None, origin=ready.derived, moves_head=config.dataset != config.origin,
    )  # fmt: skip
    samples = Samples.of_rows(rows)
    counts = samples.counts()
    features = {
        name: {
            "fingerprint": feature.fingerprint,
            "computed": totals.computed[name],
            "taken_over": totals.taken_over[name],
            "reused": sum(counts.get(split, 0) for split in feature.splits) - totals.new(name),
            "bytes": ready.stores[name].index().stored_bytes(feature.shards),
        }
        for name, feature in record.features.items()
    }
    return {
        **(scanned := _scan_result(config, ready, rows, rejects)),
        "notes": [*scanned["notes"], *totals.notes],
        "part": _part(part, 0),
        "dry_run": False,
        "revision": record.revision,
        "build": record.id,
        "samples": len(samples),
        "occurrences": len(rows),
        "decoded": totals.new("image"),
        "adm_calls": totals.adm_calls,
        "device_busy": totals.busy,
        "features": features,
        "audit": audit_result(ready.cache.datasets().audit(config.dataset, record.revision), config.harmonize),
        "rejects_file": str(ready.cache.datasets().folder / config.dataset / f"{record.revision}.rejects.jsonl"),
    }


def part_result(
    config: BuildConfig, ready: BuildPlan, totals: BuildTotals, part: PlanPartition, rest: Plan
) -> BuildResult:
    """Return the result of a build that finished its part while ``rest`` of the whole plan is still missing."""
    features = {
        name: {
            "fingerprint": spec.fingerprint(),
            "computed": totals.computed[name],
            "taken_over": totals.taken_over[name],
            "reused": rest.wanted[name] - rest.missing[name] - totals.new(name),
            "bytes": ready.stores[name].index().stored_bytes(sorted(totals.shards.get(name, ()))),
        }
        for name, spec in ready.specs.items()
    }
    return {
        **_scan_result(config, ready, *_known_usable(ready)),
        "part": _part(part, len(rest.tasks)),
        "dry_run": False,
        "revision": None,
        "build": None,
        "samples": rest.wanted["image"],
        "occurrences": len(ready.scanned.rows),
        "decoded": totals.new("image"),
        "adm_calls": totals.adm_calls,
        "device_busy": totals.busy,
        "features": features,
        "rejects_file": None,
    }


def plan_result(config: BuildConfig, ready: BuildPlan, began: float) -> BuildResult:
    """Return the result of a dry run; ``began`` is the monotonic clock at its start."""
    plan = ready.plan
    rows, rejects = _known_usable(ready)
    at_least = without_predecessors(plan, ready.predecessors)
    calls = predicted_calls(plan, ready.producers)
    features = {
        name: {
            "fingerprint": None if _needs_unknown_weights(spec) else spec.fingerprint(),
            "missing": plan.missing[name],
            "may_be_taken_over": plan.missing[name] - at_least.missing[name],
            "reused": plan.wanted[name] - plan.missing[name],
            "bytes": plan.missing[name] * layout_of(spec).bytes,
        }
        for name, spec in ready.specs.items()
    }
    return {
        **_scan_result(config, ready, rows, rejects),
        "dry_run": True,
        "revision": None,
        "build": None,
        "samples": plan.wanted["image"],
        "occurrences": len(rows),
        "decoded": plan.missing["image"],
        "adm_calls": calls[CALLS],
        "calls": {unit: number for unit, number in calls.items() if number},
        "adm_calls_at_least": predicted_calls(at_least, ready.producers)[CALLS],
        "features": features,
        "rejects_file": None,
        "seconds": round(time.monotonic() - began, 3),
    }


def _scan_result(config: BuildConfig, ready: BuildPlan, rows: RowTable, rejects: Sequence[Reject]) -> BuildResult:
    accounts = account_for(ready.sources, len(rows), rejects, ready.scanned.leaks)
    return {
        "dataset": config.dataset,
        "origin": ready.derived.model_dump() if ready.derived else None,
        "rejected": len(rejects),
        "label_conflicts": ready.scanned.label_conflicts,
        "leaked": len(ready.scanned.leaks),
        "opened": ready.scanned.opened,
        "sources": [account.model_dump(mode="json") for account in accounts.sources],
        "counts": image_counts(rows),
        "untested": untested_note(rows),
        "warnings": warnings_of(accounts),
        "notes": [*notes_of(accounts), *one_class_note(rows), *_notes(config, ready)],
        "audit": None,
        "part": None,
        "rejects": [reject.as_json() for reject in rejects],
    }


def _notes(config: BuildConfig, ready: BuildPlan) -> list[str]:
    """Say which features will be of little use, what is rounded, which weights are not here, and which old rules
    decoded images.
    """
    algorithm = ready.specs["image"].algorithm
    unknown = "What the cache has of these features is not known, so all rows count as missing."
    notes = [
        *warnings_of_specs(ready.specs),
        *_rounded(ready.specs),
        *ready.absent,
        *([unknown] if ready.absent else []),
    ]
    if algorithm == IMAGE_ALGORITHMS[0]:
        return notes
    return [
        *notes,
        f"The images of {config.origin} were decoded by the rules of algorithm {algorithm}, and this build uses them as "
        "they are. Build from the sources to have them decoded by today's.",
    ]


def _rounded(specs: Mapping[str, Spec]) -> Iterator[str]:
    """Say which features are stored as integers."""
    for name, spec in specs.items():
        packed = packing_of(getattr(spec, "storage", None))
        if packed is not None:
            yield (
                f"{name} is stored as {packed}: each value is rounded to {BITS[packed]} bits, with a scale for each "
                f"{BLOCK} values. It is another feature than {name} as float16."
            )


def _needs_unknown_weights(spec: Spec) -> bool:
    """Return whether the weights that a spec names are not here, see `BuildPlan.absent`."""
    return UNKNOWN_WEIGHTS in spec.model_dump_json()


def _part(part: PlanPartition | None, left: int) -> BuildResult | None:
    """Return the part that was built, if any, and how many shards of the other parts are still missing."""
    return {"number": part.number, "of": part.of, "shards_left": left} if part else None


def _usable(
    rows: RowTable, image: Index, unusable: Mapping[str, str], set_aside: Mapping[str, str]
) -> tuple[RowTable, list[Reject]]:
    """Divide the rows into those with an image and rejects for those without, or whose image is set aside."""
    aside = binary_keys(list(set_aside))
    masks = [(image.locate(block["key"])[0] >= 0) & ~np.isin(block["key"], aside) for block in rows.blocks()]
    return _divided(rows, masks, {**unusable, **image.rejected, **set_aside})


def _known_usable(ready: BuildPlan) -> tuple[RowTable, list[Reject]]:
    """Divide the rows of a plan into those that may be usable, and rejects: an earlier build could not decode them."""
    store = ready.stores.get("image")
    image = Index.empty() if store is None else store.index()
    known = {**image.rejected, **ready.set_aside}
    unusable = binary_keys(list(known))
    masks = [~np.isin(block["key"], unusable) for block in ready.scanned.rows.blocks()] if known else []
    rows, undecodable = _divided(ready.scanned.rows, masks, known)
    return rows, [*ready.scanned.rejects, *undecodable]


def _divided(
    rows: RowTable, usable: Sequence[NDArray[np.bool_]], why: Mapping[str, str]
) -> tuple[RowTable, list[Reject]]:
    """Divide the rows into usable ones, by masks of their blocks, and rejects; ``why`` has ``reason: detail`` by key."""
    if all(mask.all() for mask in usable):
        return rows, []
    rejects: list[Reject] = []
    for block, mask in zip(rows.blocks(), usable, strict=True):
        for row in rows.made(block[~mask]):
            reason, _, detail = why[row.key].partition(": ")
            rejects.append(Reject.of(row.file, cast(Reason, reason), detail))
    return rows.chosen(usable), rejects
